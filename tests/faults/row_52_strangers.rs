//! Tests of patterns that find strangers while the service is down (row 52). Careless patterns are
//! tried apart from the tester's own processes.

use rig::{Bystander, Rig, apart, state, until};
use std::time::{Duration, Instant};

/// Careless patterns; the last one is what a template says for ComfyUI.
const CARELESS: [&str; 3] = ["e", "python", r"python.*main\.py.*--listen"];

/// Starts a web application, a training run on the card and an applet, which every careless pattern
/// finds.
fn strangers(rig: &Rig) -> Vec<Bystander> {
    let main = rig.file("main.py", "import time\ntime.sleep(10000)\n");
    let train = rig.mark("train");
    let server = rig.simserver();
    let commands = [
        format!("python3 {} --listen 0.0.0.0", main.display()),
        format!(
            "bash -c \"exec -a 'python main.py --listen' {server} --name {train} --vram 3000\""
        ),
        "bash -c \"exec -a 'python3 /usr/bin/applet/main.py --listen' sleep 10000\"".to_owned(),
    ];
    let strangers: Vec<_> = commands.iter().map(|command| rig.by_hand(command)).collect();
    until("all of them are what they are", || {
        let is_there = |stranger: &Bystander| {
            let line = std::fs::read(format!("/proc/{}/cmdline", stranger.pid())).unwrap();
            // A shim that starts the program does not count: its children are found by the
            // patterns, too.
            let program = line.split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
            program.rsplit(|byte| *byte == b'/').next().unwrap_or_default().starts_with(b"python")
        };
        strangers.iter().all(is_there) && rig.card.used_mb() >= 3000
    });
    strangers
}

/// Asserts that a command that meets strangers and no process of the service ends with one of
/// `codes`, names every stranger and harms none. If the code is 78, no names are expected.
#[track_caller]
fn meets_strangers(rig: &Rig, command: &str, codes: &[i32]) {
    for pattern in CARELESS {
        rig.native("vidi").set("match", pattern).set("start_timeout", "1s").phases([1]).add();
        rig.set("phases.9", "nothing");
        let born = Instant::now();
        let mut strangers = strangers(rig);
        until("nobody could still be coming up", || born.elapsed() > Duration::from_secs(2));
        let (code, told) = rig.gpuctl(command).run().ended();
        for stranger in &mut strangers {
            assert!(stranger.is_alive(), "{command}, {pattern}: ended a stranger\n{told}");
            assert_ne!(state(stranger.pid()), Some('T'), "{command}, {pattern}: stopped one");
        }
        assert!(codes.contains(&code.unwrap_or(-1)), "{command}, {pattern}: {code:?}\n{told}");
        assert!(!rig.path("home/ran").exists(), "{command}, {pattern}: its command ran\n{told}");
        if code == Some(78) {
            continue;
        }
        for stranger in &strangers {
            let pid = stranger.pid().to_string();
            let names = |word: &str| word == pid;
            let is_named = told.split(|part: char| !part.is_ascii_digit()).any(names);
            assert!(is_named, "{command}, {pattern}: does not name {pid}\n{told}");
        }
        if code == Some(6) {
            assert!(told.contains("gpuctl adopt vidi"), "{command}, {pattern}: no way on\n{told}");
        }
    }
}

#[test]
fn row_52_stop_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "stop vidi", &[6, 78]));
}

#[test]
fn row_52_stop_by_force_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "stop vidi --force", &[6, 78]));
}

#[test]
fn row_52_the_plan_of_a_stop_names_the_strangers_that_a_pattern_finds() {
    apart(|rig| meets_strangers(rig, "stop vidi --dry-run", &[0, 6, 78]));
}

#[test]
fn row_52_release_all_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "release-all", &[6, 78]));
}

#[test]
fn row_52_release_all_by_force_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "release-all --force", &[6, 78]));
}

#[test]
fn row_52_a_phase_without_the_service_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "prepare-phase 9", &[6, 78]));
}

#[test]
fn row_52_a_phase_with_the_service_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "prepare-phase 1", &[5, 78]));
}

#[test]
fn row_52_a_lazy_phase_with_the_service_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "prepare-phase 1 --lazy", &[5, 78]));
}

#[test]
fn row_52_start_names_the_strangers_that_a_pattern_finds_and_fails() {
    apart(|rig| meets_strangers(rig, "start vidi", &[5, 78]));
}

#[test]
fn row_52_run_names_the_strangers_that_a_pattern_finds_and_runs_nothing() {
    apart(|rig| meets_strangers(rig, "run vidi -- touch ran", &[5, 78]));
}

#[test]
fn row_52_status_and_doctor_show_the_strangers_as_unproven_and_not_as_the_services() {
    apart(|rig| {
        let vidi = rig.native("vidi").set("match", "python").add();
        let mut strangers = strangers(rig);
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_ne!(status["services"]["vidi"]["state"], "ready", "{status}");
        assert_eq!(status["services"]["vidi"]["pids"], serde_json::json!([]), "{status}");
        let held = &status["vram"]["processes"][0];
        assert_eq!((&held["memory_mb"], &held["service"]), (&3000.into(), &().into()), "{status}");
        let (_, told) = rig.gpuctl("status").run().ended();
        assert!(told.contains("matches, unproven"), "{told}");
        let (_, told) = rig.gpuctl("doctor").run().ended();
        assert!(told.contains("unproven"), "{told}");
        assert!(strangers.iter_mut().all(Bystander::is_alive));
        rig.assert_no_process_of(&vidi);
    });
}

#[test]
fn row_52_strangers_survive_the_stop_of_a_service_that_runs_beside_them() {
    for by_hand in [false, true] {
        // The pattern finds the service, too.
        let name = "python main.py --listen";
        apart(|rig| {
            let pattern = r"python.*main\.py.*--listen";
            let vidi = rig.native("vidi").set("match", pattern).set("stop_timeout", "2s").add();
            let server = format!("exec bash -c \"exec -a '{name}' {}\"", vidi.command());
            rig.set("services.vidi.start", &*server);
            for force in ["", " --force"] {
                let _server = by_hand.then(|| rig.by_hand(server.trim_start_matches("exec ")));
                if by_hand {
                    until("it serves", || vidi.is_healthy());
                } else {
                    rig.gpuctl("start vidi --quiet").run().succeeds();
                }
                let mut strangers = strangers(rig);
                let (code, told) = rig.gpuctl(&format!("stop vidi{force}")).run().ended();
                let are_alive = strangers.iter_mut().all(Bystander::is_alive);
                assert!(are_alive, "by hand: {by_hand}{force}: ended a stranger\n{told}");
                assert_eq!(code, Some(0), "by hand: {by_hand}{force}\n{told}");
                rig.assert_no_process_of(&vidi);
            }
        });
    }
}

/// A young process that matches may be what it looks like: it is waited for, and nothing is started
/// beside it.
#[test]
fn row_52_start_waits_for_a_match_that_is_coming_up_and_is_proven_when_it_listens() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--late-listen --warmup 2s").add();
    let server = rig.by_hand(vidi.command());
    until("it is there", || !rig.processes_of(&vidi).is_empty());
    let (code, told) = rig.gpuctl("start vidi").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(vidi.is_healthy());
    assert_eq!(rig.processes_of(&vidi), [server.pid()]);
}

/// A terminal is a session, and a process that shares it is no part of the service.
#[test]
fn row_52_what_runs_in_the_terminal_of_a_service_by_hand_and_does_not_match_survives_its_stop() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let notes = format!("{} --name {}", rig.simserver(), rig.mark("notes"));
    let script = rig.program("terminal", &format!("{notes} & {} & wait", vidi.command()));
    let _terminal = rig.by_hand(&script.display().to_string());
    until("both run", || vidi.is_healthy() && !rig.servers_of("notes").is_empty());
    let notes = rig.servers_of("notes");
    let (code, told) = rig.gpuctl("stop vidi").run().ended();
    assert_eq!(code, Some(0), "{told}");
    rig.assert_no_process_of(&vidi);
    assert_eq!(rig.servers_of("notes"), notes, "{told}");
}
