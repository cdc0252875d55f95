//! Tests of `gpuctl lock acquire`, `release` and `status`, in both of the lock's places.

use rig::{LOCK_KEY, Rig, on_both, unconfigured_or_skip, until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{SystemTime, UNIX_EPOCH};

fn hostname() -> String {
    rustix::system::uname().nodename().to_str().unwrap().to_owned()
}

/// Returns the PID of a process that has ended.
fn pid_of_nobody() -> u32 {
    let mut child = rig::command("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn acquire_prints_the_token_alone() {
    on_both(|rig, _| {
        let printed = rig.gpuctl("lock acquire me").run().succeeds().text();
        let token = printed.strip_suffix('\n').unwrap();
        assert_eq!(token.len(), 32, "{token}");
        assert!(token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{token}");
        rig.release(token);
        assert_ne!(rig.acquire("me"), token);
    });
}

#[test]
fn acquire_in_json_gives_token_fence_holder_and_ttl() {
    on_both(|rig, _| {
        let told = rig.gpuctl("lock acquire me --ttl 1h30m --json").run().succeeds().json();
        let keys: Vec<&String> = told.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["token", "fence", "holder", "ttl"]);
        assert_eq!((&told["holder"], &told["ttl"]), (&"me".into(), &5400.into()));
        let held = rig.lock_held();
        assert_eq!((&held["holder"], &held["fence"]), (&"me".into(), &told["fence"]));
        assert!((5340..=5400).contains(&held["ttl"].as_i64().unwrap()), "{held}");
        rig.release(told["token"].as_str().unwrap());
    });
}

#[test]
fn time_and_holder_have_defaults() {
    on_both(|rig, _| {
        let told = rig.gpuctl("lock acquire --json").run().succeeds().json();
        assert_eq!((&told["holder"], &told["ttl"]), (&"manual".into(), &600.into()));
        rig.release(told["token"].as_str().unwrap());
        rig.set("lock.ttl", "2m");
        let told = rig.gpuctl("lock acquire --json").run().succeeds().json();
        assert_eq!(told["ttl"], 120);
        assert!((60..=120).contains(&rig.lock_held()["ttl"].as_i64().unwrap()));
    });
}

#[test]
fn a_lock_ends_with_its_time_and_a_waiter_gets_it_then() {
    on_both(|rig, _| {
        let old = rig.acquire("old --ttl 1");
        until("its time is over", || rig.lock_is_free());
        let release = rig.gpuctl(&format!("lock release --token {old} --json")).run();
        assert_eq!(release.succeeds().json(), json!({"released": false}));

        rig.acquire("old --ttl 1");
        rig.acquire("next --wait 30");
        assert_eq!(rig.lock_held()["holder"], "next");
    });
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_and_takes_nothing() {
    on_both(|rig, _| {
        for (words, why) in [
            ("--wait 5 --no-wait", "cannot be used together"),
            ("--ttl soon", "--ttl: \"soon\" is not a duration"),
            ("--ttl 5x", "is not a duration"),
            ("--ttl=-5", "is not a duration"),
            ("--ttl 99999999999999999999", "is not a duration"),
            ("--ttl 0", "a lock without time is no lock"),
            ("--wait forever", "--wait: \"forever\" is not a duration"),
            ("--wait 8d", "is not a duration"),
            ("--pid me", "\"me\" is not a whole number"),
        ] {
            let acquire = rig.gpuctl(&format!("lock acquire me {words}")).run();
            acquire.fails("usage").stderr_has(why);
        }
        rig.assert_lock_is_free();
    });
}

#[test]
fn a_holder_that_cannot_be_shown_is_refused() {
    on_both(|rig, _| {
        for name in [
            "a|b",
            "me|gpuctl1|{}",
            "\"token\":\"x\"",
            "a\nb",
            "\u{1b}[31mred",
            "\u{7f}",
            "\u{9b}0m",
            "",
        ] {
            let acquire = rig.gpuctl("lock acquire").arg(name).run();
            acquire.fails("usage").stderr_has("holder").stderr_has("control characters");
        }
        rig.assert_lock_is_free();
        rig.gpuctl("lock acquire --quiet").arg("Zoë's job, night shift").run().succeeds().text();
        assert_eq!(rig.lock_held()["holder"], "Zoë's job, night shift");
    });
}

#[test]
fn who_does_not_wait_is_told_the_holder() {
    on_both(|rig, _| {
        rig.acquire("me --ttl 60");
        for patience in ["--no-wait", "--wait 0", "--wait 0s"] {
            let told = rig.gpuctl(&format!("lock acquire other {patience} --json")).run();
            let error = told.fails("lock_busy").json();
            assert_eq!(error["error"]["details"]["holder"], "me");
            let told = rig.gpuctl(&format!("lock acquire other {patience}")).run();
            told.fails("lock_busy").stderr_has("held by me").stderr_has("hint:");
        }
        assert_eq!(rig.lock_held()["holder"], "me");
    });
}

#[test]
fn who_waits_waits_as_long_as_configured() {
    on_both(|rig, _| {
        rig.acquire("me --ttl 60");
        rig.set("lock.wait", "1s");
        let other = rig.gpuctl("lock acquire other").run();
        other.fails("lock_busy").stderr_has("held by me").stderr_has("the wait of 1s is over");
        // This wait would be longer than the rig's patience, if it counted.
        rig.set("lock.wait", "1h");
        let other = rig.gpuctl("lock acquire other --wait 1").run();
        other.fails("lock_busy").stderr_has("waiting for the GPU lock, held by me");
        rig.set("lock.wait", "0s");
        rig.gpuctl("lock acquire other").run().fails("lock_busy").stderr_has("held by me");
    });
}

#[test]
fn a_waiter_gets_the_lock_when_it_is_released() {
    on_both(|rig, _| {
        let token = rig.acquire("me --ttl 60");
        let waiter = rig.gpuctl("lock acquire next --wait 50").spawn();
        until("it waits", || waiter.stderr().contains("held by me"));
        rig.release(&token);
        waiter.wait().succeeds().progress().text();
        assert_eq!(rig.lock_held()["holder"], "next");
    });
}

#[test]
fn a_lock_ends_with_the_process_that_it_was_taken_for() {
    on_both(|rig, _| {
        let job = rig.by_hand("sleep 1000");
        rig.acquire(&format!("me --ttl 1h --pid {}", job.pid()));
        assert_eq!(rig.lock_held()["owner"], format!("{}:{}", hostname(), job.pid()));
        rig.gpuctl("lock acquire other --no-wait").run().fails("lock_busy").stderr_has("me");
        drop(job);
        rig.assert_lock_is_free();
        rig.gpuctl("status").run().succeeds().stdout_has("free");
        rig.acquire("other --no-wait");

        rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
        let job = rig.by_hand("sleep 1000");
        rig.acquire(&format!("me --ttl 1h --pid {}", job.pid()));
        let waiter = rig.gpuctl("lock acquire next --wait 50").spawn();
        until("it waits", || waiter.stderr().contains("held by me"));
        drop(job);
        waiter.wait().succeeds().progress().text();
        assert_eq!(rig.lock_held()["holder"], "next");
    });
}

#[test]
fn a_process_whose_name_the_kernel_has_cut_inside_a_letter_is_there_all_the_same() {
    on_both(|rig, _| {
        // The kernel keeps 15 bytes of the name, so that what /proc says is not UTF-8.
        let program = rig.path("grand-modele-né");
        symlink("/bin/sleep", &program).unwrap();
        let job = rig.by_hand(&format!("'{}' 1000", program.display()));
        until("it has its name", || {
            let name = fs::read(format!("/proc/{}/comm", job.pid())).unwrap();
            name.starts_with(b"grand") && std::str::from_utf8(&name).is_err()
        });
        rig.acquire(&format!("me --ttl 1h --pid {}", job.pid()));
        rig.gpuctl("lock acquire other --no-wait").run().fails("lock_busy").stderr_has("me");
        drop(job);
        rig.assert_lock_is_free();
    });
}

#[test]
fn no_lock_is_taken_for_a_process_that_is_not_there() {
    on_both(|rig, _| {
        for pid in [pid_of_nobody(), 0] {
            let acquire = rig.gpuctl(&format!("lock acquire me --pid {pid}")).run();
            acquire.fails("not_found").stderr_has(&format!("no process {pid}"));
        }
        rig.assert_lock_is_free();
    });
}

#[test]
fn release_takes_the_token_from_the_flag_or_the_environment() {
    on_both(|rig, _| {
        let token = rig.acquire("me");
        let release = rig.gpuctl(&format!("lock release --token {token} --json")).run();
        assert_eq!(release.succeeds().json(), json!({"released": true}));
        rig.assert_lock_is_free();

        let token = rig.acquire("me");
        let release = rig.gpuctl("lock release").env("GPUCTL_LOCK_TOKEN", &token).run();
        release.succeeds().stdout("released\n");
        rig.assert_lock_is_free();

        // The command line takes precedence over the environment.
        let token = rig.acquire("me");
        let release = rig.gpuctl(&format!("lock release --token {token}"));
        release.env("GPUCTL_LOCK_TOKEN", "another").run().succeeds().stdout("released\n");
    });
}

#[test]
fn release_of_anothers_lock_is_refused_and_by_force_done() {
    on_both(|rig, _| {
        let token = rig.acquire("me");
        for wrong in ["0".repeat(32), String::new(), token[..31].to_owned(), token.to_uppercase()] {
            if wrong == token {
                continue;
            }
            let release = rig.gpuctl(&format!("lock release --json --token={wrong}")).run();
            assert_eq!(release.fails("no").json(), json!({"released": false, "holder": "me"}));
        }
        let release = rig.gpuctl("lock release").run();
        release.fails("usage").stderr_has("no token").stderr_has("GPUCTL_LOCK_TOKEN");
        let release = rig.gpuctl(&format!("lock release --force --token {token}")).run();
        release.fails("usage").stderr_has("cannot be used together");
        assert_eq!(rig.lock_held()["holder"], "me");

        let release = rig.gpuctl("lock release --force --json").run();
        assert_eq!(release.succeeds().json(), json!({"released": true}));
        rig.assert_lock_is_free();
    });
}

#[test]
fn release_of_a_lock_that_nobody_holds_is_done_already() {
    on_both(|rig, _| {
        for words in ["--token 00000000000000000000000000000000", "--force"] {
            let release = rig.gpuctl(&format!("lock release {words}")).run();
            release.succeeds().stdout_has("the lock is free");
            let release = rig.gpuctl(&format!("lock release {words} --json")).run();
            assert_eq!(release.succeeds().json(), json!({"released": false}));
        }
    });
}

#[test]
fn status_of_a_free_lock_and_of_a_held_one() {
    on_both(|rig, _| {
        let free = rig.gpuctl("lock status --json").run().succeeds().json();
        let backend = free["backend"].clone();
        assert!(["file", "redis"].map(Value::from).contains(&backend));
        let expected = json!({"backend": backend, "holder": null, "ttl": -2, "owner": null,
            "fence": null});
        assert_eq!(free, expected);
        rig.gpuctl("lock status").run().succeeds().stdout("free\n");

        let told = rig.gpuctl("lock acquire me --ttl 60 --json").run().succeeds().json();
        let mut held = rig.lock_held();
        let left = held["ttl"].take().as_i64().unwrap();
        assert!((1..=60).contains(&left), "{left}");
        assert!(held["since"].take().as_u64().unwrap() > 1_700_000_000);
        let user = rig.shell("id -un").run().succeeds().text();
        let expected = json!({"backend": backend, "holder": "me", "ttl": null,
            "owner": hostname(), "command": "lock acquire", "user": user.trim(), "since": null,
            "stopped": false, "fence": told["fence"]});
        assert_eq!(held, expected);
        let status = rig.gpuctl("lock status").run().fails("no");
        status.stdout_has("held by me").stdout_has(" s left), fence ");

        // `status` shows this much of the lock; the fence is for `lock status`.
        let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].take();
        assert_eq!((&shown["holder"], &shown["backend"]), (&json!("me"), &backend));
    });
}

#[test]
fn a_holder_that_had_to_wait_is_shown_since_it_has_the_lock() {
    on_both(|rig, _| {
        let token = rig.acquire("first --ttl 1h");
        let second = rig.gpuctl("lock acquire second --wait 50").spawn();
        until("it waits", || second.stderr().contains("waiting for the GPU lock"));
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let asked = now();
        until("the next second", || now() > asked);
        rig.release(&token);
        second.wait().succeeds().progress().text();
        let since = rig.lock_held()["since"].as_u64().unwrap();
        assert!(since > asked, "asked at {asked} and has it since {since}");
    });
}

#[test]
fn a_lock_of_an_older_client_is_shown_as_it_is_and_released_by_force_only() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    assert!(redis.legacy_acquire("vidi"));
    let mut held = rig.lock_held();
    let left = held["ttl"].take().as_i64().unwrap();
    assert!((540..=600).contains(&left), "{left}");
    let expected = json!({"backend": "redis", "holder": "vidi", "ttl": null, "owner": null,
        "fence": null});
    assert_eq!(held, expected);

    // Neither the holder's name nor an empty string is a token.
    for token in ["vidi", "", "00000000000000000000000000000000"] {
        let release = rig.gpuctl(&format!("lock release --json --token={token}")).run();
        assert_eq!(release.fails("no").json()["holder"], "vidi");
    }
    assert_eq!(redis.holder().as_deref(), Some("vidi"));
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    assert_eq!(redis.holder(), None);

    redis.cli(&["SET", LOCK_KEY, "for ever"]);
    let held = rig.lock_held();
    assert_eq!((&held["holder"], &held["ttl"]), (&"for ever".into(), &(-1).into()));
    let acquire = rig.gpuctl("lock acquire me --no-wait").run().fails("lock_busy");
    acquire.stderr_has("for ever").stderr_has("lock release --force");
}

#[test]
fn without_any_configuration_the_lock_works() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let gpuctl = |words: &str| rig.gpuctl(words).env_remove("GPUCTL_CONFIG").run();
    let token = gpuctl("lock acquire me").succeeds().text();
    gpuctl("lock status").fails("no").stdout_has("held by me");
    gpuctl("lock acquire other --no-wait").fails("lock_busy").stderr_has("held by me");
    gpuctl(&format!("lock release --token {token}")).succeeds().stdout("released\n");
    gpuctl("lock status").succeeds().stdout("free\n");
}
