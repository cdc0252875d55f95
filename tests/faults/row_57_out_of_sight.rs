//! Tests of processes that may not be looked into, and of a container's processes outside of its
//! control group (row 57).

use rig::{Rig, apart, skip_or_fail, state, until, works};
use serde_json::json;

/// Asserts that a service for which another user's server answers, and holds 4000 MB, is unknown to
/// a user, and that acting on it is refused.
#[track_caller]
fn is_unknown_to_a_user(rig: &Rig) {
    let Some(user) = rig.as_a_user() else { return };
    let gpuctl = format!("{user} gpuctl");
    let vidi = rig.native("vidi").vram(4000).phases([1]).set("start_timeout", "2s").add();
    rig.set("phases.9", "nothing");
    let server = rig.by_hand(vidi.command());
    until("it serves", || vidi.is_healthy() && rig.card.used_mb() == 4000);
    let status = rig.shell(&format!("{gpuctl} status --json")).run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["state"], "unknown", "{status}");
    for command in
        ["stop vidi", "stop vidi --force", "release-all", "prepare-phase 9", "start vidi"]
    {
        let (code, told) = rig.shell(&format!("{gpuctl} {command}")).run().ended();
        assert_eq!(code, Some(77), "{command}\n{told}");
        assert!(!told.contains("nothing to do"), "{command}\n{told}");
    }
    assert_eq!(state(server.pid()), Some('S'));
}

#[test]
fn row_57_another_users_server_is_unknown_where_processes_are_hidden_and_acting_is_refused() {
    apart(|rig| {
        rig.shell("mount -o remount,hidepid=2 /proc").run().succeeds();
        is_unknown_to_a_user(rig);
    });
}

#[test]
fn row_57_another_users_server_is_unknown_and_acting_is_refused() {
    apart(|rig| is_unknown_to_a_user(rig));
}

/// Process 2 of a machine is the parent of the kernel's threads, which are nobody's; in a PID
/// namespace process 2 can be any process.
#[test]
fn row_57_the_children_of_process_2_are_seen_in_a_pid_namespace() {
    if !works("unshare", &["--pid", "--fork", "--mount-proc", "true"]) {
        return skip_or_fail("root", "PID namespace of its own");
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let until_ready = "until gpuctl status --check vidi --quiet; do sleep 0.1; done";
    let second = format!("{} >/dev/null 2>&1 & {until_ready}; echo process $$", vidi.command());
    let first = format!("sh {}; exit $?", rig.file("second.sh", &second).display());
    let first = rig.file("first.sh", &first);
    let apart = "timeout 60 unshare --pid --fork --kill-child --mount-proc";
    let told = rig.shell(&format!("{apart} sh {}", first.display())).run().succeeds().text();
    assert_eq!(told.trim(), "process 2");
}

#[test]
fn row_57_without_a_process_table_acting_is_refused_and_nothing_is_said_to_be_stopped() {
    if !works("unshare", &["--mount", "true"]) {
        return skip_or_fail("root", "mount namespace of its own");
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let server = rig.servers_of("vidi")[0];
    for command in ["stop vidi", "stop vidi --dry-run", "release-all", "start vidi"] {
        let script = format!("mount -t tmpfs tmpfs /proc && exec gpuctl {command}");
        rig.file("blind.sh", &script);
        let blind = format!("unshare --mount sh {}", rig.path("blind.sh").display());
        let (code, told) = rig.shell(&blind).run().ended();
        assert!(matches!(code, Some(69 | 77)), "{command}: {code:?}\n{told}");
        assert!(!told.contains("nothing to do"), "{command}\n{told}");
    }
    assert_eq!(rig.servers_of("vidi"), [server]);
    assert!(vidi.is_healthy());
}

/// The path `0::/` is all that is known of each process's control group, as under rootless Podman
/// or in a private cgroup namespace.
#[test]
fn row_57_processes_of_a_container_outside_its_control_group_are_its_own() {
    let Some(rig) = Rig::with_docker() else { return };
    if !works("unshare", &["--mount", "true"]) {
        return skip_or_fail("root", "mount namespace of its own");
    }
    let voice = rig.container("voice").vram(4000).phases([1]).server("--fork 2").add();
    rig.native("comfyui").vram(22000).phases([2]).add();
    rig.gpuctl("start voice --quiet").run().succeeds();
    let root = rig.file("cgroup", "0::/\n");
    let hide: String = rig
        .processes_of(&voice)
        .into_iter()
        .map(|pid| format!("mount --bind {} /proc/{pid}/cgroup && ", root.display()))
        .collect();
    let hidden = |command: &str| {
        rig.file("hidden.sh", &format!("{hide} exec gpuctl {command}"));
        rig.shell(&format!("unshare --mount sh {}", rig.path("hidden.sh").display()))
    };
    let (group, workers) = (hidden("status --json").run().succeeds().json(), 2);
    let processes = group["vram"]["processes"].as_array().unwrap();
    assert_eq!(processes.len(), workers, "{group}");
    for process in processes {
        assert_eq!(process["service"], "voice", "{group}");
    }
    assert_eq!(group["services"]["voice"]["used_mb"], json!(4000), "{group}");
    let (code, told) = hidden("prepare-phase 2").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(rig.processes_of(&voice).is_empty(), "{told}");
}
