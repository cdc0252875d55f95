//! The look at everything: services, card and lock.

use crate::canary::debt;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::lock::{self, Held};
use crate::notes::Notes;
use crate::observe::{Ask, Managers, observe_by};
use crate::progress::Progress;
use crate::report::StatusReport;
use crate::world::nvml::Reader;
use crate::world::wait::{Aside, Stop};
use std::time::{Duration, Instant};

/// How long to wait for the look at the lock after everything else has been seen. That look has
/// shorter limits of its own.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Looks at the services and the card, and at the lock beside them: a Redis server that hangs costs
/// no more time than a health check that does. If production is back, the debt of its trial is
/// settled.
pub fn sight(
    managers: Managers,
    config: &Config,
    reader: &mut Reader,
    stop: &Stop,
    progress: &Progress,
) -> Result<StatusReport> {
    let looking = Aside::begin({
        let config = config.clone();
        move || lock::look(&config)
    })?;
    let mut snapshot = observe_by(managers, config, reader, stop, &|_| Ask::StateAndJobs)?;
    Notes::keep(config, &snapshot);
    let settled = debt::settle_by(config, stop, || Ok(snapshot.clone()));
    settled.iter().for_each(|told| progress.line(told));
    let held = found(&looking, stop);
    if let Ok(Some(held)) = &held {
        snapshot.mark_busy(|service| held.is_for(service));
    }
    Ok(StatusReport::new(config, &snapshot, &held))
}

/// Returns who holds the lock. Fails if the place of the lock does not answer in time.
fn found(looking: &Aside<Result<Option<Held>>>, stop: &Stop) -> Result<Option<Held>> {
    let silent = || Err(Failure::new(Code::Unavailable, "the lock is not answering"));
    looking.result_by(stop, Instant::now() + LOCK_LIMIT).unwrap_or_else(silent)
}
