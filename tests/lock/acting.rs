//! Tests that commands that act do so under the lock, in the name of what they act for, and give
//! the lock back whatever happens.

use rig::{Redis, Rig, Service, Signal, on_both, until};
use serde_json::{Value, json};
use std::fs;

/// Flag of a server that does not become ready within any test.
const SLOW: &str = "--warmup 1h";

struct World {
    vidi: Service,
    voice: Service,
}

/// Adds vidi, which is stopped, and voice, which is ready.
fn world(rig: &Rig) -> World {
    let vidi = rig.native("vidi").phases([2]).add();
    let voice = rig.native("voice").phases([3]).add();
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    World { vidi, voice }
}

/// A command, and a check of whether it is done.
type Act = (&'static str, fn(&Rig, &World) -> bool);

const ACTS: [Act; 4] = [
    ("start vidi", |_, world| world.vidi.is_healthy()),
    ("prepare-phase 2", |rig, world| {
        world.vidi.is_healthy() && rig.processes_of(&world.voice).is_empty()
    }),
    ("stop vidi", |rig, world| rig.processes_of(&world.vidi).is_empty()),
    ("release-all", |rig, world| {
        [&world.vidi, &world.voice].iter().all(|service| rig.processes_of(service).is_empty())
    }),
];

#[test]
fn acting_commands_wait_for_the_holder_and_act_then() {
    on_both(|rig, _| {
        let world = world(rig);
        for (command, is_done) in ACTS {
            if is_done(rig, &world) {
                // The command needs something to do.
                rig.gpuctl("start voice --quiet").run().succeeds().text();
            }
            assert!(!is_done(rig, &world), "{command}");
            let token = rig.acquire("somebody --ttl 1h");
            let acting = rig.gpuctl(&format!("{command} --wait 50")).spawn();
            let waits = "waiting for the GPU lock, held by somebody";
            until("it waits", || acting.stderr().contains(waits));
            assert!(!is_done(rig, &world), "{command}");
            rig.release(&token);
            acting.wait().succeeds().progress().text();
            assert!(is_done(rig, &world), "{command}");
            rig.assert_lock_was_given_back();
        }
    });
}

#[test]
fn acting_commands_whose_wait_runs_out_do_nothing_and_name_the_holder() {
    on_both(|rig, _| {
        let world = world(rig);
        rig.acquire("somebody --ttl 1h");
        for command in ["start vidi", "stop voice", "prepare-phase 2", "release-all"] {
            for patience in ["--wait 200ms", "--no-wait", "--wait 0"] {
                let acting = rig.gpuctl(&format!("{command} {patience}")).run();
                acting.fails("lock_busy").stderr_has("held by somebody").stderr_has("hint:");
                let acting = rig.gpuctl(&format!("{command} {patience} --quiet --json")).run();
                let error = acting.fails("lock_busy").json();
                assert_eq!(error["error"]["details"]["holder"], "somebody");
            }
            rig.set("lock.wait", "100ms");
            let acting = rig.gpuctl(command).run();
            acting.fails("lock_busy").stderr_has("the wait of 100ms is over");
        }
        assert!(world.voice.is_healthy());
        rig.assert_no_process_of(&world.vidi);
        assert_eq!(rig.lock_held()["holder"], "somebody");
    });
}

#[test]
fn a_dry_run_takes_no_lock_and_minds_no_holder() {
    let commands = ["start vidi", "stop voice", "prepare-phase 2", "release-all"];
    on_both(|rig, _| {
        world(rig);
        fs::remove_dir_all(rig.path("run")).unwrap();
        for command in commands {
            rig.gpuctl(&format!("{command} --dry-run")).run().succeeds().stdout_has("would");
        }
        // A dry run leaves no trace of the lock either.
        assert!(!rig.path("run").exists());
        let token = rig.acquire("somebody --ttl 1h");
        for command in commands {
            rig.gpuctl(&format!("{command} --dry-run")).run().succeeds().stdout_has("would");
        }
        rig.release(&token);
    });
}

/// Returns the lock's value in Redis while a command acts: the holder's name and the record.
fn value(redis: &Redis) -> Option<(String, Value)> {
    let value = redis.holder()?;
    let (holder, record) = value.split_once("|gpuctl1|").unwrap();
    Some((holder.to_owned(), serde_json::from_str(record).unwrap()))
}

#[test]
fn while_a_command_acts_the_lock_names_what_it_acts_for() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    for (name, phases) in [("comfyui", vec![4]), ("vidi", vec![2, 3]), ("voice", vec![2, 3])] {
        let phases: Vec<i64> = phases;
        rig.native(name).set("phases", phases).server(SLOW).add();
    }
    rig.set("phases.2", "speech");
    for (command, holder) in [
        ("start comfyui", "comfyui"),
        ("prepare-phase 4", "comfyui"),
        ("prepare-phase 2", "speech"),
        ("prepare-phase speech", "speech"),
        ("prepare-phase 3", "phase 3"),
        ("run comfyui -- true", "comfyui"),
    ] {
        let acting = rig.gpuctl(command).spawn();
        until("it acts", || redis.holder().is_some());
        let left = redis.ttl_ms();
        assert!((1..=30_000).contains(&left), "{left}");
        let (shown, record) = value(&redis).unwrap();
        assert_eq!(shown, holder, "{command}");
        assert_eq!(record["pid"], acting.pid());
        assert_eq!(record["token"].as_str().unwrap().len(), 32);
        for number in ["fence", "pid_start", "since"] {
            assert!(record[number].as_u64().unwrap() > 0, "{number} in {record}");
        }
        for text in ["host", "boot"] {
            assert!(!record[text].as_str().unwrap().is_empty(), "{text} in {record}");
        }
        acting.signal(Signal::INT);
        acting.wait().exits(130).stderr_has("interrupted by signal 2");
        assert_eq!(redis.holder(), None, "{command}");
    }
}

#[test]
fn a_stop_of_one_service_and_of_all_is_shown_too() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    let stubborn = |name: &str| {
        rig.native(name).server("--ignore-term").set("stop_timeout", "1h").add();
        rig.gpuctl(&format!("start {name} --quiet")).run().succeeds();
    };
    stubborn("vidi");
    stubborn("voice");
    for (command, holder) in [("stop vidi", "vidi"), ("release-all", "release-all")] {
        let acting = rig.gpuctl(command).spawn();
        until("it acts", || redis.holder().is_some());
        assert_eq!(value(&redis).unwrap().0, holder);
        acting.signal(Signal::TERM);
        acting.wait().exits(143).stderr_has("interrupted by signal 15");
        assert_eq!(redis.holder(), None);
    }
}

#[test]
fn the_lock_is_given_back_when_the_command_fails() {
    on_both(|rig, _| {
        rig.native("vidi").vram(30000).add();
        rig.unit("missing").not_installed().add();
        rig.native("broken").server("--exit-after 0s --exit-code 3").add();
        rig.native("slow").server(SLOW).set("start_timeout", "300ms").phases([2]).add();
        for (command, code) in [
            ("start vidi", "insufficient_vram"),
            ("start missing", "not_found"),
            ("start nobody", "not_found"),
            ("prepare-phase 9", "not_found"),
            ("start broken", "start_failed"),
            ("run broken -- true", "start_failed"),
            ("start slow", "timeout"),
            ("prepare-phase 2", "timeout"),
        ] {
            rig.gpuctl(command).run().fails(code).stderr_has("gpuctl:");
            rig.assert_lock_was_given_back();
            rig.release(&rig.acquire("me --no-wait"));
        }
    });
}

#[test]
fn the_lock_is_given_back_when_the_command_is_interrupted() {
    on_both(|rig, _| {
        rig.native("slow").server(SLOW).phases([2]).add();
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let acting = rig.gpuctl("prepare-phase 2").spawn();
            until("it acts", || rig.card.used_mb() == 1000 && !rig.lock_is_free());
            acting.signal(signal);
            acting.wait().exits(code).stderr_has("interrupted by signal");
            rig.assert_lock_was_given_back();
            rig.release(&rig.acquire("me --no-wait"));
        }
    });
}

fn state(rig: &Rig, service: &str) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"][service]["state"].take()
}

#[test]
fn a_ready_service_whose_lock_is_held_is_busy() {
    on_both(|rig, _| {
        let World { vidi, .. } = world(rig);
        let check = |code: &str| {
            let check = rig.gpuctl("status --check vidi").run();
            if code.is_empty() { check.succeeds() } else { check.fails(code) }.text()
        };
        rig.program("work", "touch works; exec sleep 1000");
        let work = rig.gpuctl("run vidi --quiet -- work").spawn();
        until("its command runs", || fs::exists(rig.path("home/works")).unwrap());
        assert!(vidi.is_healthy());
        assert_eq!(state(rig, "vidi"), "busy");
        assert!(check("").contains("busy"));
        assert_eq!(state(rig, "voice"), "ready");
        work.signal(Signal::TERM);
        work.wait().exits(143);
        assert_eq!(state(rig, "vidi"), "ready");

        // A service is also busy if any caller has taken the lock in its name.
        let token = rig.acquire("vidi --ttl 1h");
        assert_eq!((state(rig, "vidi"), state(rig, "voice")), (json!("busy"), json!("ready")));
        rig.release(&token);

        // The lock says nothing about a service that does not answer.
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
        let token = rig.acquire("vidi --ttl 1h");
        assert_eq!(state(rig, "vidi"), "stopped");
        check("no");
        rig.release(&token);
    });
}

#[test]
fn all_services_of_a_phase_are_busy_while_it_is_held() {
    on_both(|rig, _| {
        rig.native("vidi").phases([2]).add();
        rig.native("voice").phases([2]).add();
        rig.set("phases.2", "speech");
        rig.program("work", "touch works; exec sleep 1000");
        let work = rig.gpuctl("run --phase speech --quiet -- work").spawn();
        until("its command runs", || fs::exists(rig.path("home/works")).unwrap());
        assert_eq!((state(rig, "vidi"), state(rig, "voice")), (json!("busy"), json!("busy")));
        let status = rig.gpuctl("status --check vidi --check voice --json").run().succeeds().json();
        assert_eq!(status["lock"]["holder"], "speech");
        work.signal(Signal::TERM);
        work.wait().exits(143);
    });
}

#[test]
fn an_older_client_that_holds_the_lock_in_a_services_name_makes_it_busy() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    world(&rig);
    assert!(redis.legacy_acquire("voice"));
    assert_eq!(state(&rig, "voice"), "busy");
    rig.gpuctl("status --check voice").run().succeeds().stdout_has("busy");
    redis.legacy_release("voice");
    assert_eq!(state(&rig, "voice"), "ready");
}
