"""Walks a pipeline on a real card with gpuctl and compares what it says and does with nvidia-smi.

Run it through tests/gpu/run. From the environment: GPUCTL_BIN, the binary to check; GPUCTL_TEST_NVML, another NVML library.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

GPUCTL = os.environ["GPUCTL_BIN"]
SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
RESERVE = 1024  # MB; gpu.reserve_mb
CONTEXT = 1024  # MB that a service declares beyond its tensor, for the CUDA context
NEAR = 64  # MB by which two readings of an idle card may differ
SAMPLE = 0.1  # s between two looks at the driver's figure
SIMILAR = 0.1  # share of a service's memory that may be missing when it is "back"

problems = []


def check(good, text):
    print(f"  {'ok  ' if good else 'FAIL'}  {text}")
    if not good:
        problems.append(text)


def smi(*query):
    """Rows of one nvidia-smi query; figures that it does not tell are None."""
    command = ["nvidia-smi", "-i", "0", *query, "--format=csv,noheader,nounits"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    rows = [[field.strip() for field in line.split(",")] for line in out.splitlines() if line.strip()]
    return [[int(field) if field.isdigit() else None for field in row] for row in rows]


def memory():
    """Total and free MB."""
    return smi("--query-gpu=memory.total,memory.free")[0]


class Sampler:
    """The driver's free memory over time, seen by one nvidia-smi that keeps running."""

    def __init__(self):
        self.samples = []  # (monotonic time, free MB)
        query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "-lms", str(int(SAMPLE * 1000))]
        # Line by line, whatever nvidia-smi does where it writes to a pipe.
        command = ["stdbuf", "-oL", "nvidia-smi", "-i", "0", *query]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.samples.append((time.monotonic(), int(line)))

    def first(self, since, at_least):
        """When, at or after `since`, at least so much was first free."""
        return next((t for t, free in list(self.samples) if t >= since and free >= at_least), None)

    def end(self):
        self.process.kill()
        self.process.wait()


class Service:
    def __init__(self, folder, name, phases, priority, mb):
        self.name, self.phases, self.priority, self.declared = name, phases, priority, mb
        self.tensor = mb - CONTEXT
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/health"
        self.command = [sys.executable, SERVER, name, str(self.port), str(self.tensor), folder]

    def toml(self):
        start = "exec " + shlex.join(self.command)
        return f"""
[services.{self.name}]
type = "native"
vram_mb = {self.declared}
priority = {self.priority}
phases = {self.phases}
health = "{self.url}"
start = {json.dumps(start)}
"""

    def pid(self):
        """Who answers, or None."""
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                body = json.load(answer)
                return body["pid"] if body["name"] == self.name else None
        except (OSError, ValueError):
            return None


class Trial:
    def __init__(self, folder):
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.env = dict(
            os.environ,
            CUDA_DEVICE_ORDER="PCI_BUS_ID",
            CUDA_VISIBLE_DEVICES="0",
            GPUCTL_GPU_CHECK=self.token,
            GPUCTL_CONFIG=os.path.join(folder, "gpuctl.toml"),
            GPUCTL_STATE_DIR=os.path.join(folder, "state"),
        )
        for name in ("REDIS_URL", "GPUCTL_LOCK_URL", "GPUCTL_LOCK_TOKEN", "GPUCTL_LOG", "RUST_LOG"):
            self.env.pop(name, None)
        self.total, self.free = memory()
        room = self.free - RESERVE
        if room < 4 * CONTEXT:
            print(f"SKIPPED: only {self.free} of {self.total} MB are free on this card")
            sys.exit(0)
        # Together more than twice what there is; no two of the larger ones fit side by side.
        shares = [("vidi", [2], 40, 0.4), ("cosyvoice", [3], 50, 0.4), ("comfyui", [4], 100, 0.8), ("ollama", [], 10, 0.65)]
        self.services = [Service(folder, *rest, int(room * share)) for *rest, share in shares]
        library = os.environ.get("GPUCTL_TEST_NVML")
        with open(os.open(self.env["GPUCTL_CONFIG"], os.O_CREAT | os.O_WRONLY, 0o600), "w") as config:
            config.write(f"[gpu]\nindex = 0\nreserve_mb = {RESERVE}\n")
            config.write(f"nvml_library = {json.dumps(library)}\n" if library else "")
            config.write(f'\n[lock]\nurl = "file://{folder}/lock"\n\n[phases]\n5 = "render"\n')
            config.write("".join(service.toml() for service in self.services))
        self.sampler = Sampler()

    def gpuctl(self, *arguments):
        """Exit code, JSON and monotonic times of begin and end."""
        begun = time.monotonic()
        command = [GPUCTL, "--json", *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        ended = time.monotonic()
        if done.returncode not in (0, 1):
            print(done.stdout, done.stderr, sep="\n")
        try:
            return done.returncode, json.loads(done.stdout), begun, ended
        except ValueError:
            sys.exit(f"gpuctl {' '.join(arguments)} did not print JSON: {done.stdout!r} {done.stderr!r}")

    def ooms(self):
        try:
            with open(os.path.join(self.folder, "oom")) as file:
                return file.read().split()
        except FileNotFoundError:
            return []

    def without_gpuctl(self):
        print("\nControl: all four started by hand")
        running = []
        for service in self.services:
            log = open(os.path.join(self.folder, f"{service.name}.log"), "w+")
            process = subprocess.Popen(service.command, env=self.env, stdout=log, stderr=log)
            running.append(process)
            while process.poll() is None and service.pid() is None:
                time.sleep(0.1)
            log.seek(0)
            print(f"  {service.name} ({service.declared} MB): {(log.read().strip().splitlines() or ['?'])[-1][:150]}")
        died = [process.returncode for process in running if process.poll() is not None]
        check(died and len(died) == len(self.ooms()), f"{len(died)} of {len(running)} servers ran out of memory")
        for process in running:
            process.terminate()
            process.wait()
        deadline = time.monotonic() + 30
        while memory()[1] < self.free - NEAR and time.monotonic() < deadline:
            time.sleep(0.2)
        check(memory()[1] >= self.free - NEAR, "their memory is back")
        open(os.path.join(self.folder, "oom"), "w").close()

    def act(self, *arguments):
        """Runs an acting command and looks at its reclaim wait against the driver's own figure."""
        print(f"\n$ gpuctl {' '.join(arguments)}")
        code, report, begun, ended = self.gpuctl(*arguments)
        check(code == 0 and report.get("success"), f"exit code {code} after {ended - begun:.2f} s")
        if code != 0:
            return
        for step in report["steps"]:
            print(f"        {step['action']} {step.get('service') or 'memory'}: {step['elapsed_ms']} ms")
        victims = [service for service in self.services if service.name in report["stopped"]]
        took = {step["action"]: step["elapsed_ms"] / 1000 for step in report["steps"]}
        if not victims:
            return
        # What was stopped is back when what was free at the start is free again: one phase runs at a time.
        # The steps' times count from the beginning of the work, which is `elapsed_ms` before the end.
        work = ended - report["elapsed_ms"] / 1000
        waited_until = work + took.get("stop", 0) + took.get("reclaim", 0)
        back = self.free - int(SIMILAR * sum(service.tensor for service in victims))
        time.sleep(2 * SAMPLE)
        seen = self.sampler.first(work, back)
        check(seen is not None, "nvidia-smi saw the memory come back")
        if seen is None:
            return
        print(f"        back: nvidia-smi {seen - work:.2f} s, gpuctl {waited_until - work:.2f} s after the work began")
        check(seen - waited_until < 3 * SAMPLE, "the wait ended no earlier than the memory was back")
        check(waited_until - seen < 2, "and not long after")
        freed, held = report["freed_mb"], sum(service.tensor for service in victims)
        check(freed is not None and held - NEAR <= freed <= held + CONTEXT, f"freed_mb {freed}, the tensors held {held}")

    def compare(self, *ready):
        """What `gpuctl status` says against nvidia-smi and against what is known to run."""
        code, status, begun, ended = self.gpuctl("status")
        total, free = memory()
        listed = dict(row for row in smi("--query-compute-apps=pid,used_memory") if len(row) == 2 and row[0] is not None)
        vram = status["vram"]
        print(f"  gpuctl status ({ended - begun:.2f} s): {vram['total_mb']} MB, {vram['used_mb']} used, {vram['free_mb']} free")
        print(f"  nvidia-smi:             {total} MB, {total - free} used or reserved, {free} free; processes {listed}")
        check(code == 0 and vram["source"] == "nvml" and not vram["error"], "status reads the card through NVML")
        check(abs(vram["total_mb"] - total) <= 1, "total agrees")
        check(abs(vram["free_mb"] - free) <= NEAR, "free agrees")
        check(abs(vram["used_mb"] - (total - free)) <= NEAR, "used agrees")
        told = {process["pid"]: process for process in vram["processes"] or []}
        check(
            all(pid in told and near(told[pid]["memory_mb"], mb) for pid, mb in listed.items()),
            "every process that nvidia-smi lists is listed with its memory",
        )
        states = {name: service["state"] for name, service in status["services"].items()}
        expected = {service.name: "ready" if service.name in ready else "stopped" for service in self.services}
        check(states == expected, f"states: {', '.join(f'{name} {state}' for name, state in states.items())}")
        for service in self.services:
            if service.name not in ready:
                continue
            pid, said = service.pid(), status["services"][service.name]
            check(pid in said["pids"], f"{service.name}: PID {pid} is told")
            if pid is None:
                continue
            if pid not in listed:
                print(f"  NOTE: the driver does not list PID {pid} here (a PID namespace?); its memory is not compared")
                continue
            used = said["used_mb"]
            check(told[pid]["service"] == service.name, f"{service.name}: the GPU process is known as its own")
            in_bounds = used is not None and service.tensor <= used <= service.declared
            check(in_bounds or listed[pid] is None, f"{service.name}: {used} MB used, tensor {service.tensor}, declared {service.declared}")

    def can_fit(self):
        free = memory()[1]
        fits, _, *_ = self.gpuctl("can-fit", str(free - RESERVE - NEAR))
        not_fits, _, *_ = self.gpuctl("can-fit", str(free - RESERVE + NEAR))
        check((fits, not_fits) == (0, 1), f"can-fit turns from 0 to 1 at {free - RESERVE} MB, within {NEAR}")

    def clean_up(self):
        """Ends what is left by PID, if it still bears our token: a PID may have been reused."""
        self.sampler.end()
        try:
            with open(os.path.join(self.folder, "pids")) as file:
                pids = file.read().split()
        except FileNotFoundError:
            pids = []
        for pid in pids:
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    if self.token.encode() in environ.read():
                        os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass


def near(a, b):
    return a is None or b is None or abs(a - b) <= NEAR


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    version = subprocess.run([GPUCTL, "--version"], capture_output=True, text=True)
    folder = tempfile.mkdtemp(prefix="gpuctl-gpu-")
    trial = None
    try:
        trial = Trial(folder)
        print(f"{version.stdout.strip()} on {name.stdout.strip()}: {trial.total} MB, {trial.free} free")
        trial.without_gpuctl()
        trial.act("start", "ollama")
        trial.compare("ollama")
        for phase, service in [("2", "vidi"), ("3", "cosyvoice"), ("4", "comfyui")]:
            trial.act("prepare-phase", phase)
            trial.compare(service)
        trial.can_fit()
        trial.act("release-all")
        trial.compare()
        print("\nResult")
        check(not trial.ooms(), f"no server ran out of memory under gpuctl: {trial.ooms() or 'none'}")
    finally:
        if trial:
            trial.clean_up()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(problems)} problem(s)" if problems else "all good")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
