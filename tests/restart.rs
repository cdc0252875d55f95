//! Tests of `gpuctl restart`: a stop and a start in one call, which is refused before the stop if
//! the start could not follow.

use rig::{Rig, state, until};
use serde_json::json;
use std::fs;

#[test]
fn what_runs_is_stopped_and_started_again() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let [first] = rig.processes_of(&vidi)[..] else { panic!("one process") };
    let planned = rig.gpuctl("restart vidi --dry-run").run().succeeds();
    planned.stdout(
        "would stop vidi (4000 MB)\nwould reclaim memory (4000 MB)\nwould start vidi (4000 MB)\n",
    );
    assert!(state(first).is_some());
    let done = rig.gpuctl("restart vidi --json").run().succeeds().progress().json();
    assert_eq!(done["service"], "vidi");
    assert_eq!((&done["stopped"], &done["started"]), (&json!(["vidi"]), &json!(["vidi"])));
    assert!(state(first).is_none() && vidi.is_healthy());
    assert_eq!(rig.card.used_mb(), 4000);
    let runs = rig.gpuctl("history --json").run().succeeds().json()["runs"].clone();
    assert_eq!((&runs[1]["command"], &runs[1]["subject"]), (&json!("restart"), &json!("vidi")));
}

#[test]
fn what_does_not_run_is_started() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let done = rig.gpuctl("restart vidi --json").run().succeeds().progress().json();
    assert_eq!((&done["stopped"], &done["started"]), (&json!([]), &json!(["vidi"])));
    assert!(vidi.is_healthy());
}

#[test]
fn by_force_it_is_killed_at_once() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--ignore-term").set("stop_timeout", "1h").add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let [first] = rig.processes_of(&vidi)[..] else { panic!("one process") };
    let done = rig.gpuctl("restart vidi --force --json").run().succeeds().progress().json();
    assert_eq!(done["steps"][0]["action"], "kill");
    assert!(state(first).is_none() && vidi.is_healthy());
}

#[test]
fn what_could_not_be_started_again_is_not_stopped() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let before = rig.processes_of(&vidi);
    rig.set("services.vidi.vram_mb", 30000);
    rig.gpuctl("restart vidi").run().fails("insufficient_vram").stderr_has("vidi needs 30000 MB");
    rig.set("services.vidi.vram_mb", 4000);
    rig.set("services.vidi.cwd", "/nowhere");
    rig.gpuctl("restart vidi").run().fails("config").stderr_has("/nowhere");
    assert_eq!(rig.processes_of(&vidi), before);
}

#[test]
fn what_is_not_proven_is_neither_stopped_nor_started_beside() {
    let rig = Rig::new();
    let vidi = rig
        .native("vidi")
        .vram(4000)
        .without_health()
        .set("match", format!("{}.1000", rig.mark("vidi")))
        .add();
    let by_hand = rig.by_hand(&format!("bash -c 'exec -a {} sleep 1000'", vidi.mark()));
    let command = format!("/proc/{}/cmdline", by_hand.pid());
    until("it has its name", || {
        fs::read_to_string(&command).is_ok_and(|it| it.starts_with(vidi.mark()))
    });
    let refused = rig.gpuctl("restart vidi").run().fails("stop_failed");
    refused.stderr_has(&format!("gpuctl adopt vidi {}", by_hand.pid()));
    assert!(state(by_hand.pid()).is_some());
}

#[test]
fn a_container_and_a_unit_are_restarted_by_their_managers() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").vram(4000).add();
    rig.unit("vllm").vram(4000).add();
    for name in ["voice", "vllm"] {
        rig.gpuctl(&format!("start {name} --quiet")).run().succeeds();
        let pid = || {
            rig.gpuctl("status --json").run().succeeds().json()["services"][name]["pids"][0].clone()
        };
        let first = pid();
        rig.gpuctl(&format!("restart {name}")).run().succeeds().stdout_has("started").progress();
        assert_ne!(pid(), first, "{name}");
    }
}
