//! Tests of waiters that are stopped (Ctrl-Z, SIGSTOP) while they wait for the lock, and of other
//! programs that lock its file.

use rig::{Rig, Running, Signal, on_both, state, until};

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
        // A newcomer gets the lock, too, because nobody before it could take it.
        rig.release(token.trim());
        let token = rig.acquire("passer-by --wait 3");
        stopped.signal(Signal::CONT);
        rig.release(&token);
        stopped.wait().succeeds().progress().text();
        assert_eq!(rig.lock_held()["holder"], "stopped");
    });
}

#[test]
fn a_process_that_has_locked_the_file_and_is_no_gpuctl_is_waited_for_and_named() {
    let rig = Rig::new();
    let token = rig.acquire("me --ttl 1h");
    rig.release(&token);
    let lock = rig.lock_file();
    let other = rig.by_hand(&format!("flock --no-fork {} sleep 1000", lock.display()));
    until("it is locked", || rig.kernel_locks() == ["FLOCK"]);
    let named = format!("held by PID {} (sleep)", other.pid());
    for patience in ["--no-wait", "--wait 1s"] {
        let busy = rig.gpuctl(&format!("lock acquire other {patience}")).run();
        busy.fails("lock_busy").stderr_has(&named).stdout("");
    }
    let next = waiting(&rig, "lock acquire next --wait 50");
    drop(other);
    next.wait().succeeds().stderr_has(&named).stdout_has("\n");
}

#[test]
fn who_is_stopped_and_continued_while_it_connects_to_redis_goes_on() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    redis.signal(Signal::STOP);
    let asking = rig.gpuctl("lock status").spawn();
    until("its answer is waited for", || redis.has_unread());
    asking.signal(Signal::STOP);
    until("it has stopped", || state(asking.pid()) == Some('T'));
    redis.signal(Signal::CONT);
    asking.signal(Signal::CONT);
    asking.wait().succeeds().stdout("free\n");
}
