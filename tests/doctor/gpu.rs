//! Tests that the doctor finds faults of the card, of its driver and NVML, and of variables that
//! show a service another card.

use super::{Fault, Machine, finds, verdict};
use rig::until;
use serde_json::{Value, json};

/// Each fault is planted on a machine of its own, by describing its card.
#[test]
fn what_the_driver_says_is_found_in_the_part_that_it_is_about() {
    let fault = |function: &str, code: &str| json!({"faults": {function: code}});
    let rows: [(Value, Fault); 10] = [
        (
            fault("nvmlInit_v2", "lib_rm_version_mismatch"),
            ("fail", "nvml.driver", "does not fit the loaded driver", "reboot"),
        ),
        (
            fault("nvmlInit_v2", "driver_not_loaded"),
            ("fail", "nvml.driver", "the NVIDIA driver is not loaded", "modprobe nvidia"),
        ),
        (
            fault("nvmlInit_v2", "no_permission"),
            ("fail", "nvml.driver", "denies access", "usermod -aG video"),
        ),
        (fault("nvmlInit_v2", "hang"), ("fail", "nvml.driver", "the driver hangs", "dmesg")),
        (
            fault("nvmlDeviceGetMemoryInfo*", "gpu_is_lost"),
            ("fail", "nvml.device", "the GPU is lost", "reboot"),
        ),
        (
            fault("nvmlDeviceGetMemoryInfo*", "reset_required"),
            ("fail", "nvml.device", "needs a reset", "nvidia-smi --gpu-reset"),
        ),
        (
            fault("nvmlDeviceGetMemoryInfo*", "not_supported"),
            ("fail", "nvml.device", "does not support", "gpu.total_mb"),
        ),
        (json!({"devices": []}), ("fail", "nvml.device", "the driver lists none", "nvidia-smi")),
        (
            fault("nvmlDeviceGetComputeRunningProcesses*", "not_supported"),
            ("warn", "nvml.processes", "cannot be listed", "as root or on the host"),
        ),
        (
            json!({"devices": [{"total_mb": 16000}]}),
            (
                "warn",
                "nvml.size",
                "gpu.total_mb says 24576 MB, but the card has 16000 MB",
                "set gpu.total_mb = 16000",
            ),
        ),
    ];
    for (card, expected) in rows {
        let machine = Machine::new();
        machine.rig.card.describe(&card);
        finds(machine.doctor(), &[expected]);
    }
    // Sellers count a card's memory differently, so a small difference is no fault.
    let machine = Machine::new();
    machine.rig.card.describe(&json!({"devices": [{"total_mb": 24564}]}));
    finds(machine.doctor(), &[]);
}

#[test]
fn a_library_that_is_missing_or_none_is_found() {
    let machine = Machine::new();
    let text = machine.rig.file("text.so", "not a library");
    for library in ["/nowhere/libnvidia-ml.so.1", text.to_str().unwrap()] {
        machine.rig.set("gpu.nvml_library", library);
        let fault = ("fail", "nvml.library", "cannot be loaded", "LD_LIBRARY_PATH");
        let report = finds(machine.doctor(), &[fault]);
        assert_eq!(verdict(&report, "nvml.driver"), "skip");
        assert_eq!(verdict(&report, "vram.reserve"), "pass", "gpu.total_mb stands in");
    }
}

#[test]
fn a_card_that_is_not_there_is_found() {
    let machine = Machine::new();
    for gpu in ["7", "GPU-x"] {
        let doctor = machine.rig.gpuctl("doctor --json --gpu").arg(gpu);
        let message = format!("there is no GPU {gpu}: the driver lists 1");
        finds(doctor, &[("fail", "nvml.device", &message, "gpu.index, gpu.uuid or --gpu")]);
    }
}

#[test]
fn memory_that_is_known_of_no_process_is_found() {
    let machine = Machine::new();
    machine.rig.card.describe(&json!({"process_memory_known": false}));
    finds(machine.doctor(), &[]);
    machine.rig.gpuctl("start vidi --quiet").run().succeeds();
    let fault = ("warn", "nvml.processes", "does not say what each holds", "update the driver");
    finds(machine.doctor(), &[fault]);
}

#[test]
fn processes_of_another_pid_namespace_are_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let user = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user" };
    let unshare = format!("unshare {user} --pid --fork --mount-proc");
    if rig.shell(&format!("{unshare} true >&- 2>&-; echo $?")).run().succeeds().text() != "0\n" {
        return rig::skip_or_fail("namespaces", "PID namespace");
    }
    let program = machine.vidi.command().split(' ').next().unwrap().to_owned();
    let stranger = format!("{program} --name {} --vram 3000", rig.mark("stranger"));
    let _stranger = rig.by_hand(&stranger);
    until("it holds its memory", || rig.card.used_mb() == 3000);
    finds(machine.doctor(), &[]);
    let inside = rig.shell(&format!("exec {unshare} gpuctl doctor --json"));
    finds(inside, &[("warn", "nvml.namespace", "3000 MB are in use", "--pid=host")]);
}

#[test]
fn a_variable_that_shows_another_card_is_found_wherever_it_is_set() {
    let machine = Machine::new();
    let doctor = |value: &str| machine.doctor().env("CUDA_VISIBLE_DEVICES", value);
    for good in ["0", "0,1", "GPU-51390000"] {
        finds(doctor(good), &[]);
    }
    for bad in ["1", "-1", "GPU-0", "1,2"] {
        let message = format!("CUDA_VISIBLE_DEVICES={bad} in gpuctl's environment");
        finds(doctor(bad), &[("warn", "cuda.visible_devices", &message, "unset it")]);
    }
    machine.rig.set("services.vidi.env.CUDA_VISIBLE_DEVICES", "1");
    let fix = "correct services.vidi.env or gpu.index";
    finds(machine.doctor(), &[("warn", "cuda.visible_devices vidi", "in its env", fix)]);
}
