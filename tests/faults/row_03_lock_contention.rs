//! Tests of fifty processes that contend for the lock (row 3), and of contenders of which some are
//! killed and one knows nothing of a line.
//!
//! Each process takes a flock(2) without waiting while it is inside. That is the kernel's own proof
//! that the process is alone, and ends with it.

use rig::{Redis, Rig, Signal, until};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{self, File};

const CONTENDERS: usize = 50;

/// Shell functions `enter NAME HOW...` and `leave`, which a client calls around its work.
const CLIENT: &str = r#"
enter() {
    who=$1; shift
    held=$(gpuctl lock acquire "$who" --json --quiet --wait 10m "$@") || exit 11
    token=${held#*\"token\": \"}; token=${token%%\"*}
    fence=${held#*\"fence\": }; fence=${fence%%,*}
    exec 9>>../witness
    flock --nonblock 9 || { echo "$who" >>../clashes; exit 12; }
    echo "$fence $who" >>../entries
}
leave() {
    exec 9>&-
    gpuctl lock release --quiet --token "$token" >/dev/null || exit 13
}
"#;

/// Returns the script of a client that enters `entries` times, under a lock that ends with it.
fn contender(name: &str, entries: usize) -> String {
    let entry = format!("enter {name} --pid $$; leave");
    format!("{CLIENT} i=0; while [ $i -lt {entries} ]; do {entry}; i=$((i+1)); done")
}

/// Returns the script of a client that is killed inside, at its third entry.
fn doomed(name: &str, lock: &str) -> String {
    let entries = contender(name, 2);
    format!("{entries}; enter {name} {lock}; kill -KILL $$")
}

/// Waits until there have been `total` entries, however long it takes as long as new ones come;
/// fails the test if two clients were inside at once.
#[track_caller]
fn await_entries(rig: &Rig, total: usize) {
    let so_far = || {
        let clashes = fs::read_to_string(rig.path("clashes")).unwrap_or_default();
        assert_eq!(clashes, "", "two were inside");
        fs::read_to_string(rig.path("entries")).unwrap_or_default().lines().count()
    };
    let mut seen = 0;
    while seen < total {
        until("the next one enters", || so_far() > seen);
        seen = so_far();
    }
}

/// Returns how often each client entered; fails the test if the fences do not rise in the order of
/// time.
#[track_caller]
fn entries(rig: &Rig) -> HashMap<String, usize> {
    let mut highest = 0;
    let mut entries = HashMap::new();
    for line in fs::read_to_string(rig.path("entries")).unwrap().lines() {
        let (fence, who) = line.split_once(' ').unwrap();
        let fence: u64 = fence.parse().unwrap();
        assert!(fence > highest, "fence {fence} of {who} came after {highest}");
        highest = fence;
        *entries.entry(who.to_owned()).or_default() += 1;
    }
    entries
}

fn fifty_contend(rig: &Rig) {
    let contenders: Vec<_> = (0..CONTENDERS)
        .map(|number| rig.shell(&contender(&format!("c{number}"), 20)).spawn())
        .collect();
    await_entries(rig, CONTENDERS * 20);
    contenders.into_iter().for_each(|contender| drop(contender.wait().succeeds()));

    let entries = entries(rig);
    assert_eq!(entries.len(), CONTENDERS, "{entries:?}");
    assert!(entries.values().all(|count| *count == 20), "{entries:?}");
    rig.gpuctl("lock status").run().succeeds().text();
}

#[test]
fn row_03_of_fifty_that_contend_for_the_file_never_two_are_inside_and_all_get_in() {
    fifty_contend(&Rig::new());
}

#[test]
fn row_03_of_fifty_that_contend_for_redis_never_two_are_inside_and_all_get_in() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    fifty_contend(&rig);
}

/// Takes the lock when it is free, past the line, as a client from before gpuctl does, and gives it
/// back.
fn enter_as_legacy(rig: &Rig, redis: &Redis) {
    until("the legacy client has the lock", || redis.legacy_acquire("comfyui"));
    let witness = File::options().append(true).create(true).open(rig.path("witness")).unwrap();
    let alone = flock(&witness, FlockOperation::NonBlockingLockExclusive);
    assert!(alone.is_ok(), "the legacy client is not alone");
    drop(witness);
    redis.legacy_release("comfyui");
}

/// Lets twenty clients enter ten times each. Meanwhile ten others are killed inside, with a lock
/// that ends with them or by its time, and ten while they wait; a legacy client takes its chances
/// in Redis.
fn contend_and_die(rig: &Rig, redis: Option<&Redis>) {
    let survivors: Vec<_> =
        (0..20).map(|number| rig.shell(&contender(&format!("c{number}"), 10)).spawn()).collect();
    let doomed: Vec<_> = (0..10)
        .map(|number| {
            let lock = if number % 2 == 0 { "--pid $$" } else { "--ttl 1s" };
            rig.shell(&doomed(&format!("d{number}"), lock)).spawn()
        })
        .collect();
    for _ in 0..10 {
        let waiter = rig.gpuctl("lock acquire waiter --wait 10m --ttl 1s").spawn();
        // The waiter has the lock at once if all others are through.
        let stat = format!("/proc/{}/stat", waiter.pid());
        let has_ended = || fs::read_to_string(&stat).unwrap().contains(") Z ");
        until("it waits", || waiter.stderr().contains("waiting") || has_ended());
        waiter.signal(Signal::KILL);
        if let Some(redis) = redis {
            enter_as_legacy(rig, redis);
        }
    }
    await_entries(rig, 20 * 10 + 10 * 3);
    doomed.into_iter().for_each(|doomed| drop(doomed.wait().dies_of(9)));
    survivors.into_iter().for_each(|survivor| drop(survivor.wait().succeeds()));

    let entries = entries(rig);
    assert_eq!(entries.len(), 30, "{entries:?}");
    let expected = |who: &str| if who.starts_with('c') { 10 } else { 3 };
    assert!(entries.iter().all(|(who, count)| *count == expected(who)), "{entries:?}");
}

#[test]
fn row_03_those_killed_inside_the_file_lock_or_in_its_line_let_all_others_in_one_by_one() {
    contend_and_die(&Rig::new(), None);
}

#[test]
fn row_03_those_killed_inside_the_redis_lock_or_in_its_line_let_all_others_in_one_by_one() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    contend_and_die(&rig, Some(&redis));
}
