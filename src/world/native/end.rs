//! Ending a native service, and nobody else.

use super::marked;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Native, Pid, Service};
use crate::world::command::{self, Output};
use crate::world::processes::Table;
use crate::world::wait::{Handle, Stop, Woken, wait};
use rustix::process::Signal;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// From SIGKILL to gone; longer only when the kernel is stuck in a driver.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Processes that are to be ended, and what they leave behind.
pub struct Targets<'a> {
    service: &'a str,
    config: Option<&'a Path>,
    /// With the time of their start, by which a reused PID is told from its former owner.
    started: HashMap<Pid, Duration>,
}

impl<'a> Targets<'a> {
    pub fn new(service: &'a str, config: Option<&'a Path>, pids: &[Pid]) -> Targets<'a> {
        let table = Table::read();
        let started =
            pids.iter().filter_map(|pid| Some((*pid, table.get(*pid)?.started))).collect();
        Targets { service, config, started }
    }

    /// Those that live, everything in their families, and whatever else bears the mark.
    pub fn survivors(&self) -> Vec<Pid> {
        let table = Table::read();
        let callers = table.callers();
        let is_reused = |(pid, started): &(&Pid, &Duration)| {
            table.get(**pid).is_some_and(|process| process.started != **started)
        };
        let mut roots: HashSet<Pid> =
            self.started.iter().filter(|target| !is_reused(target)).map(|(pid, _)| *pid).collect();
        roots.extend(marked(&table, self.config).remove(self.service).unwrap_or_default());
        table.families(&roots).into_iter().filter(|pid| !callers.contains(pid)).collect()
    }
}

/// How the end of a service begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstMove {
    Term,
    Kill,
    /// It has been asked by its own stop command.
    Wait,
}

/// Ends processes and all that they have started: TERM and CONT, then after `limit` KILL.
/// What they have forked meanwhile is looked for again until nobody is left. Tells whether time
/// ran out and KILL was needed.
pub fn end(targets: &Targets, first: FirstMove, limit: Duration, stop: &Stop) -> Result<bool> {
    let service = targets.service;
    let mut killing = first == FirstMove::Kill;
    let mut deadline = Instant::now() + if killing { KILL_LIMIT } else { limit };
    let mut signalled: HashSet<(Pid, bool)> = HashSet::new();
    loop {
        let pids = targets.survivors();
        if pids.is_empty() {
            return Ok(killing && first != FirstMove::Kill);
        }
        let handles: Vec<Handle> = pids.iter().filter_map(|pid| Handle::open(*pid)).collect();
        for handle in &handles {
            let is_due = killing || first == FirstMove::Term;
            if is_due && signalled.insert((handle.pid, killing)) {
                send(service, handle, killing)?;
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
                let pids: Vec<String> = pids.iter().map(Pid::to_string).collect();
                return Err(Failure::new(
                    Code::StopFailed,
                    format!("{service}: still alive after SIGKILL: PID {}", pids.join(", ")),
                )
                .hint("a process that SIGKILL does not end waits in the kernel, mostly for the GPU driver; see `dmesg`")
                .detail("pids", pids));
            }
        }
    }
}

/// Sleeps until every one of them has ended, or it is time for something else.
fn wait_for_all(handles: &[Handle], stop: &Stop, deadline: Instant) -> Woken {
    handles
        .iter()
        .map(|handle| wait(&[handle.fd()], stop, deadline))
        .find(|woken| *woken != Woken::Event)
        .unwrap_or(Woken::Event)
}

fn send(service: &str, handle: &Handle, kill: bool) -> Result<()> {
    let signals: &[Signal] = if kill { &[Signal::KILL] } else { &[Signal::TERM, Signal::CONT] };
    for signal in signals {
        handle.signal(*signal).map_err(|e| {
            Failure::new(
                Code::Permission,
                format!("{service}: cannot signal its process {}: {e}", handle.pid),
            )
            .hint("it belongs to another user; run gpuctl as that user or as root")
        })?;
    }
    Ok(())
}

/// Runs the configured stop command; the processes are waited for afterwards.
pub fn run_stop_command(
    service: &Service,
    native: &Native,
    text: &str,
    stop: &Stop,
) -> Result<Output> {
    command::run_shell(text, &native.env, native.cwd.as_deref(), service.stop_timeout, stop)
}
