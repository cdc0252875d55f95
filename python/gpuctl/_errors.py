"""What gpuctl fails with: a class for each code of its contract."""

from __future__ import annotations

from typing import Any, Dict, Optional, Type


class Error(Exception):
    """A command of gpuctl has failed.

    `code` and `exit_code` say how, `message` what failed, on what and why, `hint` what to do next
    (None where there is nothing to say), `details` has facts for programs.
    """

    def __init__(
        self,
        code: str,
        exit_code: int,
        message: str,
        hint: Optional[str] = None,
        details: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(code, exit_code, message, hint, details)
        self.code = code
        self.exit_code = exit_code
        self.message = message
        self.hint = hint
        self.details: Dict[str, Any] = details or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Usage(Error):
    """What was asked for makes no sense."""


class InsufficientVram(Error):
    """It cannot fit even after stopping all that may be stopped; nothing was stopped."""


class NotFound(Error):
    """No such service, phase, container or process."""


class StartFailed(Error):
    """A service exited or crashed at its start, or something else answers its port."""


class StopFailed(Error):
    """A service is still alive, its memory did not come back, or something starts it again."""


class Unavailable(Error):
    """Docker, Redis, systemd, the NVIDIA driver, or gpuctl itself cannot be reached."""


class Internal(Error):
    """A bug in gpuctl."""


class Io(Error):
    """A file could not be read or written."""


class LockBusy(Error):
    """Somebody else holds the GPU lock, and the wait for it ran out."""


class ServiceBusy(Error):
    """A service that would have to stop is still working, and nothing was stopped."""


class LockLost(Error):
    """The GPU lock was lost: somebody else may have worked on the GPU meanwhile."""


class Permission(Error):
    """The user that gpuctl runs as may not do that, or you may not ask for it."""


class Config(Error):
    """The configuration is missing or wrong."""


class Timeout(Error):
    """A service did not become ready in time."""


class Interrupted(Error):
    """gpuctl was ended by a signal."""


_CLASSES: Dict[str, Type[Error]] = {
    "usage": Usage,
    "insufficient_vram": InsufficientVram,
    "not_found": NotFound,
    "start_failed": StartFailed,
    "stop_failed": StopFailed,
    "unavailable": Unavailable,
    "internal": Internal,
    "io": Io,
    "lock_busy": LockBusy,
    "service_busy": ServiceBusy,
    "lock_lost": LockLost,
    "permission": Permission,
    "config": Config,
    "timeout": Timeout,
    "interrupted": Interrupted,
}


def error_of(document: Dict[str, Any]) -> Error:
    """The error that a document `{"error": {...}}` of gpuctl tells of."""
    error = document["error"]
    kind = _CLASSES.get(error["code"], Error)
    return kind(
        error["code"], error["exit_code"], error["message"], error["hint"], error["details"]
    )
