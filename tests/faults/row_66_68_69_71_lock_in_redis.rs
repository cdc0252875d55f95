//! Tests of the lock in Redis between machines: a holder that was suspended goes on if nobody came
//! in between (row 66), work in the background keeps the lock (row 68), nobody comes in beside a
//! living command whatever happens to its key (row 69), and waiters ride out an absence of the
//! server (row 71).

use super::lock_work::Work;
use rig::{LOCK_KEY, Redis, Rig, Running, Signal, until};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

#[track_caller]
fn rig_with_redis() -> Option<(Rig, Redis)> {
    let rig = Rig::new();
    let redis = rig.lock_in_redis()?;
    Some((rig, redis))
}

/// Returns the PIDs of gpuctl, its watchdog and the command.
fn all_of(work: &Work) -> Vec<i32> {
    let gpuctl = work.gpuctl.pid();
    let children = fs::read_to_string(format!("/proc/{gpuctl}/task/{gpuctl}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    [gpuctl].into_iter().chain(children).collect()
}

fn signal_all(rig: &Rig, name: &str, pids: &[i32]) {
    let pids: Vec<_> = pids.iter().map(i32::to_string).collect();
    rig.shell(&format!("kill -{name} {}", pids.join(" "))).run().succeeds();
}

/// Stops all processes of a `run` until the lock's time is over, and returns their PIDs.
fn suspend(rig: &Rig, redis: &Redis, work: &Work) -> Vec<i32> {
    let all = all_of(work);
    assert!(all.len() > 2, "{all:?}");
    signal_all(rig, "STOP", &all);
    until("its key is gone", || redis.ttl_ms() == -2);
    // The lock's time is over by gpuctl's own clock, too, after this pause.
    sleep(Duration::from_secs(2));
    all
}

#[test]
fn row_66_a_run_that_was_suspended_beyond_its_time_goes_on_where_nobody_came() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    let all = suspend(&rig, &redis, &work);
    signal_all(&rig, "CONT", &all);
    until("the lock is its own again", || redis.holder().is_some());
    assert!(work.goes_on());
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
    rig.assert_free_and_alone();
    rig.assert_lock_was_given_back();
}

#[test]
fn row_66_a_run_that_was_suspended_ends_where_another_came() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    let all = suspend(&rig, &redis, &work);
    let next = rig.elsewhere("lock acquire next --ttl 1h --wait 50s").run();
    next.succeeds().stderr_has("held by vidi").stdout_has("\n");
    signal_all(&rig, "CONT", &all);
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    assert!(redis.holder().unwrap().starts_with("next|"));
    assert!(!rig.path("home/done").exists());
}

#[test]
fn row_68_a_child_in_the_background_keeps_the_lock_in_redis_too() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("vidi").add();
    let script = "(until [ -e done ]; do sleep 0.05; done; echo >ended) >/dev/null 2>&1 & exit 0";
    rig.gpuctl("run --quiet vidi -- sh -c").arg(script).run().succeeds().stdout("");
    let busy = rig.elsewhere("lock acquire other --no-wait").run();
    busy.fails("lock_busy").stderr_has("held by vidi");
    // The key then lives longer than the last renewal by `run` itself would have lasted.
    redis.cli(&["PEXPIRE", LOCK_KEY, "15000"]);
    until("it is renewed", || redis.ttl_ms() > 20_000);
    let next = rig.elsewhere("run --quiet --wait 50s vidi -- cat ended").spawn();
    rig.file("home/done", "");
    next.wait().succeeds().stdout("\n");
    rig.assert_lock_was_given_back();
}

/// Asserts that a waiter elsewhere begins when the command has ended and not before, although the
/// lock's key has gone.
#[track_caller]
fn nobody_elsewhere_comes_in_beside(lose: impl FnOnce(&Redis)) {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    lose(&redis);
    let busy = rig.elsewhere("lock acquire other --no-wait").run();
    busy.fails("lock_busy").stderr_has("held by vidi");
    // A command that has ended but was not reaped yet has no command line.
    let beside = format!("cat /proc/{}/cmdline 2>/dev/null; echo $GPUCTL_FENCE", work.pid);
    let next = rig.elsewhere("run --quiet --wait 5m vidi -- sh -c").arg(&beside).spawn();
    let fence = next.wait().succeeds().text();
    let fence: u64 = fence.trim().parse().expect("the fence alone: the command has ended");
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    assert_eq!(redis.cli(&["GET", &format!("{LOCK_KEY}:fence")]), fence.to_string());
    rig.assert_lock_was_given_back();
}

#[test]
fn row_69_nobody_comes_in_beside_a_command_whose_key_was_deleted() {
    nobody_elsewhere_comes_in_beside(|redis| drop(redis.cli(&["DEL", LOCK_KEY])));
}

#[test]
fn row_69_nobody_comes_in_beside_a_command_when_the_calendar_of_redis_jumps_by_an_hour() {
    nobody_elsewhere_comes_in_beside(|redis| {
        // Every key with a time to live sees an hour pass.
        for key in redis.cli(&["KEYS", "*"]).lines() {
            let left: i64 = redis.cli(&["PTTL", key]).parse().unwrap();
            if left >= 0 {
                redis.cli(&["PEXPIRE", key, &(left - 3_600_000).to_string()]);
            }
        }
        assert_eq!(redis.ttl_ms(), -2);
    });
}

#[test]
fn row_69_a_holder_that_is_gone_with_its_key_is_waited_out() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("vidi").server("--warmup 1h").add();
    let holder = rig.gpuctl("start vidi").spawn();
    until("it acts", || holder.stderr().contains("starting vidi"));
    let next = rig.elsewhere("lock acquire next --wait 5m").spawn();
    until("it waits", || next.stderr().contains("held by vidi"));
    holder.signal(Signal::KILL);
    let killed = Instant::now();
    drop(holder.wait().dies_of(9).progress());
    // Only the holder's second record is left.
    redis.cli(&["PEXPIRE", LOCK_KEY, "1"]);
    next.wait().succeeds().stderr_has("held by vidi").stdout_has("\n");
    assert!(killed.elapsed() > Duration::from_secs(15), "{:?}", killed.elapsed());
}

#[test]
fn row_71_twenty_who_wait_ride_out_an_absence_of_the_server_and_keep_their_order() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("vidi").add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    assert!(redis.legacy_acquire("vidi_generate"));
    // The waiters are on two machines, in turn.
    let waiters: Vec<Running> = (0..20)
        .map(|number| {
            let words = "run --wait 5m vidi -- sh -c";
            let waiter = if number % 2 == 0 { rig.gpuctl(words) } else { rig.elsewhere(words) };
            let waiter = waiter.arg(format!("echo {number} >>order")).spawn();
            until("it waits", || waiter.stderr().contains("held by vidi_generate"));
            waiter
        })
        .collect();
    redis.signal(Signal::STOP);
    sleep(Duration::from_secs(20));
    redis.signal(Signal::CONT);
    // The first waiter of each machine has looked again and has its place.
    until("they are in line", || redis.cli(&["ZCARD", &format!("{LOCK_KEY}:queue")]) == "2");
    redis.legacy_release("vidi_generate");
    for waiter in waiters {
        waiter.wait().succeeds().progress().stdout("");
    }
    let order = fs::read_to_string(rig.path("home/order")).unwrap();
    let order: Vec<u32> = order.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(order, Vec::from_iter(0..20));
    rig.assert_lock_was_given_back();
}

#[test]
fn a_grace_that_does_not_fit_into_the_time_of_redis_is_refused_before_anything_is_done() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let vidi = rig.native("vidi").add();
    let refused = rig.gpuctl("run --grace 16s vidi -- touch done").run().fails("usage");
    refused.stderr_has("--grace 16s").stderr_has("15s at most");
    rig.assert_no_process_of(&vidi);
    assert!(!rig.path("home/done").exists() && redis.holder().is_none());
    rig.gpuctl("run --grace 15s --quiet vidi -- touch done").run().succeeds().stdout("");
}

#[test]
fn a_cluster_and_a_server_without_eval_are_told_with_what_to_do() {
    let rig = Rig::new();
    // The default is the server's port plus 10,000, which may be another program's.
    let bus = rig.port().to_string();
    let cases = [
        (
            &["--cluster-enabled", "yes", "--cluster-port", &bus][..],
            "is a cluster",
            "lock.key = \"{gpu_mutex_v2}\"",
        ),
        (&["--rename-command", "EVAL", ""], "does not know EVAL", "SENTINEL get-master-addr"),
    ];
    for (options, what, hint) in cases {
        let Some(redis) = rig.redis_with(options) else { return };
        rig.set("lock.url", redis.url());
        if what == "is a cluster" {
            redis.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
            until("it is ready", || redis.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        }
        let refused = rig.gpuctl("lock acquire").run().fails("unavailable");
        let told = refused.stderr_has(what).stderr_has(hint).text();
        assert!(!told.contains("redis.call"));
    }
}
