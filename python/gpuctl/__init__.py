"""gpuctl shares one GPU between services that do not fit on it together.

On the machine with the GPU these functions call the program; where GPUCTL_URL is set, as in a
container, they ask `gpuctl http` there: http://, https:// or unix:///path/of/a.socket, with
GPUCTL_TOKEN where one is needed.

    with gpuctl.use_service("comfyui"):
        render()

Durations are seconds or "10m", sizes MB or "20GB". What fails raises `gpuctl.Error`, or the class
of its code.
"""

from __future__ import annotations

from typing import Dict, Optional, Union, cast

from ._call import Call, Duration, Size, Value
from ._errors import (
    Config,
    Error,
    InsufficientVram,
    Internal,
    Interrupted,
    Io,
    LockBusy,
    LockLost,
    NotFound,
    Permission,
    ServiceBusy,
    StartFailed,
    StopFailed,
    Timeout,
    Unavailable,
    Usage,
)
from ._hold import Held, Hold, hold_lock, hold_service
from ._types import Gpu, GpuProcess, LockStatus, Report, ServiceStatus, Status, Step, Vram

__all__ = [
    "Config",
    "Duration",
    "Error",
    "Gpu",
    "GpuProcess",
    "Held",
    "Hold",
    "InsufficientVram",
    "Internal",
    "Interrupted",
    "Io",
    "LockBusy",
    "LockLost",
    "LockStatus",
    "NotFound",
    "Permission",
    "Report",
    "ServiceBusy",
    "ServiceStatus",
    "Size",
    "StartFailed",
    "Status",
    "Step",
    "StopFailed",
    "Timeout",
    "Unavailable",
    "Usage",
    "Vram",
    "can_fit",
    "lock",
    "prepare_phase",
    "release_all",
    "restart",
    "start",
    "status",
    "stop",
    "use_service",
]


def use_service(
    service: str,
    timeout: Optional[Duration] = None,
    *,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    wait: Optional[Duration] = None,
) -> Hold:
    """Makes a service ready and holds the GPU for it, for a `with` or `async with` block.

    The service keeps running afterwards. `wait` is how long to wait while another holds the GPU
    [lock.wait of the configuration], `drain` how long to wait for the work of services that have to
    go [the drain of each]. On the machine itself the lock lasts as long as the block does, and ends
    when this process dies. Over HTTP it ends after `timeout` [lock.ttl], and if that was before the
    end of the block, leaving it raises LockLost.
    """
    return hold_service(service, timeout, _drain(drain, no_drain), wait)


def lock(
    holder: str = "python", *, ttl: Optional[Duration] = None, wait: Optional[Duration] = None
) -> Hold:
    """Holds the GPU without a service, for a `with` or `async with` block and for `ttl` at most."""
    return hold_lock(holder, ttl, wait)


def status() -> Status:
    """Memory, processes, services and the lock, as they are now."""
    return cast(Status, Call().run("status"))


def can_fit(
    what: Union[Size, str], *, margin: Optional[Size] = None, budget: bool = False
) -> bool:
    """Whether a size or a service fits now; with `budget`, beside what running services may yet take."""
    return bool(Call().run("can-fit", str(what), {"margin": margin, "budget": budget})["fits"])


def _drain(drain: Optional[Duration], no_drain: bool) -> Dict[str, Value]:
    """How long the work of services that have to go is waited for."""
    return {"drain": drain, "no_drain": no_drain}


def _act(command: str, argument: Optional[str], **given: Value) -> Report:
    return cast(Report, Call().run(command, argument, given))


def prepare_phase(
    phase: Union[int, str],
    *,
    lazy: bool = False,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    dry_run: bool = False,
    wait: Optional[Duration] = None,
) -> Report:
    """Stops what a phase does not need, starts what it needs, and returns when that is ready.

    Here and below: the work of services that have to go is waited for, for `drain` [the drain of
    each], and cut off with `no_drain`.
    """
    draining = _drain(drain, no_drain)
    return _act("prepare-phase", str(phase), lazy=lazy, **draining, dry_run=dry_run, wait=wait)


def start(
    service: str,
    *,
    no_preempt: bool = False,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    dry_run: bool = False,
    wait: Optional[Duration] = None,
) -> Report:
    """Makes a service ready, stopping lower priorities only as far as needed."""
    draining = _drain(drain, no_drain)
    return _act("start", service, no_preempt=no_preempt, **draining, dry_run=dry_run, wait=wait)


def stop(
    service: str,
    *,
    force: bool = False,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    dry_run: bool = False,
    wait: Optional[Duration] = None,
) -> Report:
    """Stops a service and waits for its memory; `force` kills it at once."""
    draining = _drain(drain, no_drain)
    return _act("stop", service, force=force, **draining, dry_run=dry_run, wait=wait)


def restart(
    service: str,
    *,
    force: bool = False,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    dry_run: bool = False,
    wait: Optional[Duration] = None,
) -> Report:
    """Stops a service, and starts it as `start` does."""
    draining = _drain(drain, no_drain)
    return _act("restart", service, force=force, **draining, dry_run=dry_run, wait=wait)


def release_all(
    *,
    force: bool = False,
    drain: Optional[Duration] = None,
    no_drain: bool = False,
    dry_run: bool = False,
    wait: Optional[Duration] = None,
) -> Report:
    """Stops every managed service."""
    draining = _drain(drain, no_drain)
    return _act("release-all", None, force=force, **draining, dry_run=dry_run, wait=wait)
