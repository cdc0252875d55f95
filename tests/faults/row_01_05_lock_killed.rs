//! Tests that kill the holders of the lock and its waiters at any moment (rows 1 and 5): the lock
//! can be taken afterwards, and its record is whole.

use rig::{Rig, Running, Signal, on_both, until};
use std::thread::sleep;
use std::time::{Duration, Instant};

const KILLS: u32 = 40;

/// Returns `KILLS` moments, spread over slightly more time than `act` takes without being killed.
fn moments(act: impl FnOnce()) -> Vec<Duration> {
    let begun = Instant::now();
    act();
    let step = begun.elapsed().mul_f64(1.2) / KILLS;
    (0..KILLS).map(|number| step * number).collect()
}

fn kill_after(rig: &Rig, command: &str, moment: Duration) {
    let killed = rig.gpuctl(command).spawn();
    sleep(moment);
    killed.signal(Signal::KILL);
}

fn waiting(rig: &Rig, command: &str) -> Running {
    let waiter = rig.gpuctl(command).spawn();
    until("it waits", || waiter.stderr().contains("waiting for the GPU lock"));
    waiter
}

/// Asserts that nothing is left in the line of waiters that were killed.
#[track_caller]
fn assert_line_is_empty(rig: &Rig) {
    assert_eq!(rig.machines_line(), 0);
}

#[test]
fn row_01_a_holder_that_is_killed_at_any_moment_is_followed_at_once() {
    on_both(|rig, _| {
        rig.native("vidi").add();
        let command = "stop vidi --quiet";
        for moment in moments(|| drop(rig.gpuctl(command).run().succeeds().text())) {
            kill_after(rig, command, moment);
            // A command that is killed while it releases the lock may have woken nobody; the next
            // one then looks again after a second.
            rig.release(&rig.acquire("next --wait 3"));
        }
        assert_line_is_empty(rig);
    });
}

#[test]
fn row_01_one_that_is_killed_while_it_takes_the_lock_has_it_or_not_and_nothing_in_between() {
    on_both(|rig, _| {
        let command = "lock acquire me --ttl 1h --quiet";
        let moments = moments(|| rig.release(&rig.acquire("me --ttl 1h")));
        for moment in moments {
            kill_after(rig, command, moment);
            if !rig.lock_is_free() {
                assert_eq!(rig.lock_held()["holder"], "me");
                rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
            }
            rig.release(&rig.acquire("next --no-wait"));
        }
        assert_line_is_empty(rig);
    });
}

#[test]
fn row_05_waiters_that_are_killed_at_any_moment_hold_up_nobody() {
    on_both(|rig, _| {
        let token = rig.acquire("me --ttl 1h");
        let command = "lock acquire waiter --ttl 1h --wait 50 --quiet";
        let refused = || {
            let acquire = rig.gpuctl("lock acquire other --wait 10ms").run();
            drop(acquire.fails("lock_busy").stderr_has("held by me"));
        };
        for moment in moments(refused) {
            kill_after(rig, command, moment);
        }
        let next = waiting(rig, "lock acquire next --ttl 1h --wait 50");
        rig.release(&token);
        let token = next.wait().succeeds().progress().text();
        rig.release(token.trim());
        rig.release(&rig.acquire("last --wait 3"));
        assert_line_is_empty(rig);
    });
}

#[test]
fn row_05_when_the_woken_waiter_is_killed_the_next_gets_the_lock() {
    on_both(|rig, _| {
        rig.native("vidi").add();
        let mut token = rig.acquire("me --ttl 1h");
        for number in 0..10 {
            let first = waiting(rig, "stop vidi --wait 50");
            let second = waiting(rig, "lock acquire second --ttl 1h --wait 50");
            // The second waiter stands behind a command that gives the lock back by itself.
            rig.release(&token);
            sleep(Duration::from_millis(number));
            first.signal(Signal::KILL);
            token = second.wait().succeeds().progress().text().trim().to_owned();
            assert_eq!(rig.lock_held()["holder"], "second");
        }
        rig.release(&token);
        assert_line_is_empty(rig);
    });
}
