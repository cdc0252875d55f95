//! Watches how much memory a command and the services hold at most while the command runs, with a
//! look every second.

use super::Executor;
use crate::model::{Mb, Pid, Vram};
use crate::notes::{Notes, RunSeen};
use crate::observe::{Ask, gpu_pids};
use crate::world::clock::SinceBoot;
use crate::world::process;
use crate::world::wait::{Event, Stop, wait};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Time until the first look. What a shorter command holds is not seen.
const FIRST: Duration = Duration::from_millis(200);
const INTERVAL: Duration = Duration::from_secs(1);

/// What a process on the card belongs to.
enum Holding {
    Service(String),
    Command,
}

/// A watch of the memory that a command and the services hold while the command runs.
pub struct NeedWatch<'a> {
    pub executor: Executor<'a>,
    /// Returns the processes that the command consists of.
    pub command: &'a (dyn Fn() -> Vec<process::Id> + Sync),
}

impl NeedWatch<'_> {
    /// Watches until `over` happens, which also cuts a look short, and returns what was seen.
    pub fn watch(&self, over: &Arc<Event>) -> RunSeen {
        let stop = Stop::never().or(over);
        let mut seen =
            RunSeen { sampled: Notes::read(self.executor.config).sampled(), ..RunSeen::default() };
        let (mut known, mut holdings) = (HashSet::new(), HashMap::new());
        let mut due = Instant::now() + FIRST;
        loop {
            wait(&[], &stop, due);
            if over.happened() {
                return seen;
            }
            let Ok(vram) = self.read(seen.sampled) else { return seen };
            let pids = gpu_pids(&vram);
            if pids != known {
                // Asking all managers costs more, and is needed only when the processes on the card
                // have changed.
                let Some(found) = self.look(&stop) else { return seen };
                (known, holdings) = (pids, found);
            }
            add(&mut seen, &vram, &holdings);
            due = Instant::now() + INTERVAL;
        }
    }

    fn read(&self, since: Timestamp) -> std::result::Result<Vram, String> {
        self.executor.reader.lock().unwrap_or_else(PoisonError::into_inner).read_use(since)
    }

    fn look(&self, stop: &Stop) -> Option<HashMap<Pid, Holding>> {
        let executor = Executor { stop, ..self.executor };
        let snapshot = executor.look(&|_| Ask::Nothing).ok()?;
        let command: HashSet<Pid> = (self.command)().iter().map(|id| id.pid).collect();
        let processes = snapshot.vram.processes.into_iter().flatten();
        let held = processes.filter_map(|process| {
            let is_commands = command.contains(&process.pid).then_some(Holding::Command);
            Some((process.pid, process.service.map(Holding::Service).or(is_commands)?))
        });
        Some(held.collect())
    }
}

fn add(seen: &mut RunSeen, vram: &Vram, holdings: &HashMap<Pid, Holding>) {
    let (mut command, mut services) = (None, HashMap::<&str, Mb>::new());
    for process in vram.processes.iter().flatten() {
        let held = process.memory.unwrap_or_default();
        match holdings.get(&process.pid) {
            Some(Holding::Command) => {
                command = Some(command.unwrap_or_default() + held);
                seen.command = seen.command.max(process.peak);
            }
            Some(Holding::Service(name)) => {
                let sum = services.entry(name).or_default();
                *sum = *sum + held;
                seen.hold(name, process.peak);
                if process.works == Some(true) {
                    seen.worked.insert(name.clone(), SinceBoot::now());
                }
            }
            None => {}
        }
    }
    seen.command = seen.command.max(command);
    services.iter().for_each(|(name, held)| seen.hold(name, Some(*held)));
    seen.sampled = vram.sampled.unwrap_or(seen.sampled);
}
