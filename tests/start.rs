//! Tests of starts and of the wait until a service is ready: what counts as an answer, who may give
//! it, and how a failed start is reported.

use rig::{Rig, until};
use serde_json::json;
use std::fs;

#[test]
fn a_service_that_is_not_ready_in_time_is_left_running_and_awaited_by_the_next_start() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--warmup 2s").set("start_timeout", "1s").add();
    let start = rig.gpuctl("start vidi --quiet").run().fails("timeout");
    start.stderr_has("not ready within 1s").stderr_has("it was left running");
    let process = rig.processes_of(&vidi);
    assert_eq!(process.len(), 1);

    rig.set("services.vidi.start_timeout", "50s");
    let start = rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi");
    start.stderr_has("waiting for vidi");
    assert!(vidi.is_healthy());
    assert_eq!(rig.processes_of(&vidi), process);
}

#[test]
fn a_service_that_is_unhealthy_for_longer_than_its_start_may_take_is_started_anew() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--health 500").set("start_timeout", "300ms").add();
    rig.gpuctl("start vidi --quiet").run().fails("timeout").stderr_has("500");
    let first = rig.processes_of(&vidi);
    until("it counts as broken", || {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        status["services"]["vidi"]["state"] == "error"
    });
    rig.gpuctl("start vidi --quiet").run().fails("timeout").stderr_has("left running");
    let second = rig.processes_of(&vidi);
    assert_eq!(second.len(), 1);
    assert_ne!(first, second);
}

#[test]
fn a_service_that_dies_while_it_comes_up_is_told_without_waiting_for_the_timeout() {
    let rig = Rig::new();
    rig.native("vidi").vram(30000).server("--warmup 300ms").set("vram_mb", 100).add();
    let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start.stderr_has("exited with code 1").stderr_has("its last output was: vidi-");
    assert!(rig.card.out_of_memory().contains("30000"));
}

#[test]
fn one_that_was_left_coming_up_and_dies_is_told_by_the_start_that_awaits_it() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--warmup 1h").add();
    let server = rig.by_hand(vidi.command());
    until("it runs", || !rig.servers_of("vidi").is_empty());
    let start = rig.gpuctl("start vidi").spawn();
    until("it is awaited", || start.stderr().contains("waiting for vidi"));
    drop(server);
    start.wait().fails("start_failed").stderr_has("exited before it was ready");
}

#[test]
fn when_one_start_fails_the_others_are_not_waited_for() {
    let rig = Rig::new();
    let slow = rig.native("slow").phases([1]).server("--warmup 1h").add();
    rig.native("broken").phases([1]).set("start", "exit 3").add();
    let prepare = rig.gpuctl("prepare-phase 1 --quiet --json").run().fails("start_failed");
    let error = prepare.json();
    assert!(error["error"]["message"].as_str().unwrap().starts_with("broken: "));
    assert_eq!(error["error"]["details"]["started"], json!([]));
    rig.gpuctl("release-all").run().succeeds().stdout_has("all services").progress();
    rig.assert_no_process_of(&slow);
}

#[test]
fn independent_starts_run_side_by_side_and_so_do_stops() {
    let rig = Rig::new();
    // Each service waits for the other, so starts one after the other would never come to an end.
    for (name, other) in [("left", "right"), ("right", "left")] {
        let (own, others) = (rig.path(name), rig.path(other));
        let meet = |deed: &str| {
            let (own, others) = (own.display(), others.display());
            format!("touch {own}.{deed}; until [ -e {others}.{deed} ]; do sleep 0.05; done")
        };
        let server = rig.native(name).phases([1]).add();
        let start = rig.program(
            &format!("start-{name}"),
            &format!("{}\nexec {}", meet("start"), server.command()),
        );
        rig.set(&format!("services.{name}.start"), start.to_str().unwrap());
        let stop = rig.program(
            &format!("stop-{name}"),
            &format!("{}\npkill -f 'simserver.*{}'", meet("stop"), server.mark()),
        );
        rig.set(&format!("services.{name}.stop"), stop.to_str().unwrap());
    }
    rig.gpuctl("prepare-phase 1").run().succeeds().stdout_has("started left, right").progress();
    let release = rig.gpuctl("release-all").run().succeeds().stdout_has("stopped left, right");
    release.progress();
    assert!(rig.path("right.stop").exists());
}

#[test]
fn a_port_that_accepts_connections_is_ready_where_the_check_is_tcp() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--warmup 500ms --late-listen --health 500").add();
    rig.set("services.vidi.health", vidi.url("").replace("http:", "tcp:"));
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["state"], "ready");
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    let check = rig.gpuctl("status --check vidi").run().fails("no");
    check.stdout_has("stopped");
}

/// Takes the health checks out of the configuration.
fn without_health(rig: &Rig) {
    let text = fs::read_to_string(rig.path("gpuctl.toml")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("health"));
    rig.write_config(&lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn without_a_health_check_a_service_that_stays_alive_is_ready() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    without_health(&rig);
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    assert!(vidi.is_healthy());
}

#[test]
fn without_a_health_check_a_service_that_ends_at_once_is_not_ready() {
    let rig = Rig::new();
    rig.native("vidi").server("--exit-after 100ms --exit-code 3").add();
    without_health(&rig);
    let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start.stderr_has("exited with code 3");
}

#[test]
fn a_service_that_needs_no_start_is_not_hindered_by_a_hanging_neighbour() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let hanging = rig.native("hanging").server("--health hang").add();
    let _neighbour = rig.by_hand(hanging.command());
    until("the neighbour runs", || rig.card.used_mb() == 1000);
    rig.gpuctl("start vidi").run().succeeds().stdout_has("kept hanging").progress();
    assert!(vidi.is_healthy());
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi, hanging").progress();
    rig.assert_no_process_of(&hanging);
}

#[test]
fn a_start_that_is_refused_names_the_phase_that_would_serve() {
    let rig = Rig::new();
    rig.native("vidi").vram(8000).priority(10).phases([2]).add();
    let comfyui = rig.native("comfyui").vram(20000).priority(90).add();
    rig.set("phases.2", "analysis");
    rig.gpuctl("start comfyui --quiet").run().succeeds();
    for command in ["start vidi", "run vidi -- true"] {
        let refused = rig.gpuctl(command).run().fails("insufficient_vram");
        drop(
            refused.stderr_has("in the way: comfyui").stderr_has("`gpuctl prepare-phase analysis`"),
        );
    }
    // If no phase would serve, none is named.
    rig.set("services.vidi.vram_mb", 30000);
    let refused = rig.gpuctl("start vidi").run().fails("insufficient_vram").stderr_text();
    assert!(!refused.contains("prepare-phase"), "{refused}");
    assert!(comfyui.is_healthy());
}
