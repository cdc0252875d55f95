//! Tests of a Redis that is down (row 15), hangs (row 16), loads (row 18), is a replica (row 19),
//! or takes no writes (row 21): gpuctl says which it is, and does nothing without the lock.

use super::lock_work::Work;
use rig::{Redis, Rig, Service, Signal, until, with_room};
use std::fs;
use std::time::Instant;

/// Asserts that every command that asks for the lock ends with this code, says why and has done
/// nothing, and that `status` still works.
#[track_caller]
pub fn is_refused(rig: &Rig, service: &Service, code: &str, why: &str) {
    let token = "0".repeat(32);
    for command in [
        "lock acquire --no-wait",
        "lock acquire --wait 1s",
        "lock status",
        &format!("lock release --token {token}"),
        "start vidi",
        "prepare-phase 2 --json",
        "run vidi -- touch done",
    ] {
        let refused = rig.gpuctl(command).run().fails(code);
        if command.contains("--json") {
            assert!(refused.json()["error"]["message"].as_str().unwrap().contains(why));
        } else {
            drop(refused.stderr_has(why).stdout(""));
        }
    }
    status_tells(rig, why);
    rig.assert_no_process_of(service);
    assert!(!rig.path("home/done").exists());
    // The machine's lock does not stand in for a server that is down.
    assert_eq!(rig.kernel_locks(), [""; 0]);
}

#[track_caller]
fn status_tells(rig: &Rig, why: &str) {
    let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].clone();
    assert!(shown["error"].as_str().is_some_and(|error| error.contains(why)), "{shown}");
    assert_eq!((&shown["backend"], &shown["holder"]), (&"redis".into(), &().into()));
    assert_eq!(shown["ttl"], serde_json::Value::Null);
    drop(rig.gpuctl("status").run().succeeds().stdout_has(why));
}

/// Adds the native service `vidi` of phase 2.
#[track_caller]
pub fn vidi(rig: &Rig) -> Service {
    rig.native("vidi").phases([2]).add()
}

#[test]
fn row_15_a_server_that_refuses_connections_is_unavailable_at_once() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    redis.stop();
    for url in [redis.url(), redis.socket_url()] {
        rig.set("lock.url", url);
        is_refused(&rig, &vidi, "unavailable", "cannot be reached");
        for command in ["lock acquire", "start vidi"] {
            let begun = Instant::now();
            rig.gpuctl(command).run().fails("unavailable").stderr_has("hint: start it");
            assert!(begun.elapsed() < with_room(5), "{:?}", begun.elapsed());
        }
    }
    redis.restart();
    rig.gpuctl("start vidi").run().succeeds().progress().stdout_has("started vidi");
}

#[test]
fn row_15_a_server_that_goes_away_while_it_is_waited_for_is_unavailable_when_the_wait_is_over() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    redis.legacy_acquire("vidi_generate");
    let waiter = rig.gpuctl("lock acquire --wait 5s").spawn();
    until("it waits", || waiter.stderr().contains("held by vidi_generate"));
    redis.stop();
    let stopped = Instant::now();
    waiter.wait().fails("unavailable").stderr_has("cannot be reached");
    assert!(stopped.elapsed() < with_room(5), "{:?}", stopped.elapsed());
}

#[test]
fn row_16_a_server_that_hangs_is_unavailable_within_a_deadline() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", redis.url());
    redis.signal(Signal::STOP);
    let commands = ["lock acquire", "lock status", "start vidi"];
    let begun = Instant::now();
    let running = commands.map(|command| rig.gpuctl(command).spawn());
    let status = rig.gpuctl("status --json").spawn();
    for asking in running {
        asking.wait().fails("unavailable").stderr_has("does not answer").stdout("");
    }
    let error = status.wait().succeeds().json()["lock"]["error"].clone();
    assert!(error.as_str().is_some_and(|error| error.contains("does not answer")), "{error}");
    assert!(begun.elapsed() < with_room(5), "{:?}", begun.elapsed());
    rig.assert_no_process_of(&vidi);
    // Run beside the other commands, this one would have found the machine's lock held.
    rig.gpuctl("lock acquire --no-wait").run().fails("unavailable").stderr_has("does not answer");

    // A lock that the server grants too late, to a caller that has given up, is nobody's.
    redis.signal(Signal::CONT);
    rig.gpuctl("lock status").run().succeeds().stdout("free\n");
    rig.gpuctl("start vidi --wait 5s").run().succeeds().progress().stdout_has("started vidi");
}

#[test]
fn row_16_a_wait_for_a_server_that_hangs_can_be_interrupted() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    redis.legacy_acquire("vidi_generate");
    let waiter = rig.gpuctl("lock acquire").spawn();
    until("it waits", || waiter.stderr().contains("held by vidi_generate"));
    redis.signal(Signal::STOP);
    waiter.signal(Signal::INT);
    let begun = Instant::now();
    waiter.wait().exits(130).stderr_has("interrupted by signal 2").stdout("");
    assert!(begun.elapsed() < with_room(5), "{:?}", begun.elapsed());
}

const SLOW_TO_LOAD: [&str; 4] =
    ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];

/// Restarts Redis with data that takes seconds to load; the lock is part of it if it is held.
#[track_caller]
fn come_back_loading(redis: &mut Redis) {
    let script = "for key = 1, 1000 do redis.call('SET', key, string.rep('x', 100)) end";
    redis.cli(&["EVAL", script, "0"]);
    redis.cli(&["SAVE"]);
    redis.restart();
    assert!(redis.cli(&["INFO", "persistence"]).contains("\nloading:1"), "it was too quick");
}

#[test]
fn row_18_a_server_that_is_loading_is_waited_for() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis_with(&SLOW_TO_LOAD) else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", redis.url());
    come_back_loading(&mut redis);
    let start = rig.gpuctl("start vidi").spawn();
    let acquired = rig.gpuctl("lock acquire me").run();
    acquired.succeeds().progress().stdout_has("\n");
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    start.wait().succeeds().progress().stdout_has("started vidi");
    assert!(vidi.is_healthy());
}

#[test]
fn row_18_who_waits_in_line_while_the_server_comes_back_loading_waits_on() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis_with(&SLOW_TO_LOAD) else { return };
    rig.set("lock.url", redis.url());
    redis.legacy_acquire("vidi_generate");
    let waiter = rig.gpuctl("lock acquire").spawn();
    until("it waits", || waiter.stderr().contains("held by vidi_generate"));
    come_back_loading(&mut redis);
    until("it has loaded", || redis.cli(&["INFO", "persistence"]).contains("\nloading:0"));
    redis.legacy_release("vidi_generate");
    waiter.wait().succeeds().progress().stdout_has("\n");
}

#[test]
fn row_18_a_server_that_is_loading_for_longer_than_the_wait_is_unavailable() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis_with(&SLOW_TO_LOAD) else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", redis.url());
    redis.cli(&["CONFIG", "SET", "key-load-delay", "20000"]);
    let script = "for key = 1, 3000 do redis.call('SET', key, string.rep('x', 100)) end";
    redis.cli(&["EVAL", script, "0"]);
    come_back_loading(&mut redis);
    for command in ["lock acquire --no-wait", "lock acquire --wait 500ms", "lock status"] {
        let refused = rig.gpuctl(command).run().fails("unavailable");
        refused.stderr_has("still loading").stdout("");
    }
    rig.gpuctl("start vidi --no-wait").run().fails("unavailable").stderr_has("still loading");
    status_tells(&rig, "still loading");
    assert!(redis.cli(&["INFO", "persistence"]).contains("\nloading:1"), "it was too quick");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_19_a_replica_is_no_place_for_the_lock() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    let replica = ["--replicaof", "127.0.0.1", &redis.port().to_string()];
    let Some(replica) = rig.redis_with(&replica) else { return };
    until("it is linked", || replica.cli(&["INFO", "replication"]).contains("link_status:up"));
    rig.set("lock.url", replica.url());
    for command in ["lock acquire --no-wait", "lock acquire --wait 5s", "start vidi"] {
        let refused = rig.gpuctl(command).run().fails("unavailable");
        refused.stderr_has("read-only replica").stderr_has("hint: name its primary").stdout("");
    }
    rig.assert_no_process_of(&vidi);
    assert_eq!(redis.cli(&["KEYS", "*"]), "");
    // A replica still answers what it can answer.
    redis.legacy_acquire("vidi_generate");
    until("the replica has it", || replica.holder().is_some());
    rig.gpuctl("lock status").run().exits(1).stdout_has("held by vidi_generate");
    let refused = rig.gpuctl("lock release --force").run();
    refused.fails("unavailable").stderr_has("read-only replica");
}

#[test]
fn row_21_a_server_without_memory_is_unavailable() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", redis.url());
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    takes_no_writes(&rig, &vidi, "has no memory left");
    assert_eq!(redis.cli(&["KEYS", "*"]), "");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    rig.gpuctl("start vidi").run().succeeds().progress().stdout_has("started vidi");
}

#[track_caller]
fn takes_no_writes(rig: &Rig, vidi: &Service, why: &str) {
    for command in ["lock acquire --no-wait", "lock acquire --wait 1s", "start vidi"] {
        let refused = rig.gpuctl(command).run().fails("unavailable");
        refused.stderr_has(why).stderr_has("hint:").stdout("");
    }
    rig.assert_no_process_of(vidi);
    // The lock can still be read.
    rig.gpuctl("lock status").run().succeeds().stdout("free\n");
    assert_eq!(rig.gpuctl("status --json").run().succeeds().json()["lock"]["ttl"], -2);
}

#[test]
fn row_21_a_server_that_cannot_save_is_unavailable() {
    let rig = Rig::new();
    let folder = rig.path("gone");
    fs::create_dir(&folder).unwrap();
    let options = ["--save", "3600 1", "--dir", folder.to_str().unwrap()];
    let Some(redis) = rig.redis_with(&options) else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", redis.url());
    fs::remove_dir_all(&folder).unwrap();
    redis.cli(&["BGSAVE"]);
    until("it has failed", || {
        redis.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
    });
    takes_no_writes(&rig, &vidi, "cannot save to disk");
    assert_eq!(redis.cli(&["KEYS", "*"]), "");
}

#[test]
fn row_21_a_lock_that_is_held_is_kept_and_released_also_where_memory_runs_out() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    let work = Work::begin(&rig);
    let next = rig.gpuctl("lock acquire next --wait 50s").spawn();
    until("it stands in line", || next.stderr().contains("held by vidi"));
    until("some of its time is over", || redis.ttl_ms() < 29_000);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    until("it is renewed", || redis.ttl_ms() > 29_000);
    work.is_done();
    work.gpuctl.wait().succeeds().progress();
    let left = redis.holder().unwrap_or_default();
    assert!(!left.starts_with("vidi|"), "{left}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    drop(next);
}
