//! What all acting commands have in common: take the lock, observe, plan, carry out or only show,
//! report.

use super::Session;
use crate::canary::debt;
use crate::cli::ActArgs;
use crate::config::Config;
use crate::error::Result;
use crate::execute::drain::{self, Drain, DrainClock};
use crate::execute::{Context, Evicting, Outcome, execute};
use crate::exit::Answer;
use crate::history::Recorder;
use crate::lock::{Guard, Purpose};
use crate::model::{Containers, Manager, Service, Snapshot};
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::plan::{Plan, StartHow, reading_required};
use crate::report::{ActReport, Subject, print};
use crate::world::docker::Docker;
use crate::world::nvml::Reader;
use crate::world::{compose, native};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Observes (the health only of services that `asks` for), plans, carries out; `command` is what
/// the event log calls it.
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
    // The driver is woken while the lock is waited for.
    let mut reader = Reader::open(&session.config.gpu);
    if acting.dry_run.dry_run {
        let (mut before, plan) = decide(&session, &mut reader, &asks, &plan, false)?;
        warn(&session, &plan);
        drain::look(&plan, &session.config.services, &mut before, drain, &session.stop)?;
        print(&ActReport::planned(subject, &plan, &session.config, &before), &session.form)?;
        return Ok(Answer::Yes);
    }
    let name = subject.name();
    let title = format!("{command} {name}");
    session.recorded(command, &name, |mut session| {
        let guard = session.hold_lock(&subject, &title, patience, None)?;
        let reader = Mutex::new(reader);
        let (plan, outcome) = carry_out(&session, &reader, drain, asks, plan, &|_| ())?;
        guard.release(&session.progress)?;
        session.conclude(&ActReport::done(subject, &plan, &outcome))?;
        Ok(Answer::Yes)
    })
}

/// Observes, plans, waits for the work of those who have to go, and carries out, under the lock;
/// `witness` is told of each eviction.
pub fn carry_out(
    session: &Session,
    reader: &Mutex<Reader>,
    drain: Drain,
    asks: impl Fn(&Service) -> bool,
    plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
    witness: &(dyn Fn(Evicting) + Sync),
) -> Result<(Plan, Outcome)> {
    let clock = DrainClock::start(drain);
    let mut drained = Vec::new();
    loop {
        let (before, plan) = {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            decide(session, &mut reader, &asks, &plan, true)?
        };
        Notes::keep(&session.config, &before);
        let context = Context {
            config: &session.config,
            stop: &session.stop,
            reader,
            progress: &session.progress,
            before: &before,
            witness,
            drain: clock,
        };
        let waited = drain::drain(&plan, &context)?;
        if !waited.is_empty() {
            // Nothing is as it was when the plan was made.
            drained.extend(waited);
            continue;
        }
        warn(session, &plan);
        let mut outcome = execute(&plan, &context);
        outcome.steps.splice(..0, drained);
        return match outcome.failure.take() {
            None => Ok((plan, outcome)),
            // What was done before it failed belongs to the failure.
            Some(failure) => Err(failure
                .detail("stopped", outcome.stopped)
                .detail("unloaded", outcome.unloaded)
                .detail("started", outcome.started)
                .detail("elapsed_ms", outcome.elapsed.as_millis() as u64)),
        };
    }
}

fn decide(
    session: &Session,
    reader: &mut Reader,
    asks: &impl Fn(&Service) -> bool,
    plan: &impl Fn(&Config, &Snapshot) -> Result<Plan>,
    is_real: bool,
) -> Result<(Snapshot, Plan)> {
    let before =
        observe(&session.config, reader, &session.stop, &|service| Ask::state_if(asks(service)))?;
    if before.vram.no_such_gpu {
        return Err(reading_required(&before.vram));
    }
    let mut plan = plan(&session.config, &before)?;
    refuse_unstartable(&plan, session, &before, is_real)?;
    plan.warn_of_removal(&before);
    Ok((before, plan))
}

fn warn(session: &Session, plan: &Plan) {
    for warning in &plan.warnings {
        session.progress.warning(warning);
    }
}

/// Refuses what cannot be started for want of a folder or a program before anything is stopped for it.
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
        match (&service.manager, &managed.compose_files) {
            (Manager::Native(native), _) => {
                native::could_start(service, native, config.state_dir()?, is_real)?;
            }
            (Manager::Containers(Containers::Compose(compose)), Some(files))
                if managed.containers.is_empty() =>
            {
                let engine = Docker::of(&config.docker, &session.stop);
                compose::could_create(&engine, compose, files)?;
            }
            _ => {}
        }
    }
    Ok(())
}

impl Session {
    /// Does what a command is for, and leaves in the event log what was done.
    pub fn recorded(
        mut self,
        command: &str,
        subject: &str,
        work: impl FnOnce(Session) -> Result<Answer>,
    ) -> Result<Answer> {
        let recorder = match Recorder::begin(&self.config, command, subject) {
            Ok(recorder) => Arc::new(recorder),
            // What is to be done matters more than that it is written down.
            Err(failure) => {
                self.progress.warning(&failure.message);
                return work(self);
            }
        };
        self.progress = self.progress.recorded(&recorder);
        let result = work(self);
        recorder.end(&result);
        result
    }

    /// Takes the lock for what is to be done; from now on its loss calls the work off.
    pub fn hold_lock(
        &mut self,
        subject: &Subject,
        command: &str,
        patience: Duration,
        margin: Option<Duration>,
    ) -> Result<Guard> {
        let services = subject.services(&self.config);
        let holder = &holder(subject, &services);
        let purpose = Purpose { holder, command, services: &services, patience, margin };
        let guard = Guard::take(&self.config, &purpose, &self.patient, &self.progress)?;
        self.stop = self.stop.under(guard.lease());
        Ok(guard)
    }
}

impl Subject {
    /// The services that something is done for.
    pub fn services(&self, config: &Config) -> Vec<String> {
        let is_meant = |service: &&Service| match self {
            Subject::Phase { phase, .. } => service.phases.contains(phase),
            Subject::Service { service: name } => service.name == *name,
            Subject::Services { services } => services.contains(&service.name),
            Subject::Room { .. } | Subject::All {} | Subject::Idle {} => false,
        };
        config.services.iter().filter(is_meant).map(|service| service.name.clone()).collect()
    }
}

/// Returns what the lock shows: the service that it is held for, where it is one.
fn holder(subject: &Subject, services: &[String]) -> String {
    match (subject, services) {
        (_, [service]) => service.clone(),
        (Subject::Phase { name: Some(name), .. }, _) => name.clone(),
        (Subject::Phase { phase, .. }, _) => format!("phase {phase}"),
        (Subject::Room { .. }, _) => subject.name(),
        (Subject::Service { .. } | Subject::Services { .. }, services) => services.join(","),
        (Subject::All {}, _) => "release-all".to_owned(),
        (Subject::Idle {}, _) => "release-idle".to_owned(),
    }
}
