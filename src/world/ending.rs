//! Ending processes, politely first, and waiting until they are gone.

use super::process;
use super::wait::{Handle, Stop, Woken, wait};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::process::Signal;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long a process may take to end after SIGKILL; only one that is stuck in the kernel, in a
/// driver, takes longer.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How the ending of processes begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstMove {
    Term,
    Kill,
    /// No signal at first, because the service's own stop command has asked the processes to end.
    Wait,
}

/// Ends processes with SIGTERM and SIGCONT (unless `first` says otherwise) and, after `limit`, with
/// SIGKILL, until `survivors` finds none: they may have forked meanwhile. Reports whether time ran
/// out and SIGKILL was needed; fails if processes survive even that.
pub fn end(
    name: &str,
    survivors: impl Fn() -> Vec<process::Id>,
    first: FirstMove,
    limit: Duration,
    stop: &Stop,
) -> Result<bool> {
    let mut killing = first == FirstMove::Kill;
    let mut deadline = Instant::now() + if killing { KILL_LIMIT } else { limit };
    let mut signalled: HashSet<(Pid, bool)> = HashSet::new();
    loop {
        let ids = survivors();
        if ids.is_empty() {
            return Ok(killing && first != FirstMove::Kill);
        }
        let handles: Vec<Handle> = ids.iter().filter_map(|id| Handle::of(*id)).collect();
        for handle in &handles {
            let is_due = killing || first == FirstMove::Term;
            if is_due && signalled.insert((handle.pid, killing)) {
                send(name, handle, killing)?;
            }
        }
        match wait_for_all(&handles, stop, deadline) {
            Woken::Event => {}
            Woken::Stopped => stop.check()?,
            Woken::TimedOut if !killing => {
                killing = true;
                deadline = Instant::now() + KILL_LIMIT;
            }
            Woken::TimedOut => {
                let pids: Vec<String> = ids.iter().map(|id| id.pid.to_string()).collect();
                return Err(Failure::new(
                    Code::StopFailed,
                    format!("{name}: still alive after SIGKILL: PID {}", pids.join(", ")),
                )
                .hint("a process that survives SIGKILL is waiting in the kernel, usually for the GPU driver; see `dmesg`")
                .detail("pids", pids));
            }
        }
    }
}

/// Waits until all of these processes have ended, which returns `Woken::Event`, or until `stop` or
/// the deadline comes first.
fn wait_for_all(handles: &[Handle], stop: &Stop, deadline: Instant) -> Woken {
    handles
        .iter()
        .map(|handle| wait(&[handle.fd()], stop, deadline))
        .find(|woken| *woken != Woken::Event)
        .unwrap_or(Woken::Event)
}

fn send(name: &str, handle: &Handle, kill: bool) -> Result<()> {
    let signals: &[Signal] = if kill { &[Signal::KILL] } else { &[Signal::TERM, Signal::CONT] };
    for signal in signals {
        handle.signal(*signal).map_err(|e| {
            Failure::new(
                Code::Permission,
                format!("{name}: cannot signal its process {}: {e}", handle.pid),
            )
            .hint("it belongs to another user; run gpuctl as that user or as root")
        })?;
    }
    Ok(())
}
