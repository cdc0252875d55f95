//! Tests of waiting for the lock: a waiter dies or is stopped (row 5), is interrupted (row 6),
//! gives up (row 7), or does not wait at all (row 8).

use super::backends::{Place, in_both_places};
use rig::{Running, Signal, until, with_room};
use std::time::{Duration, Instant};

/// The promise of one second, with room for a loaded machine.
const A_SECOND: Duration = with_room(1);

/// Asserts that the waiter gets the lock within a second, and returns its token.
#[track_caller]
fn gets_it(place: &Place, waiter: Running, name: &str) -> String {
    let begun = Instant::now();
    let token = waiter.wait().succeeds().stderr_has("waiting for the GPU lock").text();
    assert!(begun.elapsed() < A_SECOND, "{:?}", begun.elapsed());
    assert_eq!(place.holder().as_deref(), Some(name));
    token.trim_end().to_owned()
}

#[test]
fn row_05_a_waiter_that_dies_in_line_holds_up_nobody() {
    in_both_places([|place| {
        let token = place.acquire("holder --ttl 1h");
        let first = place.waiter("first");
        let second = place.waiter("second --ttl 1h");
        let third = place.waiter("third --ttl 1h");
        first.signal(Signal::KILL);
        place.release(&token);
        let token = gets_it(place, second, "second");
        place.release(&token);
        gets_it(place, third, "third");
        first.wait().dies_of(9).stderr_has("held by holder");
    }]);
}

#[test]
fn row_05_a_woken_waiter_that_dies_before_it_takes_the_lock_holds_up_nobody() {
    in_both_places([|place| {
        let token = place.acquire("holder --ttl 1h");
        let first = place.waiter("first");
        let second = place.waiter("second --ttl 1h");
        // The stopped waiter is woken but cannot look.
        first.signal(Signal::STOP);
        place.release(&token);
        first.signal(Signal::KILL);
        gets_it(place, second, "second");
        first.wait().dies_of(9).stderr_has("held by holder");
    }]);
}

#[test]
fn row_05_a_stopped_waiter_holds_up_nobody_and_comes_back_to_its_place() {
    in_both_places([|place| {
        let token = place.acquire("holder --ttl 1h");
        let first = place.waiter("first --wait 50s --ttl 1h");
        let second = place.waiter("second --wait 50s --ttl 1h");
        let third = place.waiter("third --wait 50s --ttl 1h");
        first.signal(Signal::STOP);
        place.release(&token);
        let token = gets_it(place, second, "second");
        first.signal(Signal::CONT);
        until("it is in line again", || place.waiters() == 2);
        place.release(&token);
        let token = gets_it(place, first, "first");
        place.release(&token);
        gets_it(place, third, "third");
    }]);
}

#[test]
fn row_06_a_waiter_that_is_interrupted_leaves_nothing_behind() {
    in_both_places([|place| {
        place.rig.native("vidi").phases([2]).add();
        let token = place.acquire("holder --ttl 1h");
        let late = place.rig.gpuctl("lock acquire nobody --wait 100ms").run();
        late.fails("lock_busy").stderr_has("held by holder");
        let remains = place.remains();
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            for command in ["lock acquire", "start vidi", "prepare-phase 2", "run vidi -- true"] {
                let waiter = place.rig.gpuctl(command).spawn();
                until("it stands in line", || place.waiters() == 1);
                waiter.signal(signal);
                let begun = Instant::now();
                waiter.wait().exits(code).stderr_has("interrupted by signal").stdout("");
                assert!(begun.elapsed() < A_SECOND, "{command}: {:?}", begun.elapsed());
                assert_eq!(place.remains(), remains, "{command}");
            }
        }
        assert_eq!(place.holder().as_deref(), Some("holder"));
        place.release(&token);
        place.acquire("next --no-wait");
    }]);
}

#[test]
fn row_06_the_next_in_line_gets_the_lock_that_an_interrupted_one_was_woken_for() {
    in_both_places([|place| {
        let token = place.acquire("holder --ttl 1h");
        let first = place.waiter("first");
        let second = place.waiter("second");
        first.signal(Signal::STOP);
        place.release(&token);
        first.signal(Signal::INT);
        first.signal(Signal::CONT);
        first.wait().exits(130).stderr_has("interrupted by signal 2").stdout("");
        gets_it(place, second, "second");
        assert_eq!(place.waiters(), 0);
    }]);
}

#[test]
fn row_07_a_wait_ends_on_time() {
    in_both_places([|place| {
        place.acquire("holder --ttl 1h");
        place.rig.set("lock.wait", "1s");
        for (words, seconds) in [("--wait 1500ms", 1.5), ("--wait 300ms", 0.3), ("", 1.0)] {
            let begun = Instant::now();
            let busy = place.rig.gpuctl(&format!("lock acquire {words}")).run();
            let waited = begun.elapsed();
            busy.fails("lock_busy").stderr_has("held by holder").stderr_has("is over").stdout("");
            let wait = Duration::from_secs_f64(seconds);
            assert!(wait <= waited && waited < wait + with_room(0), "{waited:?}");
        }
        assert_eq!(place.waiters(), 0);
    }]);
}

#[test]
fn row_08_who_does_not_want_to_wait_is_told_who_holds_the_lock() {
    in_both_places([|place| {
        let rig = &place.rig;
        let vidi = rig.native("vidi").phases([2]).add();
        rig.native("other").phases([3]).add();
        rig.gpuctl("start other").run().succeeds().stdout_has("started other").progress();
        let token = place.acquire("nightly --ttl 1h");
        for command in [
            "prepare-phase 2 --no-wait",
            "prepare-phase 2 --wait 0",
            "start vidi --no-wait",
            "stop other --no-wait",
            "release-all --no-wait",
            "run --no-wait vidi -- true",
            "lock acquire --no-wait",
        ] {
            let busy = rig.gpuctl(command).run();
            busy.fails("lock_busy").stderr_has("the GPU lock is held by nightly").stdout("");
            let words = command.replacen("wait", "wait --json", 1).replace("--json 0", "0 --json");
            let error = rig.gpuctl(&words).run().fails("lock_busy").json()["error"].clone();
            assert_eq!(error["details"]["holder"], "nightly", "{command}");
            let ttl = error["details"]["ttl"].as_i64().unwrap();
            assert!((3500..=3600).contains(&ttl), "{ttl}");
        }
        for command in ["prepare-phase 2 --dry-run", "start vidi --dry-run", "stop other --dry-run"]
        {
            drop(rig.gpuctl(command).run().succeeds().text());
        }
        rig.assert_no_process_of(&vidi);
        assert_eq!((place.waiters(), place.holder().as_deref()), (0, Some("nightly")));
        place.release(&token);
        rig.gpuctl("start vidi --no-wait").run().succeeds().progress().stdout_has("started vidi");
    }]);
}
