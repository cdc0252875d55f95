//! A companion of a trial: when the trial's gpuctl ends in any way before it has brought production
//! back, the guardian takes over its lock and does it.

use super::ledger::{Journal, Ledger};
use super::maintenance;
use super::restore::{Hands, restore};
use crate::config::{Canary, Config};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::lock::{Guard, Heirloom};
use crate::model::Pid;
use crate::progress::Progress;
use crate::world::companion::{Companion, Heard, Listener};
use crate::world::nvml::Reader;
use crate::world::process;
use rustix::fd::BorrowedFd;
use serde_json::json;
use std::sync::Mutex;

/// The subcommand that it is called with.
const COMMAND: &str = "guardian";

/// Our side of it.
pub struct Guardian {
    companion: Companion,
    pub group: process::Id,
}

impl Guardian {
    /// It keeps the machine's lock by this descriptor, until production is back.
    pub fn start(config: &Config, lock: BorrowedFd) -> Result<Guardian> {
        let path = config.path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let gpu = config.gpu.selector.to_string();
        let mut arguments = vec!["--gpu", &gpu];
        arguments.extend(path.as_deref().map(|path| ["--config", path]).into_iter().flatten());
        let companion = Companion::start(COMMAND, &arguments, Some(lock))?;
        let group = process::Id::of(companion.pid()).ok_or_else(|| {
            Failure::new(Code::Internal, "the guardian, just started, is not in the process table")
        })?;
        Ok(Guardian { companion, group })
    }

    /// Tells the guardian that it is needed from now on, and goes on with this lock.
    pub fn guard(&mut self, lock: Option<Heirloom>) {
        self.companion.tell(&lock);
    }

    pub fn dismiss(self) {
        self.companion.dismiss();
    }
}

/// The other side.
pub fn serve(config: &Config, of: Pid) -> Result<Answer> {
    let mut listener = Listener::new(of)?;
    let mut heirloom = None;
    while let Heard::Message(lock) = listener.next::<Option<Heirloom>>(None)? {
        heirloom = lock;
    }
    let canary = config.canary()?;
    let ledger = Ledger::open(canary)?;
    // Production comes back with the lock or without it.
    let guard = heirloom.and_then(|lock| Guard::adopt(config, &lock).ok().flatten());
    let progress = Progress::silent();
    // Without one, or with another's, there is nothing to bring back.
    let me = std::process::id() as Pid;
    let is_ours = |journal: &Journal| journal.keepers.iter().any(|keeper| keeper.pid == me);
    let restored = match ledger.journal()?.filter(is_ours) {
        None => Ok(true),
        Some(mut journal) => bring_back(config, canary, &ledger, &mut journal, &progress),
    };
    maintenance::clear_stale(canary)?;
    if let Some(guard) = guard {
        guard.release(&progress)?;
    }
    Ok(Answer::from(restored?))
}

/// Tells whether production is back.
fn bring_back(
    config: &Config,
    canary: &Canary,
    ledger: &Ledger,
    journal: &mut Journal,
    progress: &Progress,
) -> Result<bool> {
    let reader = Mutex::new(Reader::open(&config.gpu));
    let hands = Hands { config, canary, ledger, reader: &reader, progress };
    let told = hands.audit(
        journal,
        "guardian_acts",
        json!({"reason": "gpuctl ended in the middle of the trial"}),
    );
    let restored = restore(&hands, journal)?;
    told.map(|()| restored.failure.is_none())
}
