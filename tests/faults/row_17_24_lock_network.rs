//! Tests of a failing connection to Redis: a reply is lost (row 17), a connection is reset (row
//! 24), or nothing gets through any more.

use super::lock_work::Work;
use rig::{Proxy, Redis, Rig, until};
use std::thread;

#[track_caller]
fn rig_with_proxy() -> Option<(Rig, Redis, Proxy)> {
    let rig = Rig::new();
    let redis = rig.redis()?;
    let proxy = Proxy::to(redis.port());
    rig.set("lock.url", proxy.url());
    Some((rig, redis, proxy))
}

#[test]
fn row_17_a_lock_that_was_taken_is_recognised_where_the_reply_was_lost() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    proxy.lose_reply("EVAL");
    let acquired = rig.gpuctl("lock acquire me --json").run().succeeds().json();
    assert_eq!(proxy.lost(), 1);
    assert!(acquired["fence"].as_u64() > Some(0), "{acquired}");
    let value = redis.holder().unwrap();
    assert!(value.contains(acquired["token"].as_str().unwrap()), "{value}");
    let release = format!("lock release --token {}", acquired["token"].as_str().unwrap());
    rig.gpuctl(&release).run().succeeds().stdout("released\n");

    rig.native("vidi").add();
    proxy.lose_reply("EVAL");
    rig.gpuctl("start vidi --no-wait").run().succeeds().progress().stdout_has("started vidi");
    assert_eq!((proxy.lost(), redis.holder()), (2, None));
}

#[test]
fn row_17_a_release_that_was_done_is_recognised_where_the_reply_was_lost() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    rig.native("vidi").add();
    let token = rig.gpuctl("lock acquire me").run().succeeds().text();
    // Only the script of the release has these words.
    proxy.lose_reply("'DEL', key");
    let release = rig.gpuctl(&format!("lock release --token {token}")).run();
    release.succeeds().stdout("released\n");
    assert_eq!((proxy.lost(), redis.holder()), (1, None));
    proxy.lose_reply("'DEL', key");
    rig.gpuctl("start vidi").run().succeeds().progress().stdout_has("started vidi");
    assert_eq!((proxy.lost(), redis.holder()), (2, None));
}

#[test]
fn row_17_a_wrong_token_is_refused_also_where_a_reply_was_lost() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    rig.gpuctl("lock acquire me").run().succeeds().stdout_has("\n");
    proxy.lose_reply("EVAL");
    let wrong = "0".repeat(32);
    let release = rig.gpuctl(&format!("lock release --token {wrong}")).run();
    release.fails("no").stdout_has("held by me");
    assert!(proxy.lost() == 1 && redis.holder().is_some());
}

#[test]
fn row_17_a_server_whose_replies_are_all_lost_is_unavailable_and_nobody_holds_the_lock() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    let vidi = rig.native("vidi").add();
    proxy.lose_replies("EVAL");
    for command in ["lock acquire --no-wait", "lock acquire --wait 1s", "start vidi"] {
        rig.gpuctl(command).run().fails("unavailable").stderr_has("cannot be reached").stdout("");
    }
    assert!(proxy.lost() > 3);
    rig.assert_no_process_of(&vidi);
    proxy.pass();
    rig.gpuctl("lock status").run().succeeds().stdout("free\n");
    // The failed callers' places in the line are soon forgotten.
    rig.gpuctl("lock acquire me --wait 10s").run().succeeds().progress().stdout_has("\n");
    assert!(redis.holder().unwrap().starts_with("me|"));
}

/// Asserts that a lock under which a command works is renewed although `fault` happens before the
/// renewal.
fn renews_through(fault: fn(&Proxy)) {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    let work = Work::begin(&rig);
    until("some of its time is over", || redis.ttl_ms() < 29_000);
    fault(&proxy);
    until("it is renewed", || redis.ttl_ms() > 29_000);
    assert!(work.goes_on());
    work.is_done();
    work.gpuctl.wait().succeeds().progress();
    assert!(proxy.connections() > 1);
    assert_eq!(redis.holder(), None);
}

#[test]
fn row_24_the_lock_is_kept_where_a_connection_is_reset_a_reply_lost_or_nothing_gets_through_for_seconds()
 {
    thread::scope(|scope| {
        scope.spawn(|| renews_through(Proxy::reset));
        scope.spawn(|| renews_through(|proxy| proxy.lose_reply("EVAL")));
        scope.spawn(|| {
            renews_through(|proxy| {
                proxy.swallow();
                // The first attempt is given up after a few seconds.
                until("it tries again", || proxy.connections() > 1);
                proxy.pass();
            });
        });
    });
}

#[test]
fn row_24_a_waiter_whose_connection_is_reset_waits_on() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    redis.legacy_acquire("vidi_generate");
    let waiter = rig.gpuctl("lock acquire").spawn();
    until("it waits", || waiter.stderr().contains("held by vidi_generate"));
    for _ in 0..2 {
        let before = proxy.connections();
        proxy.reset();
        until("it connects again", || proxy.connections() > before);
    }
    redis.legacy_release("vidi_generate");
    waiter.wait().succeeds().stderr_has("held by vidi_generate").stdout_has("\n");
}

#[test]
fn a_holder_that_is_cut_off_has_ended_its_command_before_its_lock_ends() {
    let Some((rig, redis, proxy)) = rig_with_proxy() else { return };
    let work = Work::begin(&rig);
    proxy.swallow();
    until("the command ends", || !work.goes_on());
    assert!(redis.ttl_ms() > 0, "its lock was over before");
    work.gpuctl.wait().fails("lock_lost").stderr_has("it was not renewed in time");
}
