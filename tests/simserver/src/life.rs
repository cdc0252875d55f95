//! What ends the server: a signal, its own clock, a failure, or the end of the test that it belongs
//! to.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::{Args, Misbehaviour};

/// Why the server ends, and how.
pub enum Ending {
    /// A signal, SIGTERM or SIGINT, has asked the server to end, which it does with exit code 0
    /// after it has ended its child processes.
    Asked,
    Failed(String),
    Exit(u8),
    Signal(i32),
}

/// Starts the threads that send to `endings` when the server is to end.
pub fn watch(args: &Args, begin: Instant, endings: &Sender<Ending>) -> io::Result<()> {
    watch_signals(args.misbehaviour.ignore_term, endings.clone())?;
    watch_clock(&args.misbehaviour, begin, endings.clone());
    watch_folder(endings.clone());
    Ok(())
}

/// Ends this process by a signal, as if no handler were installed for it.
pub fn die_by(signal: i32) -> io::Result<()> {
    signal_hook::low_level::emulate_default_handler(signal)
}

fn watch_signals(ignore: bool, endings: Sender<Ending>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for _ in signals.forever().filter(|_| !ignore) {
            endings.send(Ending::Asked).ok();
        }
    });
    Ok(())
}

fn watch_clock(misbehaviour: &Misbehaviour, begin: Instant, endings: Sender<Ending>) {
    let ending =
        || misbehaviour.die_by.map_or(Ending::Exit(misbehaviour.exit_code), Ending::Signal);
    if let Some(after) = misbehaviour.exit_after {
        let ending = ending();
        thread::spawn(move || {
            thread::sleep(after.saturating_sub(begin.elapsed()));
            endings.send(ending).ok();
        });
    }
}

/// Ends the server when the folder of its test is removed, so that a server that escapes its test,
/// as some do by design, ends too.
fn watch_folder(endings: Sender<Ending>) {
    if let Some(dir) = env::var_os("SIMGPU_DIR") {
        thread::spawn(move || {
            while std::fs::exists(&dir).unwrap_or(true) {
                thread::sleep(Duration::from_millis(500));
            }
            endings.send(Ending::Exit(0)).ok();
        });
    }
}
