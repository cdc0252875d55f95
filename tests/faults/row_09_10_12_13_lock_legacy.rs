//! Tests of what gpuctl finds in Redis under the lock's key and has not put there: the lock of a
//! client that knows nothing of gpuctl (rows 9 and 10), a lock without an end (row 12), and a key
//! that is no lock at all (row 13).

use rig::{LOCK_KEY, Redis, Rig, Running, until, with_room};
use std::time::{Duration, Instant};

/// The promise of one second, with room for a loaded machine.
const A_SECOND: Duration = with_room(1);

#[track_caller]
fn rig_with_redis() -> Option<(Rig, Redis)> {
    let rig = Rig::new();
    let redis = rig.redis()?;
    rig.set("lock.url", redis.url());
    Some((rig, redis))
}

#[track_caller]
fn waiter(rig: &Rig, words: &str) -> Running {
    let before = rig.machines_line();
    let waiter = rig.gpuctl(&format!("lock acquire {words}")).spawn();
    until("it stands in line", || rig.machines_line() != before);
    waiter
}

#[test]
fn row_09_the_lock_of_a_legacy_client_is_respected_and_taken_once_it_is_deleted() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let vidi = rig.native("vidi").add();
    assert!(redis.legacy_acquire("vidi_generate"));
    for command in ["lock acquire --no-wait", "start vidi --no-wait", "lock acquire --wait 400ms"] {
        rig.gpuctl(command).run().fails("lock_busy").stderr_has("held by vidi_generate");
    }
    let token = "0".repeat(32);
    let release = rig.gpuctl(&format!("lock release --token {token}")).run();
    release.fails("no").stdout_has("held by vidi_generate");
    let shown = rig.gpuctl("lock status --json").run().fails("no").json();
    assert_eq!(shown["holder"], "vidi_generate");
    assert_eq!((&shown["owner"], &shown["fence"]), (&().into(), &().into()));
    assert!((550..=600).contains(&shown["ttl"].as_i64().unwrap()), "{shown}");
    assert_eq!(redis.holder().as_deref(), Some("vidi_generate"));
    rig.assert_no_process_of(&vidi);

    let first = waiter(&rig, "first");
    let second = waiter(&rig, "second");
    redis.legacy_release("vidi_generate");
    let deleted = Instant::now();
    let token = first.wait().succeeds().stderr_has("held by vidi_generate").text();
    assert!(deleted.elapsed() < A_SECOND, "{:?}", deleted.elapsed());
    assert!(!redis.legacy_acquire("vidi_generate"));
    rig.gpuctl(&format!("lock release --token {token}")).run().succeeds().stdout("released\n");
    second.wait().succeeds().stderr_has("waiting").stdout_has("\n");
}

#[test]
fn row_09_the_lock_of_a_legacy_client_that_died_is_taken_when_its_time_is_over() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let before = Instant::now();
    redis.cli(&["SET", LOCK_KEY, "vidi_generate", "NX", "PX", "2000"]);
    let set = Instant::now();
    let acquired = rig.gpuctl("lock acquire").run();
    acquired.succeeds().stderr_has("held by vidi_generate").stdout_has("\n");
    assert!(before.elapsed() >= Duration::from_secs(2), "{:?}", before.elapsed());
    let late = set.elapsed().saturating_sub(Duration::from_secs(2));
    assert!(late < A_SECOND, "{late:?}");
}

#[test]
fn what_a_legacy_client_calls_itself_commands_no_terminal() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    assert!(redis.legacy_acquire("\u{1b}[2Jme\nfree"));
    let token = "0".repeat(32);
    for command in ["lock status", &format!("lock release --token {token}")] {
        let told = rig.gpuctl(command).run().fails("no").text();
        assert!(told.contains("held by \\u{1b}[2Jme\\nfree"), "{told:?}");
        assert_eq!(told.lines().count(), 1, "{told:?}");
    }
    let shown = rig.gpuctl("lock status --json").run().fails("no").json();
    assert_eq!(shown["holder"], "\u{1b}[2Jme\nfree");
}

#[test]
fn the_lock_of_a_legacy_client_without_a_name_is_respected_and_told() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let vidi = rig.native("vidi").add();
    for time in [&[][..], &["EX", "600"]] {
        redis.cli(&[&["SET", LOCK_KEY, ""][..], time].concat());
        for command in ["lock acquire --no-wait", "start vidi --no-wait", "start vidi --wait 400ms"]
        {
            let busy = rig.gpuctl(command).run().fails("lock_busy");
            busy.stderr_has("held by somebody without a name (");
        }
        rig.gpuctl("lock status").run().fails("no").stdout_has("held by somebody without a name (");
        let shown = rig.gpuctl("lock status --json").run().fails("no").json();
        assert_eq!(shown["holder"], "", "as it is: {shown}");
        let token = "0".repeat(32);
        let release = rig.gpuctl(&format!("lock release --token {token}")).run();
        release.fails("no").stdout_has("held by somebody without a name, under another token");
        assert_eq!(redis.cli(&["EXISTS", LOCK_KEY]), "1");
        rig.assert_no_process_of(&vidi);
    }
    let next = waiter(&rig, "next");
    redis.cli(&["DEL", LOCK_KEY]);
    next.wait().succeeds().progress().stdout_has("\n");
}

#[test]
fn row_10_a_legacy_client_neither_takes_nor_releases_a_lock_of_ours() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("comfyui").server("--warmup 2s").add();
    let start = rig.gpuctl("start comfyui").spawn();
    until("it acts", || start.stderr().contains("starting comfyui"));
    let value = redis.holder().unwrap();
    assert!(value.starts_with("comfyui|gpuctl1|{"), "{value}");
    // The legacy client compares its name with the whole value, which is not just the holder's
    // name.
    redis.legacy_release("comfyui");
    assert!(!redis.legacy_acquire("comfyui"));
    assert!((1..=30_000).contains(&redis.ttl_ms()));
    assert_eq!(redis.holder(), Some(value));
    start.wait().succeeds().progress().stdout_has("started comfyui");
    assert_eq!(redis.holder(), None);
    assert!(redis.legacy_acquire("comfyui"));
}

#[test]
fn row_12_a_lock_without_an_end_is_told_and_never_broken() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let refused = |value: &str, holder: &str| {
        assert_eq!(redis.cli(&["SET", LOCK_KEY, value]), "OK");
        for command in ["lock acquire --no-wait", "lock acquire --wait 600ms"] {
            let busy = rig.gpuctl(command).run().fails("lock_busy");
            let busy = busy.stderr_has(&format!("held by {holder}"));
            busy.stderr_has("no time to live").stderr_has("gpuctl lock release --force");
        }
        let shown = rig.gpuctl("lock status --json").run().fails("no").json();
        assert_eq!((&shown["holder"], &shown["ttl"]), (&holder.into(), &(-1).into()));
        let shown = rig.gpuctl("lock status").run().fails("no");
        shown.stdout_has(&format!("held by {holder}")).stdout_has("without an end");
        let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].clone();
        assert_eq!((&shown["holder"], &shown["ttl"]), (&holder.into(), &(-1).into()));
        assert_eq!((redis.holder().as_deref(), redis.ttl_ms()), (Some(value), -1));
        let release = rig.gpuctl("lock release --force").run();
        release.succeeds().stdout("released\n");
        assert_eq!(redis.holder(), None);
    };
    refused("vidi_generate", "vidi_generate");
    // A lock of gpuctl's own is not broken either, although its holder is certainly gone.
    let process = rig.by_hand("sleep 1000");
    let acquire = format!("lock acquire mine --pid {}", process.pid());
    rig.gpuctl(&acquire).run().succeeds().stdout_has("\n");
    let value = redis.holder().unwrap();
    drop(process);
    rig.gpuctl("lock status").run().succeeds().stdout("free\n");
    refused(&value, "mine");
}

#[test]
fn row_13_a_key_of_another_type_is_no_lock_and_is_left_alone() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let vidi = rig.native("vidi").add();
    let token = "0".repeat(32);
    for (make, kind) in [("HSET KEY field value", "hash"), ("RPUSH KEY a b c", "list")] {
        let words: Vec<_> = make.split(' ').map(|word| word.replace("KEY", LOCK_KEY)).collect();
        redis.cli(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let before = redis.cli(&["DUMP", LOCK_KEY]);
        for command in [
            "lock acquire",
            "lock acquire --no-wait",
            "lock status",
            "lock release --force",
            &format!("lock release --token {token}"),
            "start vidi",
            "run vidi -- true",
        ] {
            let refused = rig.gpuctl(command).run().fails("config");
            refused.stderr_has(&format!("the key {LOCK_KEY}")).stderr_has(&format!("a {kind}"));
        }
        let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].clone();
        assert!(shown["error"].as_str().unwrap().contains(&format!("a {kind}")), "{shown}");
        assert_eq!((&shown["holder"], &shown["ttl"]), (&().into(), &().into()));
        assert_eq!(redis.cli(&["DUMP", LOCK_KEY]), before);
        assert_eq!(redis.cli(&["KEYS", "*"]), LOCK_KEY);
        redis.cli(&["DEL", LOCK_KEY]);
    }
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_13_a_lock_that_becomes_a_key_of_another_type_is_lost_and_that_key_left_alone() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("vidi").server("--warmup 2s").add();
    let start = rig.gpuctl("start vidi").spawn();
    until("it acts", || start.stderr().contains("starting vidi"));
    redis.cli(&["DEL", LOCK_KEY]);
    redis.cli(&["HSET", LOCK_KEY, "field", "value"]);
    start.wait().fails("lock_lost").stderr_has("the GPU lock is lost").stdout("");
    assert_eq!(redis.cli(&["HGETALL", LOCK_KEY]), "field\nvalue");
}

#[test]
fn row_13_a_key_beside_the_lock_that_is_used_for_something_else_is_told_and_left_alone() {
    for beside in ["queue", "seen", "fence", "second"] {
        let Some((rig, redis)) = rig_with_redis() else { return };
        let key = format!("{LOCK_KEY}:{beside}");
        redis.cli(&["HSET", &key, "field", "value"]);
        let refused = rig.gpuctl("lock acquire").run().fails("config");
        refused.stderr_has(&format!("a key beside {LOCK_KEY}")).stderr_has("lock.key");
        assert_eq!(redis.cli(&["HGETALL", &key]), "field\nvalue");
        assert_eq!(redis.holder(), None, "{beside}");
    }
}
