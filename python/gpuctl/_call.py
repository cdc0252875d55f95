"""One call of gpuctl: the program on this machine, or over HTTP where GPUCTL_URL says so."""

from __future__ import annotations

import contextvars
import http.client
import json
import os
import shutil
import socket
import subprocess
import sysconfig
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union
from urllib.parse import quote, urlencode, urlsplit

from ._errors import Unavailable, error_of

# A number of seconds, or "90s", "10m", "1h30m".
Duration = Union[int, float, str]
# A number of MB, or "20000MB", "20GB", "20GiB".
Size = Union[int, str]
Value = Union[None, bool, int, float, str]

# The lock that whoever calls holds, under which gpuctl acts: that of the `with` block it is in.
held_token: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar(
    "gpuctl_lock_token", default=None
)

# Seconds.
_CONNECT_LIMIT = 10

_ROUTES = {
    "status": ("GET", "/gpu/status"),
    "can-fit": ("GET", "/gpu/can-fit/{}"),
    "prepare-phase": ("POST", "/gpu/prepare-phase/{}"),
    "start": ("POST", "/gpu/service/{}/start"),
    "stop": ("POST", "/gpu/service/{}/stop"),
    "restart": ("POST", "/gpu/service/{}/restart"),
    "release-all": ("POST", "/gpu/release-all"),
    "lock acquire": ("POST", "/gpu/lock/acquire"),
    "lock release": ("POST", "/gpu/lock/release"),
}


def url() -> Optional[str]:
    """Where gpuctl is asked over HTTP; None: it is a program of this machine."""
    return os.environ.get("GPUCTL_URL") or None


def program() -> str:
    """The gpuctl that was installed with this package, else the one on the PATH."""
    beside = os.path.join(sysconfig.get_path("scripts"), "gpuctl")
    found = beside if os.access(beside, os.X_OK) else shutil.which("gpuctl")
    if found is None:
        raise Unavailable(
            "unavailable",
            69,
            "there is no gpuctl on this machine: neither beside this Python nor on the PATH",
            "install it, or set GPUCTL_URL to where `gpuctl http` is served",
        )
    return found


def _text(value: Value) -> str:
    """A value as gpuctl reads it; a float is a duration."""
    return f"{round(value * 1000)}ms" if isinstance(value, float) else str(value)


def options(given: Mapping[str, Value]) -> List[str]:
    """Options as the command line has them."""
    words: List[str] = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words.append(f"{option}={_text(value)}")
    return words


def current_token() -> Optional[str]:
    """The lock that we hold: that of the block, else the one that we were started under."""
    return held_token.get() or os.environ.get("GPUCTL_LOCK_TOKEN") or None


def answer(text: str, exit_code: int) -> Dict[str, Any]:
    """The document that gpuctl has printed; raises what it failed with."""
    try:
        document = json.loads(text)
    except ValueError:
        said = text.strip() or "nothing"
        why = f"gpuctl ended with {exit_code} and said {said[:500]!r}"
        raise Unavailable("unavailable", 69, why) from None
    if "error" in document and isinstance(document["error"], dict):
        raise error_of(document)
    return dict(document)


class _UnixConnection(http.client.HTTPConnection):
    """To a socket in the file system, as a container has it by a mount."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CONNECT_LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(base: str) -> Tuple[http.client.HTTPConnection, str]:
    """A connection that is to be made, and what stands before each path."""
    place = urlsplit(base)
    if place.scheme == "unix":
        return _UnixConnection(place.path), ""
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=_CONNECT_LIMIT)
    return connection, place.path.rstrip("/")


class Call:
    """A command under way, which another thread may call off."""

    def __init__(self) -> None:
        self._process: Optional[subprocess.Popen[str]] = None
        self._connection: Optional[http.client.HTTPConnection] = None
        self._is_off = False

    def call_off(self) -> None:
        """Ends what is under way at its next safe point, and whatever is still to come."""
        self._is_off = True
        if self._process is not None:
            self._process.terminate()
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It is closed already.

    def spawn(self, words: List[str], token: Optional[str], **more: Any) -> subprocess.Popen[str]:
        """Starts the program, under the lock that the token is of."""
        environment = {**os.environ, **({"GPUCTL_LOCK_TOKEN": token} if token else {})}
        self._process = process = subprocess.Popen(
            [program(), *words], stdout=subprocess.PIPE, env=environment, text=True, **more
        )
        if self._is_off:
            process.terminate()
        return process

    def run(
        self,
        command: str,
        argument: Optional[str] = None,
        given: Optional[Mapping[str, Value]] = None,
        token: Optional[str] = None,
    ) -> Dict[str, Any]:
        """Runs a command with the options given to its end; gives its document."""
        given, token = given or {}, token or current_token()
        base = url()
        if base is not None:
            return self._ask(base, command, argument, token, given)
        words = [*command.split(), "--json", "--quiet", *options(given), "--"]
        words += [] if argument is None else [argument]
        process = self.spawn(words, token, stdin=subprocess.DEVNULL)
        text, _ = process.communicate()
        return answer(text, process.returncode)

    def _ask(
        self,
        base: str,
        command: str,
        argument: Optional[str],
        token: Optional[str],
        given: Mapping[str, Value],
    ) -> Dict[str, Any]:
        method, path = _ROUTES[command]
        if "{}" in path:
            path = path.format(quote(str(argument), safe=""))
        elif argument is not None:
            given = {"holder": argument, **given}
        # 0 is a value, though it is equal to False.
        wanted = {k: v for k, v in given.items() if v is not None and v is not False}
        query = urlencode({k: 1 if v is True else _text(v) for k, v in wanted.items()})
        fields = {"Accept": "application/json", "Content-Length": "0"}
        if token:
            fields["Gpuctl-Lock-Token"] = token
        if os.environ.get("GPUCTL_TOKEN"):
            fields["Authorization"] = f"Bearer {os.environ['GPUCTL_TOKEN']}"
        connection, prefix = _connection(base)
        try:
            connection.connect()
            # A request lasts as long as its command, which has limits of its own.
            connection.sock.settimeout(None)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._connection = connection
            if self._is_off:
                self.call_off()
            target = prefix + path
            connection.request(method, f"{target}?{query}" if query else target, headers=fields)
            response = connection.getresponse()
            return answer(response.read().decode(), response.status)
        except (OSError, http.client.HTTPException) as error:
            why = f"{base} cannot be asked: {error}"
            raise Unavailable("unavailable", 69, why, "is GPUCTL_URL right?") from error
        finally:
            connection.close()
