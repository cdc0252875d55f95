//! `gpuctl status`.

use super::Session;
use crate::canary::ledger::Ledger;
use crate::cli::StatusArgs;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::lock::{self, Held};
use crate::model::State;
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::report::{Form, StatusReport, print, print_text, prometheus};
use crate::world::nvml::Reader;
use crate::world::wait::{Aside, Stop, wait};
use std::time::{Duration, Instant};

/// Beyond the limits that looking at the lock has itself.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

pub fn run(arguments: &StatusArgs, session: Session) -> Result<Answer> {
    let config = &session.config;
    for name in &arguments.check {
        config.service(name)?;
    }
    if arguments.prometheus && matches!(session.form, Form::Json) {
        let message = "--prometheus and --json cannot be used together";
        return Err(Failure::new(Code::Usage, message).hint("use one or the other"));
    }
    let mut report = look(config, &mut Reader::open(&config.gpu), &session.stop)?;
    let is_ready =
        |name: &String| matches!(report.services[name].state, State::Ready | State::Busy);
    let checked = arguments.check.iter().all(is_ready);
    report.checked = (!arguments.check.is_empty()).then_some(checked);
    match &session.form {
        _ if arguments.prometheus => print_text(&prometheus::text(&report, is_owed(config)))?,
        // The exit code is what was asked for.
        Form::Text(_) if session.quiet && !arguments.check.is_empty() => {}
        form => print(&report, form)?,
    }
    Ok(Answer::from(checked))
}

/// All that there is to see, the lock beside everything else: a server that hangs costs no more
/// than a health check that does.
pub fn look(config: &Config, reader: &mut Reader, stop: &Stop) -> Result<StatusReport> {
    let looking = Aside::begin({
        let config = config.clone();
        move || lock::look(&config)
    })?;
    let mut snapshot = observe(config, reader, stop, &|_| Ask::StateAndJobs)?;
    Notes::keep(config, &snapshot);
    let held = found(&looking, stop);
    if let Ok(Some(held)) = &held {
        snapshot.mark_busy(|service| held.is_for(service));
    }
    Ok(StatusReport::new(config, &snapshot, &held))
}

/// Who holds the lock, as far as its place answers in time.
fn found(looking: &Aside<Result<Option<Held>>>, stop: &Stop) -> Result<Option<Held>> {
    wait(&[looking.ended().fd()], stop, Instant::now() + LOCK_LIMIT);
    let silent = || Err(Failure::new(Code::Unavailable, "the lock is not answering"));
    looking.take().unwrap_or_else(silent)
}

/// Whether production has to be brought back after a trial; `None` where that cannot be told.
fn is_owed(config: &Config) -> Option<bool> {
    let journal = Ledger::open(config).and_then(|ledger| ledger.journal()).ok()?;
    Some(journal.is_some_and(|journal| journal.is_orphaned()))
}
