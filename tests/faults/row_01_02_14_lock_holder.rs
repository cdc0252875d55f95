//! Tests of a lock whose holder dies (row 1) or is paused for too long (row 2), and of releases
//! with a wrong token (row 14).

use super::backends::{Place, in_both_places, in_redis};
use super::lock_work::Work;
use rig::{Rig, Signal, until, with_room};
use std::time::{Duration, Instant};

/// The promise of one second, with room for a machine that has other things to do.
const A_SECOND: Duration = with_room(1);

#[test]
fn row_01_a_waiter_on_the_same_host_takes_over_from_a_killed_holder_at_once() {
    in_both_places([|place| {
        place.rig.native("slow").server("--warmup 1h").add();
        let holder = place.rig.gpuctl("start slow").spawn();
        until("it acts", || holder.stderr().contains("starting slow"));
        assert_eq!(place.holder().as_deref(), Some("slow"));
        let next = place.waiter("next");
        let killed = Instant::now();
        holder.signal(Signal::KILL);
        next.wait().succeeds().stderr_has("held by slow").stdout_has("\n");
        assert!(killed.elapsed() < A_SECOND, "{:?}", killed.elapsed());
        assert_eq!(place.holder().as_deref(), Some("next"));
        holder.wait().dies_of(9).stderr_has("starting slow");
    }]);
}

#[test]
fn row_01_a_lock_that_was_taken_for_a_process_ends_with_it() {
    in_both_places([|place| {
        let process = place.rig.by_hand("sleep 1000");
        place.acquire(&format!("mine --ttl 1h --pid {}", process.pid()));
        assert_eq!(place.holder().as_deref(), Some("mine"));
        let next = place.waiter("next --ttl 1h");
        drop(process);
        let ended = Instant::now();
        next.wait().succeeds().stderr_has("held by mine").stdout_has("\n");
        assert!(ended.elapsed() < A_SECOND, "{:?}", ended.elapsed());

        // The end of the process is seen even if nobody waits for the lock.
        place.rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
        let process = place.rig.by_hand("sleep 1000");
        place.acquire(&format!("mine --ttl 1h --pid {}", process.pid()));
        drop(process);
        place.rig.gpuctl("lock status").run().succeeds().stdout("free\n");
        place.acquire("another --no-wait");
    }]);
}

#[test]
fn row_01_a_holder_on_another_host_is_waited_for_until_its_time_is_over() {
    in_redis([|place| {
        let process = place.rig.by_hand("sleep 1000");
        let before = Instant::now();
        place.acquire(&format!("far --ttl 4s --pid {}", process.pid()));
        let acquired = Instant::now();
        place.moves_to_another_host();
        // No process here has that PID any more, which says nothing about the other host.
        drop(process);
        let busy = place.rig.gpuctl("lock acquire --no-wait").run();
        busy.fails("lock_busy").stderr_has("held by far");
        place.waiter("next").wait().succeeds().stderr_has("held by far").stdout_has("\n");
        assert!(before.elapsed() >= Duration::from_secs(4), "{:?}", before.elapsed());
        let late = acquired.elapsed().saturating_sub(Duration::from_secs(4));
        assert!(late < A_SECOND, "{late:?}");
        assert_eq!(place.holder().as_deref(), Some("next"));
    }]);
}

#[test]
fn row_02_a_holder_of_redis_that_was_paused_beyond_its_time_acts_no_more_nor_does_its_command() {
    in_redis([pause_while_it_stops_a_service, pause_while_its_command_works]);
}

fn pause_while_it_stops_a_service(place: &Place) {
    let rig = &place.rig;
    let vidi = rig.native("vidi").vram(18000).phases([2]).server("--ignore-term");
    let vidi = vidi.set("stop_timeout", "1h").add();
    let voice = rig.native("voice").vram(18000).phases([3]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().progress().stdout_has("started vidi");
    let paused = rig.gpuctl("prepare-phase 3").spawn();
    until("it stops vidi", || paused.stderr().contains("stopping vidi"));
    paused.signal(Signal::STOP);
    assert_eq!(place.holder().as_deref(), Some("voice"));

    let next = rig.elsewhere("lock acquire next --ttl 1h --wait 50s").run();
    next.succeeds().stderr_has("held by voice").stdout_has("\n");
    // What the paused command waited for has happened, and its next step would be to start voice.
    rig.shell(&format!("kill -9 {}", rig.processes_of(&vidi)[0])).run().succeeds();
    paused.signal(Signal::CONT);
    paused.wait().fails("lock_lost").stderr_has("the GPU lock is lost").stdout("");
    rig.assert_no_process_of(&voice);
    assert_eq!(place.holder().as_deref(), Some("next"));
}

fn pause_while_its_command_works(place: &Place) {
    let work = Work::begin(&place.rig);
    work.gpuctl.signal(Signal::STOP);
    let next = place.rig.elsewhere("lock acquire next --ttl 1h --wait 50s").spawn();
    until("it waits", || next.stderr().contains("waiting for the GPU lock"));
    until("the command ends", || !work.goes_on());
    assert_eq!(place.holder().as_deref(), Some("vidi"));
    next.wait().succeeds().stderr_has("held by vidi").stdout_has("\n");
    work.gpuctl.signal(Signal::CONT);
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    assert_eq!(place.holder().as_deref(), Some("next"));
}

#[test]
fn row_02_a_holder_of_the_machines_lock_that_is_stopped_holds_it_and_is_named_as_stopped() {
    let rig = Rig::new();
    let work = Work::begin(&rig);
    work.gpuctl.signal(Signal::STOP);
    until("it is seen to be stopped", || rig.lock_held()["stopped"] == true);
    let busy = rig.gpuctl("lock acquire next --wait 1s").run().fails("lock_busy");
    busy.stderr_has("held by vidi (").stderr_has(", stopped)").stderr_has("kill -CONT").stdout("");
    rig.gpuctl("lock status").run().fails("no").stdout_has(", stopped)");
    assert!(work.goes_on());
    work.gpuctl.signal(Signal::CONT);
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
    rig.assert_free_and_alone();
}

#[test]
fn row_14_a_release_with_a_wrong_token_is_refused() {
    in_both_places([|place| {
        let token = place.acquire("me --ttl 1h");
        let other = "0".repeat(32);
        for wrong in [&other, &token[1..], "me", "*", ".*", "\"", ""] {
            let release = place.rig.gpuctl("lock release --token").arg(wrong).run();
            release.fails("no").stdout_has("not released: the lock is held by me");
            let release = place.rig.gpuctl("lock release").env("GPUCTL_LOCK_TOKEN", &other).run();
            release.fails("no").stdout_has("not released: the lock is held by me");
        }
        let release = place.rig.gpuctl(&format!("lock release --json --token {other}")).run();
        assert_eq!(release.fails("no").json()["released"], false);
        assert_eq!(place.holder().as_deref(), Some("me"));
        place.release(&token);
        assert_eq!(place.holder(), None);
        // Releasing a lock again that is released already is no failure.
        let again = place.rig.gpuctl(&format!("lock release --token {token}")).run();
        again.succeeds().stdout_has("the lock is free");
    }]);
}
