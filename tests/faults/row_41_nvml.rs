//! Tests of a faulty NVML (row 41): whatever it does is stated plainly, `status` still answers, and
//! nothing is said to fit that was neither measured nor declared.

use rig::{Rig, until};
use serde_json::{Value, json};

/// Asserts that `status` reports the problem in both of its forms along with everything else, and
/// that `can-fit` refuses. If the card's size is declared, both estimate, and a phase is prepared
/// with a warning.
#[track_caller]
fn is_survived(rig: &Rig, problem: &str) {
    let vidi = rig.native("vidi").vram(4000).phases([2]).add();
    rig.native("voice").vram(3000).phases([3]).add();
    let server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    // They run side by side, because each waits for a driver that hangs.
    let [status, text, can_fit] =
        ["status --json", "status", "can-fit 1"].map(|words| rig.gpuctl(words).spawn());
    let status = status.wait().succeeds().json();
    let vram = &status["vram"];
    assert_eq!(vram["source"], "estimate");
    for key in ["total_mb", "used_mb", "free_mb", "available_mb", "processes", "temperature_c"] {
        assert_eq!(vram[key], Value::Null, "{key}");
    }
    let error = vram["error"].as_str().unwrap();
    assert!(error.contains(problem), "{error}");
    assert_eq!(status["services"]["vidi"]["state"], "ready");
    assert_eq!(status["services"]["vidi"]["used_mb"], Value::Null);
    text.wait().succeeds().stdout_has("GPU (not read)").stdout_has(error);
    let refused = can_fit.wait().fails("unavailable").stderr_has(problem);
    drop(refused.stderr_has("hint: for an estimate").stderr_has("gpu.total_mb"));

    rig.set("gpu.total_mb", 24576);
    let [status, text, fits, too_large] =
        ["status --json", "status", "can-fit 19552 --json", "can-fit 19553"]
            .map(|words| rig.gpuctl(words).spawn());
    let status = status.wait().succeeds().json();
    let vram = &status["vram"];
    assert_eq!((&vram["source"], &vram["error"]), (&json!("estimate"), &json!(error)));
    assert_eq!((&vram["total_mb"], &vram["used_mb"]), (&json!(24576), &json!(4000)));
    assert_eq!((&vram["free_mb"], &vram["available_mb"]), (&json!(20576), &json!(19552)));
    let text = text.wait().succeeds().stdout_has("(estimate)");
    drop(text.stdout_has(&format!("warning: {error}")));
    let fits = fits.wait().succeeds().stderr_has(&format!("warning: {error}")).json();
    assert_eq!(fits["source"], "estimate");
    too_large.wait().exits(1).stdout_has("(estimate)").stderr_has("warning: ");

    let prepared = rig.gpuctl("prepare-phase 3 --json").run().succeeds();
    let prepared = prepared.stderr_has(&format!("warning: {error}; planning with gpu.total_mb"));
    let prepared = prepared.json();
    assert_eq!(prepared["stopped"], json!(["vidi"]));
    assert_eq!(prepared["started"], json!(["voice"]));
    let warning = prepared["warnings"][0].as_str().unwrap();
    assert!(warning.contains(problem), "{warning}");
    rig.assert_no_process_of(&vidi);
    drop(server);
}

#[test]
fn row_41_a_library_that_is_missing_is_survived() {
    let rig = Rig::new();
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    is_survived(&rig, "gpu.nvml_library cannot be loaded: /nowhere/libnvidia-ml.so.1: cannot open");
}

#[test]
fn row_41_a_library_that_is_none_is_survived() {
    let rig = Rig::new();
    let path = rig.file("text.so", "not a library");
    rig.set("gpu.nvml_library", path.to_str().unwrap());
    is_survived(&rig, &format!("gpu.nvml_library cannot be loaded: {}", path.display()));
}

#[test]
fn row_41_a_driver_that_was_updated_while_it_ran_is_survived() {
    let rig = Rig::new();
    rig.card.describe(&json!({"faults": {"nvmlInit_v2": "lib_rm_version_mismatch"}}));
    is_survived(&rig, "the NVML library does not fit the loaded driver");
}

#[test]
fn row_41_a_driver_that_is_not_loaded_is_survived() {
    let rig = Rig::new();
    rig.card.describe(&json!({"faults": {"nvmlInit_v2": "driver_not_loaded"}}));
    is_survived(&rig, "the NVIDIA driver is not loaded");
}

/// Creates a rig on which the card's memory cannot be read, for this reason, while servers take
/// memory as before.
fn memory_fault(code: &str) -> Rig {
    let rig = Rig::new();
    rig.card.describe(&json!({"faults": {"nvmlDeviceGetMemoryInfo*": code}}));
    rig
}

#[test]
fn row_41_a_gpu_that_is_lost_is_survived() {
    is_survived(&memory_fault("gpu_is_lost"), "the GPU is lost: it fell off the bus");
    let rig = Rig::new();
    rig.card.describe(&json!({"faults": {"nvmlDeviceGetHandle*": "gpu_is_lost"}}));
    is_survived(&rig, "the GPU is lost");
}

#[test]
fn row_41_a_gpu_that_needs_a_reset_is_survived() {
    is_survived(&memory_fault("reset_required"), "the GPU needs a reset");
}

#[test]
fn row_41_a_gpu_that_cannot_tell_its_memory_is_survived() {
    is_survived(&memory_fault("not_supported"), "does not support reading its memory");
}

#[test]
fn row_41_a_driver_that_permits_nothing_is_survived() {
    is_survived(&memory_fault("no_permission"), "the driver denies access");
}

#[test]
fn row_41_an_error_without_a_name_of_its_own_is_survived() {
    is_survived(&memory_fault("unknown"), "NVML: ");
}

#[test]
fn row_41_a_driver_that_hangs_at_once_is_survived() {
    let rig = Rig::new();
    rig.card.describe(&json!({"faults": {"nvmlInit_v2": "hang"}}));
    is_survived(&rig, "the driver hangs");
}

#[test]
fn row_41_a_driver_that_hangs_later_is_survived() {
    is_survived(&memory_fault("hang"), "the driver hangs");
}

#[test]
fn row_41_a_machine_without_a_gpu_is_told_as_such() {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": []}));
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["vram"]["source"], "estimate");
    let error = status["vram"]["error"].as_str().unwrap();
    assert!(error.contains("there is no GPU 0: the driver lists none"), "{error}");
    rig.gpuctl("can-fit 0").run().fails("unavailable").stderr_has("there is no GPU 0");
    rig.card.describe(&json!({"faults": {"nvmlDeviceGetHandleByIndex*": "gpu_not_found"}}));
    rig.gpuctl("can-fit 0").run().fails("unavailable").stderr_has("VRAM cannot be read");
}

#[test]
fn a_plan_without_the_cards_size_keeps_to_what_cannot_go_wrong() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).priority(1).phases([2]).add();
    let voice = rig.native("voice").vram(3000).priority(2).phases([3]).add();
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    let prepare = rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("vidi");
    drop(prepare.stderr_has("planning without knowing the card's size; set gpu.total_mb"));
    // Whether both fit is not known, so only the eager plan, which leaves nothing else running, is
    // safe.
    rig.gpuctl("prepare-phase 3 --quiet").run().succeeds();
    rig.assert_no_process_of(&vidi);
    let refused = rig.gpuctl("start vidi").run().fails("unavailable");
    drop(refused.stderr_has("cannot decide which services have to make room"));
    assert!(voice.is_healthy(), "nothing was stopped");
}

#[test]
fn row_41_processes_whose_memory_is_not_told_are_listed_without_it() {
    let rig = Rig::new();
    rig.card.describe(&json!({"process_memory_known": false}));
    let vidi = rig.native("vidi").vram(4000).phases([2]).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["vram"]["source"], "nvml");
    assert_eq!(status["vram"]["used_mb"], 4000);
    let process = &status["vram"]["processes"][0];
    assert_eq!((&process["memory_mb"], &process["service"]), (&Value::Null, &json!("vidi")));
    assert_eq!(status["services"]["vidi"]["used_mb"], Value::Null);
    assert_eq!(status["vram"]["committed_mb"], 4000);
    rig.gpuctl("can-fit 19552").run().succeeds().stdout_has("fits");
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("vidi").progress();
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_41_a_process_list_that_is_not_supported_is_told_and_the_memory_measured() {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 300, "faults": {
        "nvmlDeviceGetComputeRunningProcesses*": "not_supported",
        "nvmlDeviceGetGraphicsRunningProcesses*": "not_supported",
    }}));
    let vidi = rig.native("vidi").vram(20000).phases([2]).add();
    let voice = rig.native("voice").vram(20000).phases([3]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("vidi").progress();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["vram"]["source"], "nvml");
    assert_eq!(
        (&status["vram"]["used_mb"], &status["vram"]["processes"]),
        (&20000.into(), &Value::Null)
    );
    let error = status["vram"]["error"].as_str().unwrap();
    assert!(error.contains("the GPU's processes cannot be listed"), "{error}");
    rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("voice").progress();
    rig.assert_no_process_of(&vidi);
    rig.assert_no_out_of_memory();
    assert!(voice.is_healthy());
}

#[test]
fn a_driver_that_knows_only_the_first_version_of_the_memory_call_is_read_by_it() {
    for fault in ["function_not_found", "not_supported", "argument_version_mismatch"] {
        let rig = Rig::new();
        rig.card.describe(&json!({
            "devices": [{"total_mb": 24576, "reserved_mb": 400}],
            "faults": {"nvmlDeviceGetMemoryInfo_v2": fault},
        }));
        let vram = rig.gpuctl("status --json").run().succeeds().json()["vram"].clone();
        assert_eq!((&vram["source"], &vram["error"]), (&json!("nvml"), &Value::Null), "{fault}");
        assert_eq!((&vram["total_mb"], &vram["free_mb"]), (&json!(24576), &json!(24176)));
        rig.gpuctl("can-fit 24177 --margin 0").run().exits(1).stdout_has("does not fit");
    }
}

#[test]
fn what_the_driver_reserves_for_itself_is_not_free() {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [{"total_mb": 24576, "reserved_mb": 400}]}));
    let vram = rig.gpuctl("status --json").run().succeeds().json()["vram"].clone();
    assert_eq!((&vram["total_mb"], &vram["used_mb"]), (&json!(24576), &json!(0)));
    assert_eq!((&vram["free_mb"], &vram["available_mb"]), (&json!(24176), &json!(23152)));
    rig.gpuctl("can-fit 24176 --margin 0").run().succeeds().stdout_has("fits");
    rig.gpuctl("can-fit 24177 --margin 0").run().exits(1).stdout_has("does not fit");
}

#[test]
fn row_41_a_gpu_that_is_lost_while_memory_is_waited_for_ends_the_command_before_anything_is_started()
 {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).phases([2]).add();
    let voice = rig.native("voice").vram(20000).phases([3]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("vidi").progress();
    // gpuctl's own first two readings are good; the memory takes longer than these to come back.
    rig.card.describe(&json!({"reclaim_delay_ms": 20000, "faults": {
        "nvmlDeviceGetMemoryInfo_v2": {"error": "gpu_is_lost", "from_call": 3}}}));
    let prepare = rig.gpuctl("prepare-phase 3 --json --quiet").run().fails("unavailable").json();
    let message = prepare["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("cannot tell whether the memory is back: the GPU is lost"),
        "{message}"
    );
    assert_eq!(prepare["error"]["details"]["stopped"], json!(["vidi"]), "what was done is told");
    assert_eq!(prepare["error"]["details"]["started"], json!([]));
    rig.assert_no_process_of(&vidi);
    rig.assert_no_process_of(&voice);
}
