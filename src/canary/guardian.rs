//! The guardian, a companion of a trial. If the trial's gpuctl ends in any way before it has
//! brought production back, or is stopped or stuck beyond its time, the guardian takes over its
//! lock and brings production back.

use super::ledger::{Journal, Ledger};
use super::maintenance;
use super::restore::{Hands, restore};
use crate::config::{Canary, Config};
use crate::error::{Failure, Result};
use crate::execute::Executor;
use crate::exit::{Answer, Code};
use crate::lock::{Guard, Heirloom};
use crate::model::Pid;
use crate::progress::Progress;
use crate::world::clock::SinceBoot;
use crate::world::companion::{Companion, Heard, Listener};
use crate::world::nvml::Reader;
use crate::world::process;
use crate::world::wait::{Handle, LATE, Stop};
use rustix::fd::BorrowedFd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Subcommand with which gpuctl is started as a guardian.
const COMMAND: &str = "guardian";

/// How much later than announced a trial may report before it counts as stuck: the machine may have
/// other work to do.
const LITTLE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
enum Notice {
    /// The guardian is needed from now on, and is to take over this lock in Redis, if there is one.
    Lock(Option<Heirloom>),
    /// The trial counts as stuck if nothing more is heard from it by this time since boot.
    Until(SinceBoot),
}

/// The trial's connection to its guardian.
pub struct Guardian {
    companion: Mutex<Companion>,
    /// The guardian's process.
    pub group: process::Id,
}

impl Guardian {
    /// Starts the guardian, which keeps the machine's lock by the descriptor `lock` until
    /// production is back.
    pub fn start(config: &Config, lock: BorrowedFd) -> Result<Guardian> {
        let arguments = config.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let companion = Companion::start(COMMAND, &arguments, Some(lock))?;
        let group = process::Id::of(companion.pid()).ok_or_else(|| {
            Failure::new(Code::Internal, "the guardian, just started, is not in the process table")
        })?;
        Ok(Guardian { companion: Mutex::new(companion), group })
    }

    /// Tells the guardian that it is needed from now on, and which lock in Redis to take over.
    pub fn guard(&self, lock: Option<Heirloom>) {
        self.tell(&Notice::Lock(lock));
    }

    /// Tells the guardian to act unless it hears from the trial again within this time and a little
    /// more.
    pub fn expect(&self, within: Duration) {
        self.tell(&Notice::Until(SinceBoot::now() + within + LITTLE));
    }

    fn tell(&self, notice: &Notice) {
        self.companion.lock().unwrap_or_else(PoisonError::into_inner).tell(notice);
    }

    /// Ends the guardian, which is needed no more, before it acts.
    pub fn dismiss(self) {
        self.companion.into_inner().unwrap_or_else(PoisonError::into_inner).dismiss();
    }
}

/// Runs as the guardian of the trial whose gpuctl is the process `of`: waits until that process
/// ends, or kills it once it is stuck, and restores production. The answer is yes if production is
/// back.
pub fn serve(config: &Config, of: Pid) -> Result<Answer> {
    let trial = process::Id::of(of);
    let mut listener = Listener::new(of)?;
    let (mut heirloom, mut until) = (None, None);
    let why = loop {
        match listener.next(until)? {
            Heard::Message(Notice::Lock(lock)) => heirloom = lock,
            Heard::Message(Notice::Until(time)) => until = Some(time),
            // Waking so late means that the machine slept or this process was stopped. The trial
            // may have been stopped with it, and gets a moment to report.
            Heard::TimedOut if until.is_some_and(|until| (until + LATE).has_come()) => {
                until = Some(SinceBoot::now() + LITTLE);
            }
            Heard::Gone => break "gpuctl ended in the middle of the trial",
            Heard::TimedOut => {
                end_stuck(trial);
                break "gpuctl was stopped or stuck in the middle of the trial, and has been killed";
            }
        }
    };
    let canary = config.canary()?;
    let ledger = Ledger::open(config)?;
    // Production is brought back even if the lock cannot be taken over.
    let guard = heirloom.and_then(|lock| Guard::adopt(config, &lock).ok().flatten());
    let progress = Progress::silent();
    // Without a journal, or with another trial's, there is nothing to bring back.
    let me = std::process::id() as Pid;
    let is_ours = |journal: &Journal| journal.keepers.iter().any(|keeper| keeper.pid == me);
    let restored = match ledger.journal()?.filter(is_ours) {
        None => Ok(true),
        Some(mut journal) => bring_back(config, canary, &ledger, &mut journal, why, &progress),
    };
    maintenance::clear_stale(canary)?;
    if let Some(guard) = guard {
        guard.release(&progress)?;
    }
    Ok(Answer::from(restored?))
}

/// Kills the gpuctl of the trial, this process's parent. Its end is not waited for: while the
/// kernel holds it in a driver, it does nothing more either.
fn end_stuck(trial: Option<process::Id>) {
    if let Some(handle) = trial.and_then(Handle::of) {
        let _ = handle.signal(Signal::KILL);
    }
}

/// Restores production, notes in the audit why, and reports whether production is back.
fn bring_back(
    config: &Config,
    canary: &Canary,
    ledger: &Ledger,
    journal: &mut Journal,
    why: &str,
    progress: &Progress,
) -> Result<bool> {
    let reader = Mutex::new(Reader::open(&config.gpu));
    let executor = Executor { config, stop: &Stop::never(), reader: &reader, progress };
    let hands = Hands { executor, canary, ledger };
    let told = hands.audit(journal, "guardian_acts", json!({"reason": why}));
    let restored = restore(&hands, journal, None, &|_| {})?;
    told.map(|()| restored.failure.is_none())
}
