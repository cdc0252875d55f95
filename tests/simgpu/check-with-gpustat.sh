#!/bin/bash
# Does libsimgpu.so read rightly with clients that are not ours? A simserver claims memory, then gpustat and nvitop, which
# load the library through nvidia-ml-py as they would load NVIDIA's, must report what was claimed.
# Needs python3 with venv, and PyPI or a mirror of it. Exits 0 if all figures agree.
set -euo pipefail
cd "$(dirname "$0")/../.."

claimed_mb=4321
desktop_mb=700
dir=$(mktemp -d)
pids=()
clean_up() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$dir"
}
trap clean_up EXIT

cargo build --quiet --package simgpu --package simserver
built=${CARGO_TARGET_DIR:-target}/debug
mkdir "$dir/card" "$dir/lib"
ln -s "$(realpath "$built/libsimgpu.so")" "$dir/lib/libnvidia-ml.so.1"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --quiet --disable-pip-version-check install gpustat nvitop

export SIMGPU_DIR=$dir/card LD_LIBRARY_PATH=$dir/lib
echo '{"devices": [{"total_mb": 24564, "reserved_mb": 350}]}' >"$SIMGPU_DIR/card.json"
start() {
    "$built/simserver" "$@" >"$dir/said" &
    pids+=($!)
    until grep -q ready "$dir/said"; do kill -0 $!; sleep 0.05; done
}
start --name model --vram "$claimed_mb"
start --name desktop --vram "$desktop_mb" --graphics

"$dir/venv/bin/gpustat" --json >"$dir/gpustat.json"
"$dir/venv/bin/python" - "$dir/gpustat.json" "$claimed_mb" "$desktop_mb" "${pids[@]}" <<'PYTHON'
import json, sys
from importlib.metadata import version
import nvitop

claimed, desktop, model_pid, desktop_pid = map(int, sys.argv[2:])
expected = {
    "used": claimed + desktop,
    "total": 24564,
    "free": 24564 - 350 - claimed - desktop,
    "processes": {model_pid: claimed, desktop_pid: desktop},
}

gpu = json.load(open(sys.argv[1]))["gpus"][0]
by_gpustat = {
    "used": gpu["memory.used"],
    "total": gpu["memory.total"],
    "processes": {process["pid"]: process["gpu_memory_usage"] for process in gpu["processes"]},
}

MB = 1 << 20
device = nvitop.Device(0)
by_nvitop = {
    "used": device.memory_used() // MB,
    "total": device.memory_total() // MB,
    "free": device.memory_free() // MB,
    "processes": {pid: process.gpu_memory() // MB for pid, process in device.processes().items()},
}

wrong = 0
for tool, seen in (("gpustat", by_gpustat), ("nvitop", by_nvitop)):
    right = {field: expected[field] for field in seen}
    print(f"{tool} {version(tool)}: {seen}: {'right' if seen == right else f'WRONG, expected {right}'}")
    wrong += seen != right
print(f"nvidia-ml-py {version('nvidia-ml-py')}")
sys.exit(wrong)
PYTHON
