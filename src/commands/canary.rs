//! `gpuctl canary`: a changed configuration of production, judged and tried.

use super::Session;
use crate::canary::candidate::{self, Candidate};
use crate::canary::ledger::{Ledger, later, owed};
use crate::canary::limits::Path;
use crate::canary::look::{has_room, predict, refuse_unready};
use crate::canary::maintenance;
use crate::canary::restore::{Hands, restore};
use crate::canary::trial::{Trial, refuse_unsettled};
use crate::cli::{self, CanaryMode, CanaryRun};
use crate::config::{Canary, Mode};
use crate::error::{Failure, Result as Fallible};
use crate::exit::{Answer, Code};
use crate::lock::{self, Guard, Purpose};
use crate::report::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport, print};
use crate::world::host;
use crate::world::nvml::Reader;
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

/// A candidate is a handful of parameters.
const CANDIDATE_LIMIT: u64 = 1024 * 1024;

pub fn run(command: &cli::Canary, session: Session) -> Result<Answer> {
    match command {
        cli::Canary::Check(arguments) => check(&arguments.candidate, &session),
        cli::Canary::Run(arguments) if arguments.dry_run.dry_run => trial(arguments, session),
        cli::Canary::Run(arguments) => {
            recorded("canary run", session, |session| trial(arguments, session))
        }
        cli::Canary::Status => status(&session),
        cli::Canary::Recover => recorded("canary recover", session, |session| recover(&session)),
        cli::Canary::ResetBudget => reset_budget(&session),
        cli::Canary::Unlock(_) => unlock(&session),
    }
}

fn recorded(
    command: &str,
    session: Session,
    work: impl FnOnce(Session) -> Result<Answer>,
) -> Result<Answer> {
    let service = session.config.canary()?.service.clone();
    session.recorded(command, &service, work)
}

fn check(arguments: &cli::Candidate, session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let document = document(arguments, canary)?;
    let candidate = Candidate::new(&document, &canary.bounds);
    let mut reader = Reader::open(&session.config.gpu);
    let verdict = predict(&candidate, &session.config, canary, &mut reader, &session.stop)?;
    print(&VerdictReport::new(&verdict, Mode::Predictive, &document), &session.form)?;
    Ok(Answer::from(verdict.passed))
}

fn trial(arguments: &CanaryRun, mut session: Session) -> Result<Answer> {
    let canary = session.config.canary()?.clone();
    let mode = match arguments.mode {
        Some(CanaryMode::Predictive) => Mode::Predictive,
        Some(CanaryMode::Canary) => Mode::Canary,
        None => canary.mode,
    };
    let document = document(&arguments.candidate, &canary)?;
    let candidate = Candidate::new(&document, &canary.bounds);
    let mut reader = Reader::open(&session.config.gpu);
    let verdict = predict(&candidate, &session.config, &canary, &mut reader, &session.stop)?;
    let ledger = Ledger::open(&canary)?;
    let config = session.config.clone();
    let progress = session.progress.clone();
    let reader = Mutex::new(reader);
    let hands = Hands {
        config: &config,
        canary: &canary,
        ledger: &ledger,
        reader: &reader,
        progress: &progress,
    };
    if mode == Mode::Canary && candidate.is_ok() && !verdict.passed {
        // What it does not fit beside may be another trial's canary.
        refuse_unsettled(&hands)?;
    }
    let (Ok(candidate), true, Mode::Canary) = (candidate, verdict.passed, mode) else {
        print(&VerdictReport::new(&verdict, mode, &document), &session.form)?;
        return Ok(Answer::from(verdict.passed));
    };
    candidate
        .command(&canary.start, canary.port, &canary.model)
        .map_err(|problem| Failure::new(Code::Config, problem))?;
    let spare = canary.spare_gpu.filter(|device| has_room(*device, &candidate, &verdict, &hands));
    let path = if spare.is_some() { Path::Spare } else { Path::Quiesced };
    let permitted = (|| {
        refuse_unsettled(&hands)?;
        maintenance::refuse_held(&canary)?;
        hands.permit(path, arguments.now)?;
        refuse_unready(&hands, &session.stop, path)
    })();
    if arguments.dry_run.dry_run {
        permitted?;
        print(&VerdictReport::new(&verdict, mode, &document).on(path), &session.form)?;
        return Ok(Answer::Yes);
    }
    let services = [canary.service.clone()];
    let purpose = Purpose {
        holder: "canary",
        services: &services,
        patience: Duration::ZERO,
        margin: Duration::ZERO,
    };
    let guard = permitted.and_then(|()| {
        Guard::take(&config, &purpose, &session.stop, &progress).map_err(come_again)
    });
    let guard = guard.inspect_err(|refusal| note_refusal(&hands, &document, refusal))?;
    session.stop = session.stop.under(guard.lease());
    let trial = Trial {
        hands,
        candidate: &candidate,
        guard: &guard,
        stop: &session.stop,
        waived: arguments.now,
        others: verdict.persistent,
        state_dir: config.state_dir()?,
    };
    let outcome = match spare {
        Some(device) => trial.spare(device),
        None => trial.quiesced(),
    };
    let outcome = outcome.inspect_err(|refusal| note_refusal(&trial.hands, &document, refusal))?;
    let released = guard.release(&progress);
    let report = CanaryRunReport::new(&verdict, mode, &document, &outcome);
    if let Some(failure) = outcome.restored.and_then(|restored| restored.failure) {
        let message = format!("{} has not come back: {}", canary.service, failure.message);
        bail!(
            Failure { code: Code::StartFailed, message, ..failure }
                .hint("`gpuctl canary recover` tries again")
                .detail("canary", serde_json::to_value(&report)?)
        );
    }
    if let Some(failure) = outcome.broken_off {
        bail!(failure.detail("canary", serde_json::to_value(&report)?));
    }
    released?;
    print(&report, &session.form)?;
    Ok(Answer::from(outcome.tested.rejection.is_none()))
}

/// A trial does not wait for the lock: its refusal says when the lock ends by itself.
fn come_again(refusal: Failure) -> Failure {
    let left = refusal.details.get("ttl").and_then(Value::as_u64).map(Duration::from_secs);
    match (refusal.code, left) {
        (Code::LockBusy, Some(left)) => {
            let hints = vec!["come again when it is free; `gpuctl lock status` says so".to_owned()];
            Failure { hints, ..refusal }.detail("next", later(left))
        }
        _ => refusal,
    }
}

/// A refusal belongs into the audit; that it cannot be written there changes nothing.
fn note_refusal(hands: &Hands, document: &Map<String, Value>, refusal: &Failure) {
    let night = hands.canary.limits.window.night(host::now());
    let facts = json!({
        "run_id": null,
        "candidate_id": candidate::id(document),
        "budget_used": hands.ledger.used(night).ok(),
        "reason": format!("{}: {}", refusal.code.name(), refusal.message),
    });
    let facts = facts.as_object().cloned().unwrap_or_default();
    if let Err(failure) = hands.ledger.audit(night, "refused", facts) {
        hands.progress.warning(&format!("the refusal is missing in the audit: {failure}"));
    }
}

/// The candidate's parameters as they were given.
fn document(arguments: &cli::Candidate, canary: &Canary) -> Fallible<Map<String, Value>> {
    let wrong = |problem: String| Failure::new(Code::Usage, problem);
    let Some(path) = &arguments.candidate else {
        let mut document = Map::new();
        for assignment in &arguments.set {
            candidate::set(&mut document, assignment, &canary.bounds)
                .map_err(|e| wrong(format!("--set: {e}")))?;
        }
        return Ok(document);
    };
    let shown = path.display();
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(CANDIDATE_LIMIT).read_to_string(&mut text),
        false => fs::File::open(path)
            .and_then(|file| file.take(CANDIDATE_LIMIT).read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::new(Code::Io, format!("the candidate {shown} cannot be read: {e}")))?;
    serde_json::from_str(&text).map_err(|e| {
        wrong(format!("the candidate {shown} is no JSON object: {e}"))
            .hint("{\"vllm_memory_util\": 0.75}")
    })
}

fn status(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let ledger = Ledger::open(canary)?;
    let held = lock::open(&session.config).and_then(|mut backend| backend.look());
    let report = CanaryStatusReport::new(&session.config, canary, &ledger, &held, host::now())?;
    print(&report, &session.form)?;
    Ok(Answer::Yes)
}

fn recover(session: &Session) -> Result<Answer> {
    let config = session.config.clone();
    let canary = config.canary()?;
    let ledger = Ledger::open(canary)?;
    let progress = session.progress.clone();
    let reader = Mutex::new(Reader::open(&config.gpu));
    let hands =
        Hands { config: &config, canary, ledger: &ledger, reader: &reader, progress: &progress };
    let settled = || -> Result<Answer> {
        maintenance::clear_stale(canary)?;
        print(&DoneReport::new("nothing to settle"), &session.form)?;
        Ok(Answer::Yes)
    };
    match ledger.journal()? {
        None => return settled(),
        Some(journal) if !journal.is_orphaned() => refuse_unsettled(&hands)?,
        Some(_) => {}
    }
    let services = [canary.service.clone()];
    let purpose = Purpose {
        holder: "canary",
        services: &services,
        patience: config.lock.wait,
        margin: Duration::ZERO,
    };
    let guard = Guard::take(&config, &purpose, &session.stop, &progress)?;
    // Who had the lock before us may have done it.
    let Some(mut journal) = ledger.journal()? else {
        guard.release(&progress)?;
        return settled();
    };
    hands.audit(&journal, "recover", json!({}))?;
    let restored = restore(&hands, &mut journal)?;
    maintenance::clear_stale(canary)?;
    guard.release(&progress)?;
    if let Some(failure) = restored.failure {
        let message = format!("{} has not come back: {}", canary.service, failure.message);
        bail!(Failure { code: Code::StartFailed, message, ..failure });
    }
    let away = restored.downtime.as_secs_f64();
    let told = format!("{} is back; it was away for {away:.1} s", canary.service);
    print(&DoneReport::new(&told), &session.form)?;
    Ok(Answer::Yes)
}

fn reset_budget(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let ledger = Ledger::open(canary)?;
    let night = canary.limits.window.night(host::now());
    let _locked = ledger.lock(&session.stop)?;
    let used = ledger.used(night).ok();
    ledger.reset_budget(night)?;
    let facts = json!({"run_id": null, "candidate_id": null, "budget_used": 0.0, "reason": null, "before": used});
    ledger.audit(night, "budget_reset", facts.as_object().cloned().unwrap_or_default())?;
    print(&DoneReport::new(&format!("the budget of {night} is whole again")), &session.form)?;
    Ok(Answer::Yes)
}

fn unlock(session: &Session) -> Result<Answer> {
    let canary = session.config.canary()?;
    let ledger = Ledger::open(canary)?;
    let mut backend = lock::open(&session.config)?;
    let holder = backend.look().ok().flatten().map(|held| held.holder);
    let released = backend.release(None)?;
    let cleared = maintenance::clear(canary)?;
    let night = canary.limits.window.night(host::now());
    let facts = json!({"run_id": null, "candidate_id": null, "budget_used": ledger.used(night).ok(), "reason": holder});
    ledger.audit(night, "unlocked", facts.as_object().cloned().unwrap_or_default())?;
    let told = if released || cleared { "unlocked" } else { "there was no lock" };
    print(&DoneReport::new(told), &session.form)?;
    if let Some(journal) = ledger.journal()?.filter(|journal| journal.is_orphaned()) {
        session.progress.warning(&owed(&journal).message);
    }
    Ok(Answer::Yes)
}
