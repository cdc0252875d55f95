//! Carries out the `canary` commands: judges a candidate by arithmetic and tries it if asked to,
//! puts right what an interrupted trial has left, and serves the operator's emergencies.

use super::admission::{admit, note_refusal, predict, route, take_lock_at_once};
use super::candidate::{self, Candidate};
use super::ledger::{Journal, Ledger, owed, refuse_unsettled};
use super::limits::Route;
use super::maintenance;
use super::restore::{Hands, recover};
use super::trial::{Trial, TrialOutcome};
use super::verdict::Prediction;
use crate::config::{Config, Mode};
use crate::error::Result;
use crate::execute::Executor;
use crate::progress::Progress;
use crate::screen::text::span;
use crate::world::host;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Mutex;

/// A candidate and how it is to be judged.
pub struct Candidacy {
    /// The candidate's parameters as they were given.
    pub document: Map<String, Value>,
    pub mode: Mode,
    /// Whether an operator has waived the window and the cooldown (`--now`).
    pub waived: bool,
    /// Whether to answer only if, and where, the candidate would be tried (`--dry-run`).
    pub is_question: bool,
}

impl Candidacy {
    /// Reads a candidate from its file or, without one, from assignments KEY=VALUE.
    pub fn read(
        file: Option<&Path>,
        assigned: &[String],
        mode: Mode,
        config: &Config,
    ) -> Result<Candidacy> {
        let document = match file {
            Some(file) => candidate::read(file),
            None => candidate::assigned(assigned, &config.canary()?.bounds),
        }?;
        Ok(Candidacy { document, mode, waived: false, is_question: false })
    }

    /// Returns the trial's name in the event log: "vllm (canary: vllm_memory_util=0.75)".
    pub fn title(&self, service: &str) -> String {
        format!("{service} ({}: {})", self.mode.name(), candidate::told(&self.document))
    }
}

/// How far a candidate has come.
pub enum Course {
    /// The candidate was judged by arithmetic alone.
    Predicted,
    /// The candidate would be tried on this route; only the question was asked.
    Permitted(Route),
    Tried(Box<TrialOutcome>),
}

/// Judges a candidate by arithmetic and, in the mode `canary`, tries it if it can work.
pub fn conduct(
    asked: &Candidacy,
    config: &Config,
    stop: &Stop,
    progress: &Progress,
) -> Result<(Prediction, Course)> {
    let canary = config.canary()?;
    let candidate = Candidate::new(&asked.document, &canary.bounds);
    let mut reader = Reader::open(&config.gpu);
    let prediction = predict(&candidate, config, canary, &mut reader, stop)?;
    let ledger = Ledger::open(config)?;
    if asked.mode == Mode::Canary && candidate.is_ok() && !prediction.passed {
        // The memory that the candidate lacks may be held by another trial's canary.
        refuse_unsettled(&ledger, canary)?;
    }
    let (Ok(candidate), true, Mode::Canary) = (candidate, prediction.passed, asked.mode) else {
        return Ok((prediction, Course::Predicted));
    };
    let executor = Executor { config, stop, reader: &Mutex::new(reader), progress };
    let hands = Hands { executor, canary, ledger: &ledger };
    let route = route(&hands, &candidate, &prediction)?;
    let admitted = admit(&hands, route, asked.waived);
    if asked.is_question {
        return admitted.map(|()| (prediction, Course::Permitted(route)));
    }
    let guard = admitted.and_then(|()| take_lock_at_once(&hands));
    let guard = guard.inspect_err(|refusal| note_refusal(&hands, &asked.document, refusal))?;
    let executor = Executor { stop: &stop.under(guard.lease()), ..executor };
    let trial = Trial {
        hands: Hands { executor, ..hands },
        candidate: &candidate,
        guard: &guard,
        waived: asked.waived,
        others: prediction.persistent,
        state_dir: config.state_dir()?,
    };
    let outcome = trial.run(route);
    let outcome =
        outcome.inspect_err(|refusal| note_refusal(&trial.hands, &asked.document, refusal))?;
    let released = guard.release(progress);
    // A failure of the trial itself matters more than one of giving the lock back.
    if outcome.failure().is_none() {
        released?;
    }
    Ok((prediction, Course::Tried(Box::new(outcome))))
}

/// Puts right what an interrupted trial has left, and returns a sentence that says what was done.
/// Fails if production does not come back.
pub fn put_right(config: &Config, stop: &Stop, progress: &Progress) -> Result<String> {
    let canary = config.canary()?;
    let ledger = Ledger::open(config)?;
    let reader = Mutex::new(Reader::open(&config.gpu));
    let executor = Executor { config, stop, reader: &reader, progress };
    let hands = Hands { executor, canary, ledger: &ledger };
    let Some(restored) = recover(&hands)? else { return Ok("nothing to recover".to_owned()) };
    let told = format!("{} is back; it was away for {}", canary.service, span(restored.downtime));
    restored.failure.map_or(Ok(told), Err)
}

/// Resets the downtime budget of this night, and returns a sentence that says so.
pub fn reset_budget(config: &Config, stop: &Stop) -> Result<String> {
    let night = config.canary()?.limits.window.night(host::now());
    Ledger::open(config)?.reset_budget(night, stop)?;
    Ok(format!("the budget of {night} has been reset"))
}

/// Releases the GPU lock and removes the maintenance lock's file, even if others hold them, and
/// returns a sentence that says whether there was either. Fails if processes keep the lock.
pub fn unlock(config: &Config, progress: &Progress) -> Result<String> {
    let ledger = Ledger::open(config)?;
    let had = maintenance::unlock(config, config.canary()?, &ledger)?;
    if let Some(journal) = ledger.journal()?.filter(Journal::is_orphaned) {
        progress.warning(&owed(&journal).message);
    }
    Ok(if had { "unlocked" } else { "there was no lock" }.to_owned())
}
