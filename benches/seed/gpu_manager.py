"""What gpuctl is measured against: the reading and the change of phase of the Python program that it replaces.

Written after the project's seeds, call by call and in their order: `vram_tracker.py` (phase 1, step 1.2) and
`gpu_manager_v2.py` (phase 3, step 3.1). `lifecycle_manager.py` is of phase 2, which is not among the seeds; what it must
do is in their requirements (FR-2.1 to FR-2.6), and where they give no figure the one here is in its favour, as said there.
The seeds' log lines are left out. It reads gpuctl's own configuration, so that both manage the same services.

    gpu_manager.py status | can-fit MB | prepare-phase PHASE
"""

import asyncio
import functools
import json
import os
import subprocess
import sys
import time
import tomllib

import docker
import httpx
import pynvml
import redis

MB = 1024 * 1024
SETTLE = 2  # seconds after each stop: phase 3, step 3.1, "Let VRAM be reclaimed"
RESERVE_MB = 1024  # phase 3, step 3.1, VRAM_RESERVE_MB
HEALTH_LIMIT = 10  # seconds: requirements, NFR-1
START_LIMIT = 120  # seconds: requirements, NFR-1
STOP_LIMIT = 30  # seconds: requirements, NFR-1
POLL = 0.1  # seconds between two looks at a starting service: not in the seeds; gpuctl's own shortest


class VRAMTracker:
    """Phase 1, step 1.2."""

    def __init__(self):
        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def get_status(self):
        memory = pynvml.nvmlDeviceGetMemoryInfo(self.handle)
        processes = []
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
            try:
                name = pynvml.nvmlSystemGetProcessName(process.pid)
            except pynvml.NVMLError:
                name = f"pid_{process.pid}"
            used = (process.usedGpuMemory or 0) // MB
            processes.append({"pid": process.pid, "name": name, "memory_mb": used})
        return {
            "total_mb": memory.total // MB,
            "used_mb": memory.used // MB,
            "free_mb": memory.free // MB,
            "processes": processes,
            "temperature_c": pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
            "utilization_percent": pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu,
        }

    def can_fit(self, required_mb, safety_margin_mb=RESERVE_MB):
        return self.get_status()["free_mb"] - safety_margin_mb >= required_mb


class LifecycleManager:
    """Requirements FR-2.1 to FR-2.6: Docker through its SDK, native services by shell and pkill, health over HTTP."""

    def __init__(self, services):
        self.services = services

    @functools.cached_property
    def docker(self):
        return docker.from_env()

    async def check_health(self, name):
        try:
            async with httpx.AsyncClient(timeout=HEALTH_LIMIT) as client:
                return (await client.get(self.services[name]["health"])).is_success
        except httpx.HTTPError:
            return False

    async def get_state(self, name):
        service = self.services[name]
        if service["type"] == "docker" and self.docker.containers.get(service["container"]).status != "running":
            return "stopped"
        return "ready" if await self.check_health(name) else "stopped"

    async def get_all_states(self):
        return {name: await self.get_state(name) for name in self.services}

    async def stop_service(self, name):
        service = self.services[name]
        if service["type"] == "docker":
            self.docker.containers.get(service["container"]).stop(timeout=STOP_LIMIT)
        else:
            subprocess.run(["pkill", "-f", service["match"]], check=False)

    async def ensure_service(self, name):
        if await self.check_health(name):
            return True
        service = self.services[name]
        if service["type"] == "docker":
            self.docker.containers.get(service["container"]).start()
        else:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(service["start"], shell=True, start_new_session=True, **quiet)
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if await self.check_health(name):
                return True
            await asyncio.sleep(POLL)
        return False


class GPUManagerV2:
    """Phase 3, step 3.1."""

    def __init__(self, services):
        self.redis = redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
        self.vram = VRAMTracker()
        self.lifecycle = LifecycleManager(services)
        self.services = services

    def get_available_vram(self):
        return max(0, self.vram.get_status()["free_mb"] - RESERVE_MB)

    async def prepare_for_phase(self, phase):
        needed = [name for name, service in self.services.items() if phase in service.get("phases", [])]
        running = [name for name in self.services if await self.lifecycle.check_health(name)]
        needed_vram = sum(self.services[name]["vram_mb"] for name in needed)
        to_stop = [name for name in running if name not in needed]
        to_stop.sort(key=lambda name: self.services[name].get("priority", 0))
        for name in to_stop:
            if self.get_available_vram() >= needed_vram:
                break
            await self.lifecycle.stop_service(name)
            await asyncio.sleep(SETTLE)
        success = True
        for name in needed:
            if not await self.lifecycle.check_health(name):
                success = await self.lifecycle.ensure_service(name) and success
        return success

    async def get_status(self):
        vram = self.vram.get_status()
        states = await self.lifecycle.get_all_states()
        vram["available_mb"] = self.get_available_vram()
        services = {
            name: {"state": state, **{key: self.services[name].get(key) for key in ("vram_mb", "priority", "phases")}}
            for name, state in states.items()
        }
        lock = {"holder": self.redis.get("gpu_mutex_v2"), "ttl": self.redis.ttl("gpu_mutex_v2")}
        return {"vram": vram, "services": services, "lock": lock}


def main():
    command, *arguments = sys.argv[1:]
    if command == "can-fit":
        return 0 if VRAMTracker().can_fit(int(arguments[0])) else 1
    with open(os.environ["GPUCTL_CONFIG"], "rb") as file:
        manager = GPUManagerV2(tomllib.load(file)["services"])
    if command == "status":
        print(json.dumps(asyncio.run(manager.get_status())))
        return 0
    return 0 if asyncio.run(manager.prepare_for_phase(int(arguments[0]))) else 1


if __name__ == "__main__":
    sys.exit(main())
