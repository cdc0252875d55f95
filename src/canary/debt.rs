//! Debts: a trial that was interrupted has left production away. Everybody is told of it,
//! and production that is back settles it.

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

/// Tells that production has not been brought back, where it has not.
pub fn tell(config: &Config, progress: &Progress) {
    // A ledger that cannot be read is told of by the canary's own commands.
    let journal = Ledger::open(config).and_then(|ledger| ledger.journal()).ok().flatten();
    if let Some(journal) = journal.filter(Journal::is_orphaned) {
        progress.warning(&owed(&journal).message);
        progress.line("hint: `gpuctl canary recover` puts it right");
    }
}

/// Settles the account of a trial that was interrupted, where a look finds production back without our
/// doing, and tells that.
pub fn settle_by_itself(config: &Config, stop: &Stop, progress: &Progress) {
    settle(config, stop, |hands| hands.observe()).iter().for_each(|told| progress.line(told));
}

/// Does so by what the call has seen of all services anyway, and returns what there is to tell.
pub fn settle_by(
    config: &Config,
    stop: &Stop,
    seen: impl FnOnce() -> Result<Snapshot>,
) -> Option<String> {
    settle(config, stop, |_| seen())
}

/// Whatever keeps it from being settled leaves it to a later call.
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
    // Its canary is ended by who recovers.
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
