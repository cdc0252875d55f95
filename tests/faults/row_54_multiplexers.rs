//! Tests of a tmux or screen server that a service's start script starts and others use later (row
//! 54).

use rig::{Rig, Service, skip_or_fail, state, until, works};

/// Returns the command `tmux` for a server of the rig's own.
fn tmux(rig: &Rig) -> String {
    format!("tmux -S {}", rig.path("run/tmux").display())
}

#[track_caller]
fn has(program: &str, version: &str) -> bool {
    let is_there = works(program, &[version]);
    if !is_there {
        skip_or_fail(program, program);
    }
    is_there
}

/// Adds a service that its start command runs in tmux, in a session of the service's name.
fn in_tmux(rig: &Rig, name: &str) -> Service {
    let service = rig.native(name).vram(4000).set("start_timeout", "60s").add();
    let start = format!("{} new-session -d -s {name} 'exec {}'", tmux(rig), service.command());
    rig.set(&format!("services.{name}.start"), start);
    service
}

fn only(pids: Vec<i32>) -> i32 {
    assert_eq!(pids.len(), 1, "{pids:?}");
    pids[0]
}

#[test]
fn row_54_stop_ends_the_services_pane_of_tmux_and_nobody_elses() {
    if !has("tmux", "-V") {
        return;
    }
    for force in ["", " --force"] {
        let rig = Rig::new();
        let (tmux, simserver) = (tmux(&rig), rig.simserver());
        let comfyui = in_tmux(&rig, "comfyui");
        rig.gpuctl("start comfyui").run().succeeds().stdout_has("started comfyui").progress();
        let training = format!("exec {simserver} --vram 3000 --name {}", rig.mark("training"));
        let notes = format!("exec {simserver} --name {}", rig.mark("notes"));
        rig.shell(&format!("{tmux} new-session -d -s training '{training}'")).run().succeeds();
        rig.shell(&format!("{tmux} split-window -d -t comfyui '{notes}'")).run().succeeds();
        until("they work", || rig.card.used_mb() == 7000 && !rig.servers_of("notes").is_empty());
        let others = [only(rig.servers_of("training")), only(rig.servers_of("notes"))];
        let pid = rig.shell(&format!("{tmux} display-message -p '#{{pid}}'")).run().succeeds();
        let server: i32 = pid.text().trim().parse().unwrap();

        let (code, told) = rig.gpuctl(&format!("stop comfyui{force}")).run().ended();
        for pid in others.into_iter().chain([server]) {
            assert!(state(pid).is_some(), "{pid}{force} was ended: {code:?}\n{told}");
        }
        assert_eq!(code, Some(0), "{told}");
        assert_eq!(rig.servers_of("comfyui"), [0; 0]);
        assert!(!comfyui.is_healthy());
        rig.shell(&format!("{tmux} has-session -t training")).run().succeeds();

        // What the others do there does not belong to the service.
        rig.gpuctl("stop comfyui").run().succeeds().stdout_has("nothing to do").progress();
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["comfyui"]["state"], "stopped", "{status}");
        rig.shell(&format!("{tmux} kill-server")).run().succeeds();
    }
}

/// The pane of the second service inherits the mark of the first, because the tmux server has the
/// environment of the caller that started it.
#[test]
fn row_54_two_services_in_one_tmux_are_told_apart() {
    if !has("tmux", "-V") {
        return;
    }
    let rig = Rig::new();
    let (comfyui, vidi) = (in_tmux(&rig, "comfyui"), in_tmux(&rig, "vidi"));
    for name in ["comfyui", "vidi"] {
        let (code, told) = rig.gpuctl(&format!("start {name}")).run().ended();
        assert_eq!(code, Some(0), "{name}\n{told}");
    }
    let status = rig.gpuctl("status --json").run().succeeds().json();
    for name in ["comfyui", "vidi"] {
        let pid = only(rig.servers_of(name));
        assert_eq!(status["services"][name]["pids"], serde_json::json!([pid]), "{status}");
    }
    rig.gpuctl("stop comfyui").run().succeeds().stdout_has("stopped comfyui").progress();
    assert!(vidi.is_healthy() && !comfyui.is_healthy());
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    assert!(!vidi.is_healthy());
}

#[test]
fn row_54_stop_ends_the_services_window_of_screen_and_nobody_elses() {
    if !has("screen", "--version") {
        return;
    }
    let rig = Rig::new();
    let (simserver, session) = (rig.simserver(), rig.mark("work"));
    let folder = rig.path("run/screen");
    rig.shell(&format!("mkdir -m 700 {}", folder.display())).run().succeeds();
    let screen = format!("SCREENDIR={} screen", folder.display());
    let comfyui = rig.native("comfyui").vram(4000).set("start_timeout", "60s").add();
    rig.set("services.comfyui.start", format!("{screen} -dmS {session} {}", comfyui.command()));
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("started comfyui").progress();
    let training = format!("{simserver} --vram 3000 --name {}", rig.mark("training"));
    rig.shell(&format!("{screen} -S {session} -X screen {training}")).run().succeeds();
    until("it trains", || rig.card.used_mb() == 7000);
    let training = only(rig.servers_of("training"));

    let (code, told) = rig.gpuctl("stop comfyui").run().ended();
    assert!(state(training).is_some(), "the training was ended: {code:?}\n{told}");
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(rig.servers_of("comfyui"), [0; 0]);
    let sessions = rig.shell(&format!("{screen} -ls || true")).run().succeeds();
    sessions.stdout_has(&session);
    rig.shell(&format!("{screen} -S {session} -X quit")).run().succeeds();
}
