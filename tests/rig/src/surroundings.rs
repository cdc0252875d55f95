//! What a process inherits from the tester's shell besides its environment, and what the tests start is not to have.

use rustix::fs::Mode;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

/// Gives all that is started from now on the umask and the signals of a fresh login: as `nohup`, or a shell that starts a
/// job in the background, have them ignored, a service would ignore them too. The mask of blocked signals is emptied by
/// `Command`.
pub fn leave() {
    static LEFT: Once = Once::new();
    LEFT.call_once(|| {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        for signal in ignored_signals() {
            // This process goes on ignoring it, by a handler, which a program that it starts does not inherit. A few cannot
            // have one.
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
