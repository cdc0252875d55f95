//! Who is to be ended with a native service, and nobody else.

use super::marked;
use crate::error::Result;
use crate::model::{Native, Pid, Service};
use crate::world::command::{self, Output};
use crate::world::process::Table;
use crate::world::wait::Stop;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

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

/// Runs the configured stop command; the processes are waited for afterwards.
pub fn run_stop_command(
    service: &Service,
    native: &Native,
    text: &str,
    stop: &Stop,
) -> Result<Output> {
    command::run_shell(text, &native.env, native.cwd.as_deref(), service.stop_timeout, stop)
}
