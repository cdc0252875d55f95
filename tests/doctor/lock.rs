//! Tests that the doctor finds faults of the place where the lock is kept.

use super::{Fault, Machine, finds, verdict};
use rig::{LOCK_KEY, Proxy, Redis};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

#[track_caller]
fn with_redis(options: &[&str]) -> Option<(Machine, Redis)> {
    let machine = Machine::new();
    let redis = machine.rig.redis_with(options)?;
    machine.rig.set("lock.url", redis.url());
    Some((machine, redis))
}

#[test]
fn of_a_redis_that_is_well_nothing_is_found_and_from_where_it_is_named_is_told() {
    let Some((machine, redis)) = with_redis(&[]) else { return };
    let report = finds(machine.doctor(), &[]);
    for id in ["redis", "credentials", "version", "role", "eviction", "latency", "record"] {
        assert_eq!(verdict(&report, &format!("lock.{id}")), "pass", "{id}");
    }
    let named = |report: &serde_json::Value, source: &str| {
        let text = format!("Redis at 127.0.0.1:{} (from {source})", redis.port());
        assert!(report.to_string().contains(&text), "{report:#}");
    };
    named(&report, "lock.url");
    let report = finds(machine.doctor().env("GPUCTL_LOCK_URL", redis.url()), &[]);
    named(&report, "$GPUCTL_LOCK_URL");
    let other = Machine::new();
    named(&finds(other.doctor().env("REDIS_URL", redis.url()), &[]), "$REDIS_URL");
}

#[test]
fn a_redis_that_refuses_is_found() {
    let Some((machine, mut redis)) = with_redis(&[]) else { return };
    redis.stop();
    let fault = ("fail", "lock.redis", "cannot be reached", "start it, or correct lock.url");
    let report = finds(machine.doctor(), &[fault]);
    assert_eq!(verdict(&report, "lock.record"), "skip");
}

#[test]
fn credentials_that_are_missing_wrong_or_not_enough_are_found() {
    let Some((machine, redis)) = with_redis(&["--requirepass", "secret"]) else { return };
    let at = format!("127.0.0.1:{}/0", redis.port());
    let none = ("fail", "lock.credentials", "wants a password", "redis://:PASSWORD@HOST:PORT");
    finds(machine.doctor(), &[none]);
    machine.rig.set("lock.url", format!("redis://:wrong@{at}"));
    let wrong =
        ("fail", "lock.credentials", "does not take the user and password", "correct lock.url");
    finds(machine.doctor(), &[wrong]);
    redis.cli(&["ACL", "SETUSER", "worker", "reset", "on", ">secret", "+@all", "-set", "~*"]);
    machine.rig.set("lock.url", format!("redis://worker:secret@{at}"));
    let weak = ("fail", "lock.credentials", "does not let this user do", "its ACL must allow");
    finds(machine.doctor(), &[weak]);
    // The rights that the lock needs are enough; checks that need further rights are skipped.
    redis.cli(&["ACL", "SETUSER", "worker", "+set", "-info"]);
    let report = finds(machine.doctor(), &[]);
    for id in ["lock.version", "lock.role", "lock.eviction"] {
        assert_eq!(verdict(&report, id), "skip", "{id}");
    }
}

#[test]
fn a_redis_that_is_a_replica_evicts_or_is_slow_is_found() {
    let Some((machine, redis)) = with_redis(&[]) else { return };
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    finds(machine.doctor(), &[]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "100mb"]);
    let evicts = ("warn", "lock.eviction", "(maxmemory-policy volatile-lru)", "noeviction");
    finds(machine.doctor(), &[evicts]);
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    finds(machine.doctor(), &[]);

    let proxy = Proxy::to(redis.port());
    proxy.delay(Duration::from_millis(150));
    machine.rig.set("lock.url", proxy.url());
    let slow = ("warn", "lock.latency", " ms to answer", "that is closer");
    finds(machine.doctor(), &[slow]);

    machine.rig.set("lock.url", redis.url());
    redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let replica = ("fail", "lock.role", "read-only replica", "name its primary in lock.url");
    finds(machine.doctor(), &[replica]);
}

#[test]
fn what_is_no_lock_or_one_without_an_end_is_found() {
    let Some((machine, redis)) = with_redis(&[]) else { return };
    redis.legacy_acquire("vidi_generate");
    finds(machine.doctor(), &[]);
    redis.cli(&["PERSIST", LOCK_KEY]);
    let endless = ("warn", "lock.record", "held by vidi_generate", "gpuctl lock release --force");
    finds(machine.doctor(), &[endless]);
    redis.cli(&["DEL", LOCK_KEY]);
    redis.cli(&["HSET", LOCK_KEY, "a", "b"]);
    let other = ("fail", "lock.record", "is a hash, not a lock", "choose another lock.key");
    finds(machine.doctor(), &[other]);
}

#[test]
fn a_lock_file_that_cannot_be_used_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let lock_in = |folder: &Path| rig.set("lock.url", format!("file://{}/lock", folder.display()));
    let fault = |message: &'static str, fix: &'static str| -> Fault {
        ("fail", "lock.folder", message, fix)
    };
    let elsewhere = "set lock.url to a file elsewhere";
    let mode = |mode| fs::set_permissions(rig.path("run"), Permissions::from_mode(mode)).unwrap();
    lock_in(&rig.path("run"));
    mode(0o1777);
    finds(machine.doctor(), &[]);
    mode(0o777);
    finds(machine.doctor(), &[("warn", "lock.folder", "anybody may remove", "chmod +t")]);
    mode(0o700);
    finds(machine.doctor(), &[]);

    symlink(rig.path("precious"), rig.lock_file()).unwrap();
    finds(machine.doctor(), &[fault("it is a link", elsewhere)]);
    lock_in(&rig.path("gpuctl.toml").join("below"));
    finds(machine.doctor(), &[fault("Not a directory", elsewhere)]);
    fs::set_permissions(rig.path("home"), Permissions::from_mode(0o500)).unwrap();
    lock_in(&rig.path("home/below"));
    finds(machine.doctor_without_privileges(), &[fault("Permission denied", "chmod 666")]);
}

#[test]
fn a_record_that_is_damaged_is_found() {
    let machine = Machine::new();
    machine.rig.gpuctl("lock acquire me").run().succeeds().text();
    fs::write(machine.rig.lock_file(), "{\"fence\": 1, \"hol").unwrap();
    let fault = ("fail", "lock.record", "is damaged", "gpuctl lock release --force");
    finds(machine.doctor(), &[fault]);
}
