//! What a process inherits from the tester's shell besides its environment, and what processes that
//! the tests start must not have.

use rustix::fs::Mode;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

/// Gives everything that is started from now on the umask and the signals of a fresh login. Signals
/// that `nohup`, or a shell that starts a job in the background, makes a process ignore would be
/// ignored by services too. `Command` already empties the mask of blocked signals.
pub fn leave() {
    static LEFT: Once = Once::new();
    LEFT.call_once(|| {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        for signal in ignored_signals() {
            // A handler makes this process go on ignoring the signal, and is not inherited by the
            // programs that it starts. A few signals cannot have one.
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).ok();
        }
    });
}

fn ignored_signals() -> Vec<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    (1..32).filter(|signal| mask >> (signal - 1) & 1 == 1).collect()
}
