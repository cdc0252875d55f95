//! Tests of what changes between a service's readiness, or its end, and the end of the plan (rows
//! 58 and 59).

use rig::{Bystander, Draft, Rig, Service, Signal, python_or_skip, signal, state, until};

/// Asserts that a phase fails and names `quick`, which is ready at once and dies while `slow`,
/// which the phase needs too, is coming up.
#[track_caller]
fn a_death_is_told(quick: Draft) {
    let rig = quick.rig();
    let quick = quick.phases([4]).server("--exit-after 2s --exit-code 3").add();
    rig.native("slow").phases([4]).server("--warmup 5s").add();
    let (code, told) = rig.gpuctl("prepare-phase 4").run().ended();
    assert!(!quick.is_healthy());
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains("quick"), "{told}");
}

#[test]
fn row_58_a_started_process_that_dies_while_another_service_comes_up_fails_the_phase() {
    let rig = Rig::new();
    a_death_is_told(rig.native("quick"));
}

#[test]
fn row_58_a_started_unit_that_dies_while_another_service_comes_up_fails_the_phase() {
    let rig = Rig::new();
    a_death_is_told(rig.unit("quick"));
}

#[test]
fn row_58_a_started_container_that_dies_while_another_service_comes_up_fails_the_phase() {
    let Some(rig) = Rig::with_docker() else { return };
    a_death_is_told(rig.container("quick"));
}

#[test]
fn row_58_run_does_not_start_its_command_where_a_needed_service_has_died_meanwhile() {
    let rig = Rig::new();
    let quick = rig.native("quick").phases([4]).server("--exit-after 2s").add();
    rig.native("slow").phases([4]).server("--warmup 5s").add();
    let (code, told) = rig.gpuctl("run --phase 4 -- touch ran").run().ended();
    assert!(!quick.is_healthy());
    assert!(!rig.path("home/ran").exists(), "{code:?}\n{told}");
    assert_eq!(code, Some(5), "{told}");
}

#[test]
fn row_58_a_kept_service_that_dies_while_another_comes_up_fails_the_phase() {
    let rig = Rig::new();
    let quick = rig.native("quick").phases([4]).add();
    let slow = rig.native("slow").phases([4]).server("--warmup 4s").add();
    rig.gpuctl("start quick --quiet").run().succeeds();
    let prepare = rig.gpuctl("prepare-phase 4").spawn();
    until("slow is coming up", || !rig.processes_of(&slow).is_empty());
    rig.servers_of("quick").into_iter().for_each(|pid| signal(pid, Signal::KILL));
    let (code, told) = prepare.wait().ended();
    assert!(!quick.is_healthy());
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains("quick"), "{told}");
}

/// A unit without a health check only has to be alive.
#[test]
fn row_58_a_unit_that_dies_at_once_and_again_and_again_is_not_started() {
    let rig = Rig::new();
    rig.unit("vidi").without_health().restarts().server("--exit-after 200ms").add();
    let (code, told) = rig.gpuctl("start vidi").run().ended();
    assert_eq!(code, Some(5), "{told}");
}

/// Starts a supervisor that does not belong to the service and brings it back `pause` seconds after
/// each end, in a new session each time. Returns the supervisor's name and process, or `None`,
/// after reporting the skip, without Python.
fn supervised(rig: &Rig, service: &Service, pause: &str) -> Option<(String, Bystander)> {
    if !python_or_skip() {
        return None;
    }
    let name = rig.mark("keeps-it-alive");
    let command = service.command();
    let program = format!(
        "import subprocess, time\nwhile True:\n    \
         subprocess.run('{command}'.split(), stdout=subprocess.DEVNULL, start_new_session=True)\n    \
         time.sleep({pause})\n"
    );
    let supervisor = rig.by_hand(&format!("python3 {}", rig.file(&name, &program).display()));
    until("it serves", || service.is_healthy());
    Some((name, supervisor))
}

#[track_caller]
fn a_return_is_told(pause: &str, command: &str) {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).phases([1]).set("start_timeout", "5s").add();
    rig.set("phases.9", "nothing");
    let Some((name, mut supervisor)) = supervised(&rig, &vidi, pause) else { return };
    let (code, told) = rig.gpuctl(command).run().ended();
    assert_eq!(code, Some(6), "{command}, back after {pause} s\n{told}");
    assert!(told.contains(&name), "{command}: does not tell who does it\n{told}");
    assert!(supervisor.is_alive(), "{command}: ended a stranger\n{told}");
}

/// A unit with Restart=always whose command is `docker run` runs its container again like this.
#[test]
fn row_59_who_runs_a_container_again_whenever_it_has_ended_is_named() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).phases([1]).add();
    rig.set("phases.9", "nothing");
    let name = rig.mark("keeps-it-alive");
    let runs = format!("docker start --attach {} >/dev/null 2>&1", voice.mark());
    let script = rig.file(&name, &format!("while :; do {runs}; sleep 0.3; done"));
    let mut supervisor = rig.by_hand(&format!("sh {}", script.display()));
    for command in ["stop voice", "prepare-phase 9", "stop voice --force"] {
        until("it serves", || voice.is_healthy());
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(code, Some(6), "{command}\n{told}");
        assert!(told.contains(&name), "{command}: does not tell who does it\n{told}");
        assert!(supervisor.is_alive(), "{command}: ended a stranger\n{told}");
    }
    until("it serves", || voice.is_healthy());
    let (_, told) = rig.gpuctl("doctor --json").run().ended();
    assert!(told.contains(&format!("sh {}) runs it", script.display())), "{told}");
}

/// The container of a quadlet is run again by systemd like this.
#[test]
fn row_59_the_unit_that_podman_names_is_told_where_its_container_is_back() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").not_installed().add();
    let (name, card) = (voice.mark(), rig.card.folder().display());
    rig.owns_container(name);
    let words = format!(
        "create --name {name} --label PODMAN_SYSTEMD_UNIT=voice.service --network host --env SIMGPU_DIR={card} \
         --volume {card}:{card} {} /bin/simserver --name {name} --port {}",
        rig.engine().image(),
        voice.port()
    );
    rig.docker(&words.split_whitespace().collect::<Vec<_>>());
    rig.gpuctl("start voice --quiet").run().succeeds();
    let script = format!("while :; do docker start {name} >/dev/null; sleep 0.3; done");
    let _systemd = rig.by_hand(&format!("sh {}", rig.file("systemd.sh", &script).display()));
    let told = rig.gpuctl("stop voice").run().fails("stop_failed").stderr_text();
    for part in ["the unit voice.service started it again", "`systemctl stop voice.service`"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn row_59_who_only_mentions_a_stopped_service_for_a_moment_has_not_brought_it_back() {
    let rig = Rig::new();
    let voice = rig.native("voice").add();
    // Monitoring that looks for the service by its command line does so.
    let lookers = rig.file(
        "lookers",
        &format!(
            "while :; do sh -c 'sleep 0.3; : simserver --name {}'; sleep 0.3; done",
            voice.mark()
        ),
    );
    let _lookers = rig.by_hand(&format!("sh {}", lookers.display()));
    for _ in 0..6 {
        rig.gpuctl("start voice --quiet").run().succeeds();
        rig.gpuctl("stop voice --quiet").run().succeeds();
    }
}

/// Nothing is started beside a process that may be the service.
#[test]
fn row_59_what_may_be_a_service_is_left_alone_where_a_stranger_comes_to_answer_its_port() {
    let rig = Rig::new();
    let voice = rig.native("voice").set("start_timeout", "30s").add();
    let like_it = rig.by_hand(&format!("sh -c 'sleep 60; : simserver --name {}'", voice.mark()));
    let start = rig.gpuctl("start voice").spawn();
    until("it is awaited", || start.stderr().contains("waiting for voice"));
    let stranger = rig.mark("stranger");
    let words = format!("{} --name {stranger} --vram 100 --port {}", rig.simserver(), voice.port());
    let _stranger = rig.by_hand(&words);
    start.wait().fails("start_failed").stderr_has("waiting for voice");
    assert!(rig.servers_of("voice").is_empty());
    assert!(!rig.state_dir().join("logs/voice.log").exists(), "it was started");
    drop(like_it);
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_after_20_ms_is_told_and_fails_the_stop() {
    a_return_is_told("0.02", "stop vidi");
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_after_300_ms_is_told_and_fails_the_stop() {
    a_return_is_told("0.3", "stop vidi");
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_after_3_s_is_told_and_fails_the_stop() {
    a_return_is_told("3", "stop vidi");
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_is_told_and_fails_a_stop_by_force() {
    a_return_is_told("0.3", "stop vidi --force");
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_is_told_and_fails_release_all() {
    a_return_is_told("0.3", "release-all");
}

#[test]
fn row_59_a_supervisor_that_brings_a_service_back_is_told_and_fails_a_phase_without_it() {
    a_return_is_told("0.3", "prepare-phase 9");
}

/// The service that comes back takes memory that the phase needs; exit code 3 would blame a
/// stranger for that.
#[test]
fn row_59_a_supervisor_that_brings_a_service_back_is_told_by_a_phase_that_wants_its_memory() {
    for pause in ["0.02", "0.3", "3"] {
        let rig = Rig::new();
        let vidi = rig.native("vidi").vram(10000).phases([1]).add();
        rig.native("comfyui").vram(20000).phases([2]).server("--idle-vram 600 --warmup 4s").add();
        let Some((name, _supervisor)) = supervised(&rig, &vidi, pause) else { return };
        let (code, told) = rig.gpuctl("prepare-phase 2").run().ended();
        assert_eq!(code, Some(6), "back after {pause} s\n{told}");
        assert!(told.contains(&name), "does not tell who does it\n{told}");
    }
}

/// The service is native in the configuration, but in truth a unit with Restart=always runs it.
#[test]
fn row_59_a_unit_that_brings_a_native_service_back_is_told_and_fails_the_stop() {
    let rig = Rig::new();
    if !rig.systemd().has_control_groups() {
        return;
    }
    let vidi = rig.native("vidi").vram(4000).phases([1]).add();
    let unit = format!("{}.service", rig.mark("keeps-it-alive"));
    rig.systemd().install_unit(&unit, true, vidi.command());
    rig.shell(&format!("systemctl start -- {unit}")).run().succeeds();
    until("it serves", || vidi.is_healthy());
    let server = rig.servers_of("vidi")[0];
    let (code, told) = rig.gpuctl("stop vidi").run().ended();
    assert_eq!(code, Some(6), "{told}");
    assert!(told.contains(&unit), "does not tell who does it\n{told}");
    assert!(state(server).is_none() || vidi.is_healthy(), "{told}");
    rig.shell(&format!("systemctl stop -- {unit}")).run().succeeds();
}
