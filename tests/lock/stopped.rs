//! Others who are stopped (Ctrl-Z, SIGSTOP) while they wait for the lock, or while they have its file.

use rig::{Rig, Running, Signal, on_both, until, with_room};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, kill_process};
use std::fs;
use std::time::Instant;

fn waiting(rig: &Rig, command: &str) -> Running {
    let waiter = rig.gpuctl(command).spawn();
    until("it waits", || waiter.stderr().contains("waiting for the GPU lock"));
    waiter
}

#[test]
fn a_waiter_that_is_stopped_holds_up_nobody_behind_it() {
    on_both(|rig, _| {
        let token = rig.acquire("me --ttl 1h");
        let stopped = waiting(rig, "lock acquire stopped --ttl 1h --wait 55");
        stopped.signal(Signal::STOP);
        let next = waiting(rig, "lock acquire next --ttl 1h --wait 50");
        rig.release(&token);
        let token = next.wait().succeeds().progress().text();
        assert_eq!(rig.lock_held()["holder"], "next");
        // Also who does not wait at all, as there is nobody before him who could take it.
        rig.release(token.trim());
        let token = rig.acquire("passer-by --wait 3");
        stopped.signal(Signal::CONT);
        rig.release(&token);
        stopped.wait().succeeds().progress().text();
        assert_eq!(rig.lock_held()["holder"], "stopped");
    });
}

#[test]
fn one_that_is_stopped_while_it_changes_the_lock_file_is_told_instead_of_waited_for() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let token = rig.acquire("me --ttl 1h");
    let lock = rig.path("run/lock");
    let stopped = rig.by_hand(&format!("flock --no-fork {} sleep 1000", lock.display()));
    until("it is locked", || {
        let file = fs::File::open(&lock).unwrap();
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        locked.is_err()
    });
    kill_process(Pid::from_raw(stopped.pid()).unwrap(), Signal::STOP).unwrap();
    let release = format!("lock release --token {token}");
    for command in
        ["lock acquire other --no-wait", "lock acquire other --wait 50", "start vidi", &release]
    {
        let begun = Instant::now();
        let outcome = rig.gpuctl(command).run().fails("unavailable");
        outcome.stderr_has("has been locked for 5s").stderr_has("fuser -v");
        assert!(begun.elapsed() < with_room(5), "{command}: {:?}", begun.elapsed());
    }
    rig.assert_no_process_of(&vidi);
    // Who only looks has no part in it.
    assert_eq!(rig.lock_held()["holder"], "me");
    drop(stopped);
    rig.release(&token);
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
}
