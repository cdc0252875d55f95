"""The documents that gpuctl gives: the fields of its contract. There may be more."""

from __future__ import annotations

from typing import Dict, List, Optional, TypedDict


class GpuProcess(TypedDict):
    pid: int
    name: str
    memory_mb: Optional[int]
    service: Optional[str]


class Vram(TypedDict):
    source: str
    total_mb: Optional[int]
    used_mb: Optional[int]
    free_mb: Optional[int]
    available_mb: Optional[int]
    reserve_mb: int
    committed_mb: int
    processes: Optional[List[GpuProcess]]
    temperature_c: Optional[int]
    utilization_percent: Optional[int]
    error: Optional[str]


class ServiceStatus(TypedDict):
    state: str
    type: str
    vram_mb: int
    used_mb: Optional[int]
    priority: int
    phases: List[int]
    pids: List[int]
    jobs: Optional[int]
    peak_mb: Optional[int]
    idle_s: Optional[int]
    detail: Optional[str]


class LockStatus(TypedDict):
    backend: str
    holder: Optional[str]
    ttl: Optional[int]
    owner: Optional[str]


class Gpu(TypedDict):
    index: Optional[int]
    name: Optional[str]
    uuid: Optional[str]
    driver_version: Optional[str]


class Status(TypedDict):
    """What `status` gives. A figure that is not known is None, never 0."""

    schema: int
    gpu: Gpu
    vram: Vram
    services: Dict[str, ServiceStatus]
    lock: LockStatus


class Step(TypedDict, total=False):
    action: str
    service: Optional[str]
    memory_mb: Optional[int]
    elapsed_ms: Optional[int]
    note: Optional[str]


class Report(TypedDict):
    """What a command did, or with `dry_run` would do."""

    success: bool
    stopped: List[str]
    unloaded: List[str]
    started: List[str]
    kept: List[str]
    freed_mb: Optional[int]
    elapsed_ms: int
    steps: List[Step]
