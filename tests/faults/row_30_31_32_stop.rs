//! Tests of stopping a native service that resists or has spread (rows 30 to 32).

use rig::{Rig, Script, until};
use serde_json::Value;
use std::fs;

#[test]
fn row_30_what_ignores_sigterm_is_killed_after_its_stop_timeout_and_that_is_said() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--ignore-term --fork 2").set("stop_timeout", "400ms");
    let vidi = vidi.add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi");
    stop.stderr_has("vidi: not gone within 400ms, killed");
    rig.assert_no_process_of(&vidi);
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn row_30_what_takes_its_time_to_end_is_given_it() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--term-delay 700ms").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi --json").run().succeeds().progress().json();
    assert_eq!(stop["steps"][0]["note"], Value::Null);
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_31_nothing_is_left_of_what_a_service_has_forked() {
    for forks in ["--fork 3", "--double-fork", "--double-fork --fork 3"] {
        for shape in [Script::Foreground, Script::Detached, Script::Daemon, Script::File] {
            let rig = Rig::new();
            // Only the mark shows whose the orphans are, which are in sessions of their own.
            let server = format!("{forks} --worker-name orphan-{}", rig.mark("vidi"));
            let vidi = rig.native("vidi").script(shape).without_match().server(&server).add();
            rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
            assert!(rig.processes_of(&vidi).len() >= 2);
            rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
            rig.assert_no_process_of(&vidi);
            assert_eq!(rig.card.claims(), [], "{forks} {shape:?}");
        }
    }
}

#[test]
fn row_31_orphans_whose_server_has_died_are_found_too() {
    let rig = Rig::new();
    let server = format!("--double-fork --fork 2 --worker-name orphan-{}", rig.mark("vidi"));
    let vidi = rig.native("vidi").without_match().server(&server).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let is_server = |pid: &&i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("--port")
    };
    let processes = rig.processes_of(&vidi);
    let server = processes.iter().find(is_server).unwrap();
    rig.shell(&format!("kill -KILL {server}")).run().succeeds();
    until("only orphans are left", || rig.processes_of(&vidi).len() == 2);
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["used_mb"], 1000);
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_32_a_suspended_service_stops_as_any_other() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--fork 2").add();
    // The kernel accepts TCP connections in the suspended service's place.
    rig.set("services.vidi.health", vidi.url("").replace("http:", "tcp:"));
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let processes = rig.processes_of(&vidi);
    for pid in &processes {
        rig.shell(&format!("kill -STOP {pid}")).run().succeeds();
    }
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["state"], "error");
    let detail = status["services"]["vidi"]["detail"].as_str().unwrap();
    assert!(detail.contains("suspended"), "{detail}");

    // Once it is continued, the service ends by itself and need not be killed.
    let stop = rig.gpuctl("stop vidi --json").run().succeeds().progress().json();
    assert_eq!(stop["steps"][0]["note"], Value::Null);
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_32_a_service_that_is_suspended_meanwhile_is_killed_in_the_end() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--term-delay 2m").set("stop_timeout", "2s").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi").spawn();
    until("it is asked to end", || stop.stderr().contains("stopping vidi"));
    for pid in rig.processes_of(&vidi) {
        rig.shell(&format!("kill -STOP {pid}")).run().succeeds();
    }
    stop.wait().succeeds().stdout_has("stopped vidi").stderr_has("killed");
    rig.assert_no_process_of(&vidi);
}
