//! Waiting for what comes by itself. Nothing here sleeps for a fixed time and hopes.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; it only keeps a broken build from waiting for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// A bound of the contract, and what a machine that has other things to do may add to it. Tests assert no other times.
pub const fn with_room(seconds: u64) -> Duration {
    Duration::from_secs(seconds + 10)
}

/// Watches until `done` says so; fails the test, naming `what`, when it never does.
#[track_caller]
pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(comes(done), "waited {PATIENCE:?} in vain until {what}");
}

/// As `until`, for where one must not panic.
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
