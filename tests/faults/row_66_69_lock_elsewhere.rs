//! Tests of the lock in Redis: a gpuctl that is stopped or frozen while its command works (row 66),
//! a fail-over that loses the last write, a legacy client between its GET and its DEL (row 69), and
//! a token that is released on another machine (row 68).

use super::lock_work::Work;
use rig::{LOCK_KEY, Proxy, Redis, Rig, Signal, python_with, until};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time that a waiter that is called has to take the lock: `CALL` in `src/lock/redis/line.lua`.
const CALL: Duration = Duration::from_millis(400);

#[track_caller]
fn rig_with_redis() -> Option<(Rig, Redis)> {
    let rig = Rig::new();
    let redis = rig.lock_in_redis()?;
    Some((rig, redis))
}

/// Returns how often the second record was renewed.
fn renewals(redis: &Redis) -> u32 {
    let second = redis.cli(&["GET", &format!("{LOCK_KEY}:second")]);
    second.split(' ').next().unwrap().parse().expect("a number of renewals")
}

#[test]
fn row_66_a_gpuctl_that_alone_is_stopped_keeps_the_lock_and_its_command_works_on() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    work.gpuctl.signal(Signal::STOP);
    let before = renewals(&redis);
    // gpuctl's own last renewal has run out long before the second of these.
    until("another renews it", || renewals(&redis) > before + 1);
    assert!(work.goes_on());
    work.gpuctl.signal(Signal::CONT);
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
    rig.assert_free_and_alone();
    rig.assert_lock_was_given_back();
}

/// A control group that freezes whatever is in it, and is removed when dropped.
struct Freezer {
    folder: PathBuf,
    /// The control file, and what is written to it to freeze and to thaw.
    control: (&'static str, [&'static str; 2]),
}

impl Freezer {
    /// Puts these processes into a freezer of the first kind that the machine has; returns `None`,
    /// after reporting the skip, if it has none.
    fn of(rig: &Rig, pids: &[i32]) -> Option<Freezer> {
        let kinds = [
            ("/sys/fs/cgroup", ("cgroup.freeze", ["1", "0"])),
            ("/sys/fs/cgroup/unified", ("cgroup.freeze", ["1", "0"])),
            ("/sys/fs/cgroup/freezer", ("freezer.state", ["FROZEN", "THAWED"])),
        ];
        let freezer = kinds.into_iter().find_map(|(root, control)| {
            let folder = Path::new(root).join(rig.mark("frozen"));
            fs::create_dir(&folder).ok()?;
            let freezer = Freezer { folder, control };
            freezer.folder.join(control.0).exists().then_some(freezer)
        });
        let Some(freezer) = freezer else {
            rig::skip_or_fail("root", "control group that freezes");
            return None;
        };
        for pid in pids {
            fs::write(freezer.folder.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        Some(freezer)
    }

    fn put(&self, state: usize) {
        let (file, states) = self.control;
        fs::write(self.folder.join(file), states[state]).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let (file, [_, thawed]) = self.control;
        fs::write(self.folder.join(file), thawed).ok();
        // Processes that are still in it go where the rig finds them.
        let processes = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        let root = self.folder.parent().unwrap().join("cgroup.procs");
        processes.lines().for_each(|pid| drop(fs::write(&root, pid)));
        fs::remove_dir(&self.folder).ok();
    }
}

#[test]
fn row_66_a_run_that_was_frozen_beyond_its_time_goes_on_where_nobody_came() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    let gpuctl = work.gpuctl.pid();
    let children = fs::read_to_string(format!("/proc/{gpuctl}/task/{gpuctl}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let all: Vec<i32> = [gpuctl].into_iter().chain(children).collect();
    let Some(freezer) = Freezer::of(&rig, &all) else { return };
    freezer.put(0);
    until("its key is gone", || redis.ttl_ms() == -2);
    // The lock's time is over by gpuctl's own clock, too, after this pause.
    std::thread::sleep(std::time::Duration::from_secs(2));
    freezer.put(1);
    until("the lock is its own again", || redis.holder().is_some());
    assert!(work.goes_on());
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
    rig.assert_free_and_alone();
    rig.assert_lock_was_given_back();
}

/// Asserts that the next command elsewhere begins when this one has ended, with a higher fence.
#[track_caller]
fn next_begins_after(rig: &Rig, work: &Work, fence: u64) {
    // A command that has ended but was not reaped yet has no command line.
    let beside = format!("cat /proc/{}/cmdline 2>/dev/null; echo $GPUCTL_FENCE", work.pid);
    let next = rig.elsewhere("run --quiet --wait 5m vidi -- sh -c").arg(&beside).spawn();
    let next: u64 = next.wait().succeeds().text().trim().parse().expect("the fence alone");
    assert!(next > fence, "{fence} {next}");
}

/// Asserts that nobody comes in beside a command when a replica takes over that does not know that
/// the lock was taken. If `was_used_before` is true, the replica knows of an earlier use of the
/// lock.
#[track_caller]
fn fails_over(was_used_before: bool) {
    let rig = Rig::new();
    let Some(mut primary) = rig.redis() else { return };
    let Some(replica) = rig.redis_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()])
    else {
        return;
    };
    until("it is a replica", || replica.cli(&["INFO", "replication"]).contains("link_status:up"));
    // A fail-over keeps this address and puts another server behind it.
    let address = Proxy::to(primary.port());
    rig.set("lock.url", address.url());
    if was_used_before {
        let token = rig.acquire("before");
        rig.release(&token);
        let key = format!("{LOCK_KEY}:fence");
        until("the replica knows of it", || !replica.cli(&["GET", &key]).is_empty());
    }
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let work = Work::begin(&rig);
    let fence = rig.lock_held()["fence"].as_u64().unwrap();
    primary.stop();
    address.leads_to(replica.port());
    assert_eq!(replica.holder(), None);
    let busy = rig.elsewhere("run --no-wait vidi -- true").run().fails("lock_busy");
    busy.stderr_has("from before the fail-over");
    next_begins_after(&rig, &work, fence);
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
}

#[test]
fn row_69_nobody_comes_in_beside_a_command_when_a_fail_over_loses_the_last_write() {
    fails_over(true);
}

#[test]
fn row_69_nobody_comes_in_beside_a_command_when_a_fail_over_loses_all_that_was_written() {
    fails_over(false);
}

#[test]
fn row_69_nobody_comes_in_beside_a_command_when_a_legacy_client_deletes_its_lock_late() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let Some(python) = python_with("redis") else { return };
    // This is the release of the seeds' clients; the test decides how long it takes from the GET to
    // the DEL.
    let script = format!(
        "import os, redis, time
client = redis.Redis(port={}, decode_responses=True)
assert client.set('{LOCK_KEY}', 'vidi_generate', nx=True, ex=600)
open('holds', 'w').close()
while not os.path.exists('release'): time.sleep(0.02)
if client.get('{LOCK_KEY}') == 'vidi_generate':
    open('asked', 'w').close()
    while not os.path.exists('delete'): time.sleep(0.02)
    client.delete('{LOCK_KEY}')
open('deleted', 'w').close()
",
        redis.port()
    );
    let script = rig.file("legacy.py", &script);
    let _legacy = rig.by_hand(&format!("{python} {}", script.display()));
    let is_there = |name: &str| until(name, || rig.path("home").join(name).exists());
    is_there("holds");
    rig.file("home/release", "");
    is_there("asked");
    // In between, the legacy client's lock ends and gpuctl's begins.
    redis.cli(&["DEL", LOCK_KEY]);
    let work = Work::begin(&rig);
    let fence = rig.lock_held()["fence"].as_u64().unwrap();
    rig.file("home/delete", "");
    is_there("deleted");
    assert_eq!(redis.holder(), None);
    let busy = rig.elsewhere("lock acquire other --no-wait").run();
    busy.fails("lock_busy").stderr_has("held by vidi");
    next_begins_after(&rig, &work, fence);
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    rig.assert_lock_was_given_back();
}

#[test]
fn row_68_nobody_comes_in_beside_a_joined_command_though_another_machine_releases_the_token() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    let token = rig.acquire("me --ttl 1h");
    rig.native("vidi").add();
    let work = "echo $$ >pid; until [ -e done ]; do sleep 0.05; done";
    let run = rig.gpuctl("run --quiet vidi -- sh -c").arg(work);
    let run = run.env("GPUCTL_LOCK_TOKEN", &token).spawn();
    let pid = || fs::read_to_string(rig.path("home/pid")).unwrap_or_default();
    until("its command works", || pid().ends_with('\n'));
    let release = rig.elsewhere(&format!("lock release --token {token}")).run();
    release.succeeds().stdout("released\n");
    assert_eq!(redis.holder(), None);
    let busy = rig.elsewhere("lock acquire other --no-wait").run();
    busy.fails("lock_busy").stderr_has("held by me");
    let beside = format!("cat /proc/{}/cmdline 2>/dev/null; true", pid().trim_end());
    let next = rig.elsewhere("run --quiet --wait 5m vidi -- sh -c").arg(&beside).spawn();
    next.wait().succeeds().stdout("");
    run.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
}

#[test]
fn the_token_of_a_run_is_not_released_by_another_machine() {
    let Some((rig, _redis)) = rig_with_redis() else { return };
    let work = Work::begin(&rig);
    let environment = fs::read(format!("/proc/{}/environ", work.pid)).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let token = environment.split('\0').find_map(|it| it.strip_prefix("GPUCTL_LOCK_TOKEN="));
    let release = format!("lock release --token {}", token.unwrap());
    rig.elsewhere(&release).run().succeeds().stdout_has("it is the lock of `gpuctl run`");
    rig.elsewhere("lock acquire other --no-wait").run().fails("lock_busy").stderr_has("vidi");
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
}

#[test]
fn who_has_waited_longest_on_any_machine_is_next() {
    let Some((rig, _redis)) = rig_with_redis() else { return };
    rig.native("vidi").add();
    assert!((0..5).any(|_| order_of_waiters(&rig) == ["a", "b", "c", "d"]), "never in order");
}

/// Returns the names of waiters in the order in which they get the lock. They have come in the
/// order of their names, in turn on this machine and on another.
fn order_of_waiters(rig: &Rig) -> Vec<String> {
    let token = rig.acquire("me --ttl 1h");
    let wait = |here: bool, name: &str| {
        let words = format!("lock acquire {name} --ttl 1h --wait 2m");
        let waiter = if here { rig.gpuctl(&words) } else { rig.elsewhere(&words) }.spawn();
        until(name, || waiter.stderr().contains("waiting for the GPU lock"));
        waiter
    };
    // A command of this machine that gives the lock back by itself waits before them.
    let stop = rig.gpuctl("stop vidi --wait 2m").spawn();
    until("it waits", || stop.stderr().contains("waiting for the GPU lock"));
    let waiters = [(true, "a"), (false, "b"), (true, "c"), (false, "d")];
    let waiters = waiters.map(|(here, name)| (name.to_owned(), (here, wait(here, name))));
    let mut waiters = BTreeMap::from(waiters);
    let mut released = Instant::now();
    rig.release(&token);
    stop.wait().succeeds().progress().text();
    let mut order = Vec::new();
    while !waiters.is_empty() {
        let mut holder = String::new();
        until("one of them has it", || {
            let status = rig.shell("gpuctl lock status --json || test $? = 1").run().succeeds();
            holder = status.json()["holder"].as_str().unwrap_or_default().to_owned();
            waiters.contains_key(&holder)
        });
        // On a busy machine a waiter that is called may come too late.
        let next = waiters.keys().next().unwrap();
        assert!(holder == *next || released.elapsed() > CALL, "{holder} came before {next}");
        let (here, waiter) = waiters.remove(&holder).unwrap();
        let token = waiter.wait().succeeds().progress().text();
        released = Instant::now();
        let release = format!("lock release --token {token}");
        let release = if here { rig.gpuctl(&release) } else { rig.elsewhere(&release) };
        release.run().succeeds().stdout("released\n");
        order.push(holder);
    }
    order
}

#[test]
fn row_69_what_a_command_has_left_in_the_background_ends_with_a_lock_that_is_lost_in_the_end() {
    let Some((rig, redis)) = rig_with_redis() else { return };
    rig.native("vidi").add();
    let script =
        "setsid sh -c 'echo $$ >pid.new; mv pid.new pid; exec sleep 1000' >/dev/null 2>&1 &
        until [ -e done ]; do sleep 0.02; done";
    let run = rig.gpuctl("run --quiet vidi -- sh -c").arg(script).spawn();
    let pid = || fs::read_to_string(rig.path("home/pid")).unwrap_or_default();
    until("it works", || !pid().is_empty());
    let child: i32 = pid().trim_end().parse().unwrap();
    redis.cli(&["FLUSHALL"]);
    assert!(redis.legacy_acquire("vidi_generate"));
    rig.file("home/done", "");
    run.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    until("its child has ended", || rig::state(child).is_none());
}
