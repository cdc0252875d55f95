//! Debts: a trial that was interrupted has left production away. Everybody is told of it,
//! and production that is back settles it.

use super::ledger::{Journal, Ledger, owed};
use super::maintenance;
use super::restore::{Hands, seconds};
use crate::config::Config;
use crate::error::Result;
use crate::execute::Executor;
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

/// Settles the account of a trial that was interrupted, where production is back without our doing.
/// Whatever keeps it from being settled leaves it to a later call.
pub fn settle_by_itself(config: &Config, stop: &Stop, progress: &Progress) {
    if let Err(failure) = settle(config, stop, progress) {
        log::info!("the trial that was interrupted is not settled: {failure}");
    }
}

fn settle(config: &Config, stop: &Stop, progress: &Progress) -> Result<()> {
    let Ok(canary) = config.canary() else { return Ok(()) };
    let ledger = Ledger::open(config)?;
    let is_left = |journal: &Journal| journal.is_orphaned() && !journal.is_being_put_right();
    let Some(journal) = ledger.journal()?.filter(is_left) else { return Ok(()) };
    let reader = Mutex::new(Reader::open(&config.gpu));
    let executor = Executor { config, stop, reader: &reader, progress };
    let hands = Hands { executor, canary, ledger: &ledger };
    let Some(away) = hands.came_back_after(&journal) else { return Ok(()) };
    // Its canary is ended by who recovers.
    if !journal.canary_processes().is_empty() {
        return Ok(());
    }
    let _locked = ledger.lock(stop)?;
    let is_same = |now: &Journal| now.run_id == journal.run_id && is_left(now);
    if !ledger.journal()?.is_some_and(|now| is_same(&now)) {
        return Ok(());
    }
    ledger.book(journal.night, &journal.run_id, away.as_secs_f64())?;
    let reason = "it was ready again without our doing";
    let facts = json!({"downtime_seconds": seconds(away), "reason": reason});
    hands.audit(&journal, "prod_restored", facts)?;
    ledger.remove_journal()?;
    maintenance::clear_stale(canary)?;
    progress.line(&format!(
        "{} is back after the trial that was interrupted (run {}); it was away for {}",
        journal.service,
        journal.run_id,
        span(away)
    ));
    Ok(())
}
