//! Debts: a trial that was interrupted has left production away. Commands that act on services warn
//! of the debt, and production that is back settles it.

use super::ledger::{Journal, Ledger, owed};
use super::maintenance;
use super::restore::{Hands, seconds};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::execute::Executor;
use crate::model::Snapshot;
use crate::progress::Progress;
use crate::screen::text::span;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use serde_json::json;
use std::sync::Mutex;

/// Warns the user if an interrupted trial's production has not been brought back.
pub fn tell(config: &Config, progress: &Progress) {
    // The canary's own commands report a ledger that cannot be read.
    let journal = Ledger::open(config).and_then(|ledger| ledger.journal()).ok().flatten();
    if let Some(journal) = journal.filter(Journal::is_orphaned) {
        progress.warning(&owed(&journal).message);
        progress.line("hint: `gpuctl canary recover` puts it right");
    }
}

/// Settles the debt of an interrupted trial if a look finds that production has come back without
/// gpuctl's recovery, and tells the user.
pub fn settle_by_itself(config: &Config, stop: &Stop, progress: &Progress) {
    settle(config, stop, |hands| hands.observe()).iter().for_each(|told| progress.line(told));
}

/// Settles the debt like `settle_by_itself`, but by the snapshot of all services that the caller
/// takes anyway. Returns what to tell the user, or `None` if nothing was settled.
pub fn settle_by(
    config: &Config,
    stop: &Stop,
    seen: impl FnOnce() -> Result<Snapshot>,
) -> Option<String> {
    settle(config, stop, |_| seen())
}

/// Settles the debt if `look` finds production back. Anything that prevents this is only logged,
/// and the debt is left to a later call.
fn settle(
    config: &Config,
    stop: &Stop,
    look: impl FnOnce(&Hands) -> Result<Snapshot>,
) -> Option<String> {
    let unsettled = |failure: &Failure| {
        log::info!("the trial that was interrupted is not settled: {failure}");
    };
    try_to_settle(config, stop, look).inspect_err(unsettled).ok().flatten()
}

fn try_to_settle(
    config: &Config,
    stop: &Stop,
    look: impl FnOnce(&Hands) -> Result<Snapshot>,
) -> Result<Option<String>> {
    let Ok(canary) = config.canary() else { return Ok(None) };
    let ledger = Ledger::open(config)?;
    let is_left = |journal: &Journal| journal.is_orphaned() && !journal.is_being_put_right();
    let Some(journal) = ledger.journal()?.filter(is_left) else { return Ok(None) };
    let reader = Mutex::new(Reader::open(&config.gpu));
    let executor = Executor { config, stop, reader: &reader, progress: &Progress::silent() };
    let hands = Hands { executor, canary, ledger: &ledger };
    let seen = look(&hands)?;
    let Some(away) = hands.came_back_after(&journal, &seen) else { return Ok(None) };
    // A canary that still runs is ended by `gpuctl canary recover`.
    if !journal.canary_processes().is_empty() {
        return Ok(None);
    }
    let _locked = ledger.lock(stop)?;
    let is_same = |now: &Journal| now.run_id == journal.run_id && is_left(now);
    if !ledger.journal()?.is_some_and(|now| is_same(&now)) {
        return Ok(None);
    }
    ledger.book(journal.night, &journal.run_id, away.as_secs_f64())?;
    let reason = "it was ready again without our doing";
    let facts = json!({"downtime_seconds": seconds(away), "reason": reason});
    hands.audit(&journal, "prod_restored", facts)?;
    ledger.remove_journal()?;
    maintenance::clear_stale(canary)?;
    Ok(Some(format!(
        "{} is back after the trial that was interrupted (run {}); it was away for {}",
        journal.service,
        journal.run_id,
        span(away)
    )))
}
