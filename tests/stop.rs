//! Tests of `gpuctl stop`. More of them are in `services`, by the kind of service, and in `faults`,
//! rows 30 to 32.

use rig::Rig;

#[test]
fn a_service_that_ignores_sigterm_is_killed_and_that_is_told() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--ignore-term").set("stop_timeout", "1s").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi --json").run().succeeds().progress().json();
    assert_eq!(stop["steps"][0]["note"], "not gone within 1s, killed");
    rig.assert_no_process_of(&vidi);
}
