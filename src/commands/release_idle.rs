//! `gpuctl release-idle`: looks at the services, notes what it sees, and evicts those that have not
//! worked for a while.

use crate::canary::debt;
use crate::cli::ReleaseIdleArgs;
use crate::config::Config;
use crate::error::Result;
use crate::execute::Outcome;
use crate::execute::drain::Drain;
use crate::exit::Answer;
use crate::model::{Evict, Service, Snapshot};
use crate::notes::Notes;
use crate::observe::Ask;
use crate::plan;
use crate::report::{ActReport, Subject, print};
use crate::session::act::{carry_out, require_card};
use crate::session::{Session, duration};
use crate::world::nvml::Reader;
use std::sync::Mutex;
use std::time::Duration;

pub fn run(arguments: &ReleaseIdleArgs, session: Session) -> Result<Answer> {
    let after = arguments.after.as_deref().map(|text| duration("--after", text)).transpose()?;
    let names = arguments.names(after, &session.config)?;
    debt::tell(&session.config, &session.progress);
    let reader = Mutex::new(Reader::open(&session.config.gpu));
    let before = session.executor(&reader).look(&|_| Ask::StateAndJobs)?;
    require_card(&before)?;
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
        // Most calls of a timer end here, and they are not to fill the event log.
        let nothing = Outcome { kept: plan.kept.clone(), ..Outcome::default() };
        session.conclude(&ActReport::done(subject, &plan, &nothing))?;
        return Ok(Answer::Yes);
    }
    session.recorded("release-idle", "", |mut session| {
        let guard = session.hold_lock(&subject, "release-idle", Duration::ZERO, None)?;
        // A service that has begun to work in the meantime is no longer idle.
        let now = session.executor(&reader).look(&|_| Ask::StateAndJobs)?;
        require_card(&now)?;
        let due = plan::idle(&session.config, &now, &names, after);
        let unloads = |service: &Service| service.evict == Evict::Unload;
        let release = |config: &Config, snapshot: &Snapshot| plan::release(config, snapshot, &due);
        // A service that has been given work since then is not idle, so that work is not waited
        // for.
        let drain = Drain::Within(Duration::ZERO);
        let (plan, outcome) = carry_out(&session, &reader, drain, unloads, release, &|_| ())?;
        guard.release(&session.progress)?;
        session.conclude(&ActReport::done(subject, &plan, &outcome))?;
        Ok(Answer::Yes)
    })
}
