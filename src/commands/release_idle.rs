//! `gpuctl release-idle`: looks, notes what it has seen, and evicts what has not worked for a while.

use super::act::carry_out;
use super::{Session, duration};
use crate::canary::debt;
use crate::cli::ReleaseIdleArgs;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::execute::Outcome;
use crate::execute::drain::Drain;
use crate::exit::{Answer, Code};
use crate::model::{Evict, Service, Snapshot};
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::plan;
use crate::report::{ActReport, Subject, print};
use crate::world::nvml::Reader;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub fn run(arguments: &ReleaseIdleArgs, session: Session) -> Result<Answer> {
    let after = arguments.after.as_deref().map(|text| duration("--after", text)).transpose()?;
    let names = names(&arguments.services, after, &session.config)?;
    debt::tell(&session.config, &session.progress);
    let reader = Mutex::new(Reader::open(&session.config.gpu));
    let before = look(&session, &reader)?;
    let plan_of = |config: &Config, snapshot: &Snapshot| {
        plan::release(config, snapshot, &plan::idle(config, snapshot, &names, after))
    };
    let (subject, plan) = (Subject::Idle {}, plan_of(&session.config, &before)?);
    if arguments.dry_run.dry_run {
        let report = ActReport::planned(subject, &plan, &session.config, &before);
        print(&report, &session.form)?;
        return Ok(Answer::Yes);
    }
    Notes::keep(&session.config, &before);
    if plan.evict.is_empty() {
        // Most calls of a timer, of which the event log is not to be full.
        let nothing = Outcome { kept: plan.kept.clone(), ..Outcome::default() };
        session.conclude(&ActReport::done(subject, &plan, &nothing))?;
        return Ok(Answer::Yes);
    }
    session.recorded("release-idle", "", |mut session| {
        let guard = session.hold_lock(&subject, "release-idle", Duration::ZERO, None)?;
        // One that has come to work in the meantime is idle no more.
        let now = look(&session, &reader)?;
        let due = plan::idle(&session.config, &now, &names, after);
        let unloads = |service: &Service| service.evict == Evict::Unload;
        let release = |config: &Config, snapshot: &Snapshot| plan::release(config, snapshot, &due);
        // Who has been given work since is not idle.
        let drain = Drain::Within(Duration::ZERO);
        let (plan, outcome) = carry_out(&session, &reader, drain, unloads, release, &|_| ())?;
        guard.release(&session.progress)?;
        session.conclude(&ActReport::done(subject, &plan, &outcome))?;
        Ok(Answer::Yes)
    })
}

/// The services that may be released: those that were named, else all for which it is known when.
fn names(named: &[String], after: Option<Duration>, config: &Config) -> Result<Vec<String>> {
    config.require_file()?;
    for name in named {
        if config.service(name)?.idle.or(after).is_none() {
            let message = format!("{name} has no `idle`, after which it might be released");
            let hint = format!("set services.{name}.idle, or give --after, as in --after 30m");
            return Err(Failure::new(Code::Usage, message).hint(hint));
        }
    }
    let is_meant = |service: &&Service| named.is_empty() || named.contains(&service.name);
    Ok(config.services.iter().filter(is_meant).map(|service| service.name.clone()).collect())
}

fn look(session: &Session, reader: &Mutex<Reader>) -> Result<Snapshot> {
    let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = observe(&session.config, &mut reader, &session.stop, &|_| Ask::StateAndJobs)?;
    match seen.vram.no_such_gpu {
        true => Err(plan::reading_required(&seen.vram)),
        false => Ok(seen),
    }
}
