//! Fifty processes contend for the lock (row 3); then with some that are killed, and one that knows nothing of a line.
//!
//! Inside, each takes a flock(2) without waiting: the kernel's own witness that it is alone, which ends with its owner.

use rig::{Redis, Rig, Signal, until};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{self, File};

const CONTENDERS: usize = 50;

/// `enter NAME HOW...` and `leave`: what a client does around its work.
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

/// A client that enters so many times, under a lock that ends with it.
fn contender(name: &str, entries: usize) -> String {
    let entry = format!("enter {name} --pid $$; leave");
    format!("{CLIENT} i=0; while [ $i -lt {entries} ]; do {entry}; i=$((i+1)); done")
}

/// One that is killed inside, at its third entry.
fn doomed(name: &str, lock: &str) -> String {
    let entries = contender(name, 2);
    format!("{entries}; enter {name} {lock}; kill -KILL $$")
}

/// Waits until so many have entered, as long as it takes if only it goes on; nobody beside another.
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

/// Who entered and how often, in the order of the fences and of time.
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

/// A client of the older kind takes the lock where it finds it free, past the line.
fn enter_as_legacy(rig: &Rig, redis: &Redis) {
    until("the legacy client has the lock", || redis.legacy_acquire("comfyui"));
    let witness = File::options().append(true).create(true).open(rig.path("witness")).unwrap();
    let alone = flock(&witness, FlockOperation::NonBlockingLockExclusive);
    assert!(alone.is_ok(), "the legacy client is not alone");
    drop(witness);
    redis.legacy_release("comfyui");
}

/// Twenty enter ten times each. Among them ten are killed inside, with a lock that ends with them or by its time, and
/// ten while they wait; and a legacy client takes its chances.
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
        // Or has it, once all others are through.
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
