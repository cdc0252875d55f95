//! `gpuctl status`: shows the memory, the services and the lock.

use crate::canary::ledger::Ledger;
use crate::cli::StatusArgs;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::State;
use crate::observe::Managers;
use crate::report::{Form, print, print_text, prometheus};
use crate::session::{Session, sight};
use crate::world::host;
use crate::world::nvml::Reader;

pub fn run(arguments: &StatusArgs, session: Session) -> Result<Answer> {
    let config = &session.config;
    for name in &arguments.check {
        config.service(name)?;
    }
    if arguments.prometheus && matches!(session.form, Form::Json) {
        let message = "--prometheus and --json cannot be used together";
        return Err(Failure::new(Code::Usage, message).hint("use one or the other"));
    }
    // The managers take longest to answer, so they are asked before anything else.
    let managers = Managers::of_all(config, &session.stop);
    // `status` starts no service, which would inherit this scheduling policy.
    host::give_way();
    let mut reader = Reader::open(&config.gpu);
    let mut report = sight(managers, config, &mut reader, &session.stop, &session.progress)?;
    let is_ready =
        |name: &String| matches!(report.services[name].state, State::Ready | State::Busy);
    let checked = arguments.check.iter().all(is_ready);
    report.checked = (!arguments.check.is_empty()).then_some(checked);
    match &session.form {
        _ if arguments.prometheus => print_text(&prometheus::text(&report, is_owed(config)))?,
        // The exit code is all that was asked for.
        Form::Text(_) if session.quiet && !arguments.check.is_empty() => {}
        form => print(&report, form)?,
    }
    Ok(Answer::from(checked))
}

/// Reports whether production still has to be brought back after an interrupted trial, or `None` if
/// the ledger cannot be read.
fn is_owed(config: &Config) -> Option<bool> {
    let journal = Ledger::open(config).and_then(|ledger| ledger.journal()).ok()?;
    Some(journal.is_some_and(|journal| journal.is_orphaned()))
}
