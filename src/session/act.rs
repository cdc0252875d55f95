//! What all acting commands have in common: they take the lock, observe, plan, carry the plan out
//! or only show it, and report.

use super::Session;
use crate::canary::debt;
use crate::cli::ActArgs;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::execute::drain::{self, Drain, Survey};
use crate::execute::{Evicting, Outcome};
use crate::exit::Answer;
use crate::model::{Manager, Service, Snapshot};
use crate::observe::Ask;
use crate::plan::{Plan, StartHow, reading_required};
use crate::report::{ActReport, Subject, print};
use crate::world::docker::Docker;
use crate::world::nvml::Reader;
use crate::world::{compose, native};
use std::sync::Mutex;

/// Takes the lock, observes, plans and carries the plan out, or only shows it (`--dry-run`). Only
/// services that `asks` accepts are asked for their health; `command` is the call's name in the
/// event log.
pub fn act(
    session: Session,
    command: &str,
    subject: Subject,
    acting: &ActArgs,
    asks: impl Fn(&Service) -> bool,
    plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
) -> Result<Answer> {
    let patience = acting.waiting.patience(&session.config)?;
    let drain = acting.drain.drain()?;
    debt::tell(&session.config, &session.progress);
    // Opened before the lock is waited for, so that the driver wakes up meanwhile.
    let reader = Mutex::new(Reader::open(&session.config.gpu));
    if acting.dry_run.dry_run {
        let mut before = session.executor(&reader).look(&|it| Ask::state_if(asks(it)))?;
        let plan = decide(&session, &before, &plan, false)?;
        plan.warnings.iter().for_each(|warning| session.progress.warning(warning));
        let managed = before.managed.clone();
        let (config, stop) = (&session.config, &session.stop);
        let survey = Survey { config, reader: &reader, stop, managed: &managed };
        drain::look(&plan, &mut before, drain, &survey)?;
        print(&ActReport::planned(subject, &plan, &session.config, &before), &session.form)?;
        return Ok(Answer::Yes);
    }
    let name = subject.name();
    let title = format!("{command} {name}");
    session.recorded(command, &name, |mut session| {
        let guard = session.hold_lock(&subject, &title, patience, None)?;
        let (plan, outcome) = carry_out(&session, &reader, drain, asks, plan, &|_| ())?;
        guard.release(&session.progress)?;
        session.conclude(&ActReport::done(subject, &plan, &outcome))?;
        Ok(Answer::Yes)
    })
}

/// Plans and carries the plan out under the lock, unless something in it cannot be started;
/// `witness` is told of each eviction. If a step fails, the failure's details say what was done
/// before.
pub fn carry_out(
    session: &Session,
    reader: &Mutex<Reader>,
    drain: Drain,
    asks: impl Fn(&Service) -> bool,
    plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
    witness: &(dyn Fn(Evicting) + Sync),
) -> Result<(Plan, Outcome)> {
    let decide = |_: &Config, before: &Snapshot| decide(session, before, &plan, true);
    let (plan, mut outcome) = session.executor(reader).carry_out(drain, asks, decide, witness)?;
    match outcome.failure.take() {
        None => Ok((plan, outcome)),
        Some(failure) => Err(failure
            .detail("stopped", outcome.stopped)
            .detail("unloaded", outcome.unloaded)
            .detail("started", outcome.started)
            .detail("elapsed_ms", outcome.elapsed.as_millis() as u64)),
    }
}

/// Makes a plan. Fails if the configured card does not exist, or if something in the plan cannot be
/// done.
fn decide(
    session: &Session,
    before: &Snapshot,
    plan: &impl Fn(&Config, &Snapshot) -> Result<Plan>,
    is_real: bool,
) -> Result<Plan> {
    require_card(before)?;
    let mut plan = plan(&session.config, before)?;
    refuse_unstartable(&plan, session, before, is_real)?;
    plan.warn_of_removal(before)?;
    Ok(plan)
}

/// Fails if the configured card does not exist.
pub fn require_card(seen: &Snapshot) -> Result<()> {
    match seen.vram.no_such_gpu {
        true => Err(reading_required(&seen.vram)),
        false => Ok(()),
    }
}

/// Refuses a plan with a service that cannot be started for want of a folder or a program, before
/// anything is stopped for it. The check creates folders only if `is_real`.
fn refuse_unstartable(
    plan: &Plan,
    session: &Session,
    before: &Snapshot,
    is_real: bool,
) -> Result<()> {
    let config = &session.config;
    for start in plan.start.iter().filter(|start| start.how == StartHow::Start) {
        let service = config.service(&start.service)?;
        let managed = before.managed(&service.name);
        if let Manager::Native(native) = &service.manager {
            native::could_start(service, native, config.state_dir()?, is_real)?;
        }
        if let Some(compose) = managed.unmade.first() {
            let engine = Docker::of(&config.docker, &session.stop);
            compose::could_create(&engine, compose, managed.compose_files.as_ref()).map_err(
                |e| Failure { message: format!("{}: {}", service.name, e.message), ..e },
            )?;
        }
    }
    Ok(())
}
