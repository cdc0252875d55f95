//! `gpuctl canary`: a changed configuration of production, judged and tried.

use super::Session;
use crate::canary::admission::{admit, note_refusal, predict, route, take_lock_at_once};
use crate::canary::candidate::{self, Candidate};
use crate::canary::ledger::{Ledger, owed, refuse_unsettled};
use crate::canary::maintenance;
use crate::canary::restore::{Hands, recover as put_right};
use crate::canary::trial::Trial;
use crate::cli::{self, CanaryMode, CanaryRunArgs};
use crate::config::{Canary, Mode};
use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::lock;
use crate::report::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport, print};
use crate::screen::text::span;
use crate::world::host;
use crate::world::nvml::Reader;
use serde_json::{Map, Value};
use std::sync::Mutex;

pub fn run(command: &cli::CanaryCommand, session: Session) -> Result<Answer> {
    match command {
        cli::CanaryCommand::Check(arguments) => check(&arguments.candidate, &session),
        cli::CanaryCommand::Run(arguments) if arguments.dry_run.dry_run => {
            trial(arguments, &session)
        }
        cli::CanaryCommand::Run(arguments) => {
            recorded("canary run", session, |session| trial(arguments, session))
        }
        cli::CanaryCommand::Status => status(&session),
        cli::CanaryCommand::Recover => recorded("canary recover", session, recover),
        cli::CanaryCommand::ResetBudget => reset_budget(&session),
        cli::CanaryCommand::Unlock(_) => unlock(&session),
    }
}

fn recorded(
    command: &str,
    session: Session,
    work: impl FnOnce(&Session) -> Result<Answer>,
) -> Result<Answer> {
    let service = session.config.canary()?.service.clone();
    session.recorded(command, &service, |session| work(&session))
}

/// The candidate's parameters as they were given.
fn document(arguments: &cli::CandidateArgs, canary: &Canary) -> Result<Map<String, Value>> {
    match &arguments.candidate {
        Some(path) => candidate::read(path),
        None => candidate::assigned(&arguments.set, &canary.bounds),
    }
}

fn check(arguments: &cli::CandidateArgs, session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let document = document(arguments, canary)?;
    let candidate = Candidate::new(&document, &canary.bounds);
    let mut reader = Reader::open(&session.config.gpu);
    let verdict = predict(&candidate, &session.config, canary, &mut reader, &session.stop)?;
    print(&VerdictReport::new(&verdict, Mode::Predictive, &document), &session.form)?;
    Ok(Answer::from(verdict.passed))
}

fn trial(arguments: &CanaryRunArgs, session: &Session) -> Result<Answer> {
    let (config, progress) = (&session.config, &session.progress);
    let canary = config.canary()?;
    let mode = match arguments.mode {
        Some(CanaryMode::Predictive) => Mode::Predictive,
        Some(CanaryMode::Canary) => Mode::Canary,
        None => canary.mode,
    };
    let document = document(&arguments.candidate, canary)?;
    let candidate = Candidate::new(&document, &canary.bounds);
    let mut reader = Reader::open(&config.gpu);
    let verdict = predict(&candidate, config, canary, &mut reader, &session.stop)?;
    let ledger = Ledger::open(canary)?;
    if mode == Mode::Canary && candidate.is_ok() && !verdict.passed {
        // What it does not fit beside may be another trial's canary.
        refuse_unsettled(&ledger, canary)?;
    }
    let (Ok(candidate), true, Mode::Canary) = (candidate, verdict.passed, mode) else {
        print(&VerdictReport::new(&verdict, mode, &document), &session.form)?;
        return Ok(Answer::from(verdict.passed));
    };
    let hands = Hands { config, canary, ledger: &ledger, reader: &Mutex::new(reader), progress };
    let route = route(&hands, &candidate, &verdict)?;
    let admitted = admit(&hands, route, arguments.now, &session.stop);
    if arguments.dry_run.dry_run {
        admitted?;
        print(&VerdictReport::new(&verdict, mode, &document).on(route), &session.form)?;
        return Ok(Answer::Yes);
    }
    let guard = admitted.and_then(|()| take_lock_at_once(&hands, &session.stop));
    let guard = guard.inspect_err(|refusal| note_refusal(&hands, &document, refusal))?;
    let trial = Trial {
        hands,
        candidate: &candidate,
        guard: &guard,
        stop: &session.stop.under(guard.lease()),
        waived: arguments.now,
        others: verdict.persistent,
        state_dir: config.state_dir()?,
    };
    let outcome = trial.run(route);
    let outcome = outcome.inspect_err(|refusal| note_refusal(&trial.hands, &document, refusal))?;
    let released = guard.release(progress);
    let report = CanaryRunReport::new(&verdict, mode, &document, &outcome);
    if let Some(failure) = outcome.failure() {
        return Err(failure.detail("canary", serde_json::to_value(&report).map_err(Failure::bug)?));
    }
    released?;
    print(&report, &session.form)?;
    Ok(Answer::from(outcome.has_passed()))
}

fn status(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let ledger = Ledger::open(canary)?;
    let held = lock::look(&session.config);
    let report = CanaryStatusReport::new(&session.config, canary, &ledger, &held, host::now())?;
    print(&report, &session.form)?;
    Ok(Answer::Yes)
}

fn recover(session: &Session) -> Result<Answer> {
    let (config, progress) = (&session.config, &session.progress);
    let canary = config.canary()?;
    let ledger = Ledger::open(canary)?;
    let reader = Mutex::new(Reader::open(&config.gpu));
    let hands = Hands { config, canary, ledger: &ledger, reader: &reader, progress };
    let told = match put_right(&hands, &session.stop)? {
        None => "nothing to recover".to_owned(),
        Some(restored) => {
            if let Some(failure) = restored.failure {
                return Err(failure);
            }
            format!("{} is back; it was away for {}", canary.service, span(restored.downtime))
        }
    };
    print(&DoneReport::new(&told), &session.form)?;
    Ok(Answer::Yes)
}

fn reset_budget(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let night = canary.limits.window.night(host::now());
    Ledger::open(canary)?.reset_budget(night, &session.stop)?;
    print(&DoneReport::new(&format!("the budget of {night} has been reset")), &session.form)?;
    Ok(Answer::Yes)
}

fn unlock(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let ledger = Ledger::open(canary)?;
    let had = maintenance::unlock(&session.config, canary, &ledger)?;
    let told = if had { "unlocked" } else { "there was no lock" };
    print(&DoneReport::new(told), &session.form)?;
    if let Some(journal) = ledger.journal()?.filter(|journal| journal.is_orphaned()) {
        session.progress.warning(&owed(&journal).message);
    }
    Ok(Answer::Yes)
}
