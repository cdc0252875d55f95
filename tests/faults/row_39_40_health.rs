//! Tests of health checks that do not end well, and of answers from somebody else (rows 39 and 40).

use rig::{Rig, until};
use std::fs;

/// Memory in KB that is more than gpuctl ever needs, also in a debug build, and far less than a
/// body without end.
const FLAT_KB: u64 = 64 * 1024;

/// Returns the most memory that a process has had, in KB, or 0 if the process is gone.
fn peak_kb(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or(0, |line| line.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn row_39_a_health_check_that_never_ends_well_times_out_and_takes_no_memory() {
    for health in ["hang", "drip", "500", "redirect-loop", "endless"] {
        let rig = Rig::new();
        let server = format!("--health {health}");
        let vidi = rig.native("vidi").server(&server).set("start_timeout", "2s").add();
        let start = rig.gpuctl("start vidi --quiet").spawn();
        let mut peak = 0;
        // A zombie has no memory any more.
        until("it has ended", || {
            let now = peak_kb(start.pid());
            peak = peak.max(now);
            peak > 0 && now == 0
        });
        let told = start.wait().fails("timeout").stderr_has("not ready within 2s");
        if health == "hang" {
            // The report is not about the connections that were refused in the first moment.
            drop(told.stderr_has("its health check has not answered for "));
        }
        assert!(peak < FLAT_KB, "{health}: {peak} KB");
        assert_eq!(rig.processes_of(&vidi).len(), 1, "it was left running");
    }
}

#[test]
fn row_40_a_stranger_on_the_health_port_is_named_and_nothing_is_started() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).phases([2]).without_match().add();
    let stranger = rig.by_hand(vidi.command());
    until("the stranger answers", || vidi.is_healthy());
    let named = format!("process {} (simserver)", stranger.pid());

    for command in ["start vidi", "prepare-phase 2", "start vidi --dry-run"] {
        rig.gpuctl(command).run().fails("start_failed").stderr_has(&named);
    }
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["state"], "error");
    assert!(status["services"]["vidi"]["detail"].as_str().unwrap().contains(&named));
    rig.gpuctl("status --check vidi").run().fails("no").stdout_has(&named);
    assert_eq!(rig.processes_of(&vidi), [stranger.pid()]);
}

#[test]
fn row_40_a_stranger_behind_a_tcp_check_is_named_too() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().add();
    rig.set("services.vidi.health", vidi.url("").replace("http:", "tcp:"));
    let stranger = rig.by_hand(vidi.command());
    until("the stranger answers", || vidi.is_healthy());
    let start = rig.gpuctl("start vidi").run().fails("start_failed");
    start.stderr_has(&format!("process {} (simserver)", stranger.pid()));
}

#[test]
fn row_40_another_service_on_the_health_port_is_named_as_such() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().add();
    rig.native("voice").set("health", vidi.url("/health")).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let start = rig.gpuctl("start voice").run().fails("start_failed");
    start.stderr_has("service vidi answers on port");
}

#[test]
fn row_40_a_stranger_that_comes_while_the_service_does_not_listen_is_not_its_readiness() {
    let rig = Rig::new();
    // The service runs, and never listens.
    let vidi = rig.native("vidi").without_match().server("--late-listen --warmup 1h").add();
    let start = rig.gpuctl("start vidi").spawn();
    until("vidi runs", || !rig.processes_of(&vidi).is_empty());
    let port = vidi.url("").rsplit_once(':').unwrap().1.to_owned();
    let server = vidi.command().split_whitespace().next().unwrap();
    let name = rig.mark("stranger");
    let stranger = rig.by_hand(&format!("{server} --name {name} --port {port}"));
    let named = format!("process {} (simserver) answers on port {port}", stranger.pid());
    start.wait().fails("start_failed").stderr_has(&named);
}
