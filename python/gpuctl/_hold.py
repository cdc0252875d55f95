"""The GPU held for a `with` or `async with` block."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from types import TracebackType
from typing import Callable, Dict, List, Optional, Type, TypeVar

from ._call import Call, Duration, Value, answer, current_token, held_token, options, url
from ._errors import Error, Internal, LockLost

# Ends with our end of its stdin, also when that is closed because we have died.
_WAIT = 'echo "$GPUCTL_LOCK_TOKEN $GPUCTL_FENCE"; read -r _; exit 0'
# What gpuctl may take to give the lock back.
_RELEASE_LIMIT = 60

_T = TypeVar("_T")


class Held:
    """The GPU lock, held for the block. What this package is asked for within it acts under that lock."""

    def __init__(self, service: Optional[str], token: str, fence: int) -> None:
        self.service = service
        self.token = token
        # Rises with every holder: what you write to can refuse a lower one than it has seen.
        self.fence = fence

    def __repr__(self) -> str:
        return f"<gpuctl.Held service={self.service!r} fence={self.fence}>"


class Hold:
    """What `use_service` and `lock` give; to be entered once."""

    def __init__(self, service: Optional[str]) -> None:
        self._service = service
        self._call = Call()
        self._before: Optional[str] = None

    def _take(self) -> Held:
        raise NotImplementedError

    def _give_back(self) -> None:
        raise NotImplementedError

    def _begin(self, held: Held) -> Held:
        self._before = held_token.get()
        held_token.set(held.token)
        return held

    def __enter__(self) -> Held:
        return self._begin(self._take())

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        held_token.set(self._before)
        try:
            self._give_back()
        except Error:
            # What went wrong within comes first.
            if error is None:
                raise

    async def __aenter__(self) -> Held:
        taking = _aside(self._take)
        try:
            return self._begin(await asyncio.shield(taking))
        except asyncio.CancelledError:
            self._call.call_off()
            try:
                await taking
            except Error:
                pass  # It has been called off.
            else:
                await _aside(self._give_back)
            raise

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        held_token.set(self._before)
        try:
            await asyncio.shield(_aside(self._give_back))
        except Error:
            if error is None:
                raise


class Run(Hold):
    """Held by `gpuctl run` beside us: renewed for as long as the block lasts, and over when we die."""

    def __init__(self, service: str, given: List[str]) -> None:
        super().__init__(service)
        self._given = given
        self._process: Optional[subprocess.Popen[str]] = None

    def _take(self) -> Held:
        service = str(self._service)
        process = self._call.spawn(
            ["run", "--json", "--quiet", *self._given, service, "--", "sh", "-c", _WAIT],
            current_token(),
            stdin=subprocess.PIPE,
            # Ctrl-C is for us to answer, by leaving the block.
            start_new_session=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        token, _, fence = first.strip().partition(" ")
        if not fence.isdigit():
            text = first + process.stdout.read()
            answer(text, process.wait())
            raise Internal("internal", 70, f"gpuctl said {text[:500]!r}")
        self._process = process
        return Held(self._service, token, int(fence))

    def _give_back(self) -> None:
        process = self._process
        assert process is not None
        try:
            # This closes its stdin.
            text, _ = process.communicate(timeout=_RELEASE_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        if process.returncode != 0:
            if text.strip():
                answer(text, process.returncode)
            why = f"gpuctl, which held the GPU lock, ended with {process.returncode}"
            raise LockLost("lock_lost", 76, why)


class Lease(Hold):
    """Held by its token until its time is over, with the service made ready under it."""

    def __init__(
        self,
        holder: str,
        service: Optional[str],
        given: Dict[str, Value],
        of_start: Optional[Dict[str, Value]] = None,
    ) -> None:
        super().__init__(service)
        self._holder = holder
        self._given = given
        self._of_start = of_start
        self._token = ""
        self._is_ours = False
        self._until = 0.0

    def _take(self) -> Held:
        outer = current_token()
        taken = self._call.run("lock acquire", self._holder, self._given)
        self._token = taken["token"]
        # The lock of a block around this one, or of whoever has started us, is not ours to release.
        self._is_ours = self._token != outer
        self._until = time.monotonic() + taken["ttl"]
        if self._service is not None:
            try:
                self._call.run("start", self._service, self._of_start, self._token)
            except BaseException:
                with contextlib.suppress(Error):
                    self._give_back()
                raise
        return Held(self._service, self._token, taken["fence"])

    def _give_back(self) -> None:
        # A call of its own: the other one may have been called off.
        if self._is_ours and not Call().run("lock release", token=self._token)["released"]:
            late = "its time was over: ask for a longer one" if time.monotonic() > self._until else ""
            why = "the GPU lock was not held until the end of the block"
            raise LockLost("lock_lost", 76, why, late or None)


def _aside(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Does it on a thread of its own: a pool of them could be full of those who wait for us."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def end(result: Optional[_T], error: Optional[BaseException]) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(end, result, error)
        except RuntimeError:
            pass  # The loop has ended, and nobody waits any more.

    threading.Thread(target=run, daemon=True).start()
    return future


def hold_service(
    service: str,
    timeout: Optional[Duration],
    draining: Dict[str, Value],
    wait: Optional[Duration],
) -> Hold:
    """The service, made ready and held; `draining` are options for its start."""
    if url() is None:
        return Run(service, options({"wait": wait, **draining}))
    return Lease(service, service, {"ttl": timeout, "wait": wait}, draining)


def hold_lock(holder: str, ttl: Optional[Duration], wait: Optional[Duration]) -> Hold:
    """The lock alone."""
    pid = os.getpid() if url() is None else None
    return Lease(holder, None, {"ttl": ttl, "wait": wait, "pid": pid})
