//! Tests of `GPUCTL_LOCK_TOKEN`: the token of a lock that the caller holds, under which commands
//! act without taking another.

use rig::{Rig, on_both};
use serde_json::Value;
use std::fs;

const ACTING: [&str; 6] = [
    "start vidi",
    "stop voice",
    "prepare-phase 2",
    "release-all",
    "run vidi -- touch ran",
    "run --phase 2 -- touch ran",
];

#[test]
fn acquire_inside_a_lock_neither_waits_nor_takes_another() {
    on_both(|rig, _| {
        let told = rig.gpuctl("lock acquire me --ttl 1h --json").run().succeeds().json();
        let token = told["token"].as_str().unwrap();
        let inner = rig.gpuctl("lock acquire inner --ttl 5 --wait 1h");
        inner.env("GPUCTL_LOCK_TOKEN", token).run().succeeds().stdout(&format!("{token}\n"));
        let inner = rig.gpuctl("lock acquire inner --json").env("GPUCTL_LOCK_TOKEN", token).run();
        let inner = inner.succeeds().json();
        for field in ["token", "fence", "holder"] {
            assert_eq!(inner[field], told[field], "{field}");
        }
        let held = rig.lock_held();
        assert_eq!((&held["holder"], &held["fence"]), (&"me".into(), &told["fence"]));
        assert!(held["ttl"].as_i64().unwrap() > 3000, "{held}");
    });
}

#[test]
fn commands_under_a_token_neither_wait_nor_release() {
    on_both(|rig, _| {
        let vidi = rig.native("vidi").phases([2]).add();
        let voice = rig.native("voice").phases([3]).add();
        let token = rig.acquire("me --ttl 1h");
        let before = rig.lock_held();
        let gpuctl = |words: &str| {
            let outcome = rig.gpuctl(words).env("GPUCTL_LOCK_TOKEN", &token).run();
            let told = outcome.succeeds().text();
            let after = rig.lock_held();
            assert_eq!((&after["fence"], &after["holder"]), (&before["fence"], &before["holder"]));
            told
        };
        gpuctl("start voice --quiet --no-wait");
        assert!(voice.is_healthy());
        gpuctl("prepare-phase 2 --quiet");
        assert!(vidi.is_healthy());
        rig.assert_no_process_of(&voice);
        let shown = gpuctl("run vidi --quiet -- printenv GPUCTL_LOCK_TOKEN GPUCTL_FENCE");
        assert_eq!(shown, format!("{token}\n{}\n", before["fence"]));
        gpuctl("stop vidi --quiet");
        rig.assert_no_process_of(&vidi);
        gpuctl("release-all --quiet");
        rig.release(&token);
    });
}

/// Returns what a command must not have changed: the services that hold memory, and the lock's
/// holder.
fn world(rig: &Rig) -> (Vec<String>, Value) {
    let held = rig.card.claims().into_iter().map(|claim| claim.name).collect();
    (held, rig.gpuctl("status --json").run().succeeds().json()["lock"]["holder"].take())
}

#[test]
fn under_a_stale_token_nothing_is_done() {
    on_both(|rig, _| {
        rig.native("vidi").phases([2]).add();
        let voice = rig.native("voice").phases([3]).add();
        rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
        let stale = rig.acquire("me");
        rig.release(&stale);
        for holder in [None, Some("other")] {
            holder.map(|name| rig.acquire(&format!("{name} --ttl 1h")));
            let before = world(rig);
            for command in ACTING.iter().chain(&["lock acquire me", "lock acquire me --no-wait"]) {
                let outcome = rig.gpuctl(command).env("GPUCTL_LOCK_TOKEN", &stale).run();
                let outcome = outcome.fails("lock_lost").stderr_has("GPUCTL_LOCK_TOKEN");
                outcome.stderr_has("not held any more");
                assert_eq!(world(rig), before, "{command}");
            }
            assert!(voice.is_healthy());
            assert!(!fs::exists(rig.path("home/ran")).unwrap());
        }
        let release = rig.gpuctl("lock release").env("GPUCTL_LOCK_TOKEN", &stale).run();
        release.fails("no").stdout_has("held by other");
        let error = rig.gpuctl("start vidi --json").env("GPUCTL_LOCK_TOKEN", &stale).run();
        error.fails("lock_lost").json();
    });
}

#[test]
fn under_the_token_of_a_lock_that_ended_with_its_process_nothing_is_done() {
    on_both(|rig, _| {
        rig.native("vidi").phases([2]).add();
        rig.native("voice").phases([3]).add();
        let process = rig.by_hand("sleep 1000");
        let token = rig.acquire(&format!("me --ttl 1h --pid {}", process.pid()));
        drop(process);
        rig.assert_lock_is_free();
        for command in ACTING.iter().chain(&["lock acquire me --no-wait"]) {
            let outcome = rig.gpuctl(command).env("GPUCTL_LOCK_TOKEN", &token).run();
            outcome.fails("lock_lost").stderr_has("not held any more");
        }
        assert_eq!(rig.card.used_mb(), 0);
        assert!(!fs::exists(rig.path("home/ran")).unwrap());
        rig.acquire("other --no-wait");
    });
}

#[test]
fn what_only_looks_asks_for_no_token() {
    on_both(|rig, _| {
        rig.native("vidi").phases([2]).add();
        for command in ["status", "can-fit 100", "start vidi --dry-run", "lock status"] {
            let outcome = rig.gpuctl(command).env("GPUCTL_LOCK_TOKEN", "stale").run();
            outcome.succeeds().text();
        }
    });
}
