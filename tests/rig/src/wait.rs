//! Waiting until something happens by itself. Nothing here sleeps for a fixed time and hopes.

use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything: enough for a loaded machine, and limited only so that a broken build
/// does not wait for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns a bound of the contract, in seconds, plus the 10 s that a machine with other things to
/// do may add to it. Tests assert no other times.
pub const fn with_room(seconds: u64) -> Duration {
    Duration::from_secs(seconds + 10)
}

/// Waits until `done` returns true; fails the test, naming `what`, if it never does.
#[track_caller]
pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(comes(done), "waited {PATIENCE:?} in vain until {what}");
}

/// Waits until `done` returns true; if it never does, returns `false` instead of panicking as
/// `until` does.
pub fn comes(mut done: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !done() {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}
