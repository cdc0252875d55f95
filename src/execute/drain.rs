//! The work in flight of those who have to make room: waited for before anything is stopped or
//! unloaded, looked for again just before each one's own stop, or cut off where that is wanted.

use super::Context;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Observed, Presence, Running, Service, Snapshot};
use crate::observe::count_jobs;
use crate::plan::{EvictHow, Eviction, Plan};
use crate::progress::Underway;
use crate::screen::text::counted;
use crate::step::{Action, Step};
use crate::world::health::TRY_LIMIT;
use crate::world::wait::{Stop, wait};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Two questions for the jobs are a twentieth of the time waited so far apart, within these bounds.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// Who cuts work off asks only for so long whether there is any.
const GLANCE: Duration = Duration::from_secs(2);

/// How long work in flight is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Each service has as long as it is configured to have.
    Configured,
    /// This long, whoever works.
    Within(Duration),
    /// Not at all.
    CutOff,
}

/// Work in flight is waited for in this way, since this time.
#[derive(Clone, Copy, Debug)]
pub struct DrainClock {
    drain: Drain,
    begun: Instant,
}

impl DrainClock {
    pub fn start(drain: Drain) -> DrainClock {
        DrainClock { drain, begun: Instant::now() }
    }

    fn limit(&self, service: &Service) -> Duration {
        match self.drain {
            Drain::Configured => service.drain,
            Drain::Within(limit) => limit,
            Drain::CutOff => Duration::ZERO,
        }
    }

    fn is_over(&self, service: &Service) -> bool {
        self.begun.elapsed() >= self.limit(service)
    }
}

/// A service that works: its jobs, as far as it has told of them.
struct AtWork<'a> {
    service: &'a Service,
    jobs: u64,
}

/// Waits until nobody whom the plan evicts has jobs; the steps tell of those who had. Fails with
/// `service_busy` when the time is over.
pub(super) fn drain(plan: &Plan, context: &Context) -> Result<Vec<Step>> {
    let is_waited_for = |eviction: &&Eviction| eviction.how != EvictHow::Kill;
    let victims: Vec<&Service> = plan
        .evict
        .iter()
        .filter(is_waited_for)
        .map(|eviction| context.service(&eviction.service))
        .filter(|service| can_be_asked(service, context.before.service(&service.name)))
        .collect();
    match context.drain.drain {
        Drain::CutOff => Ok(Vec::new()),
        _ => until_idle(&victims, "nothing was stopped", true, context),
    }
}

/// Looks once more whether services work, just before they are stopped or unloaded, and waits for
/// what they have taken on since; `force` does not wait. Tells whether there was anything.
pub(super) fn once_more(services: &[&Service], force: bool, context: &Context) -> Result<bool> {
    if force || context.drain.drain == Drain::CutOff {
        return Ok(false);
    }
    let is_askable =
        |service: &&&Service| can_be_asked(service, context.before.service(&service.name));
    let services: Vec<&Service> = services.iter().filter(is_askable).copied().collect();
    let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let outcome = format!("not stopped: {}", names.join(", "));
    until_idle(&services, &outcome, false, context).map(|waited| !waited.is_empty())
}

/// Tells what is cut off, where nobody waits for it.
pub(super) fn cut_off(eviction: &Eviction, context: &Context) -> Result<Option<String>> {
    let service = context.service(&eviction.service);
    let cuts = eviction.how == EvictHow::Kill || context.drain.drain == Drain::CutOff;
    if !cuts || !can_be_asked(service, context.before.service(&service.name)) {
        return Ok(None);
    }
    let count = count_jobs(&[service], GLANCE, context.stop)?;
    let cut = count.into_iter().flatten().find_map(|count| count.ok()).filter(|jobs| *jobs > 0);
    Ok(cut.map(|jobs| format!("{} cut off", counted(jobs, "job"))))
}

/// Refuses to touch a service that works now.
pub fn refuse_busy(service: &Service, stop: &Stop) -> Result<()> {
    let count = count_jobs(&[service], TRY_LIMIT, stop)?;
    match count.into_iter().flatten().find_map(|count| count.ok()) {
        None | Some(0) => Ok(()),
        Some(jobs) => {
            let clock = DrainClock::start(Drain::Within(Duration::ZERO));
            Err(still_busy(&[AtWork { service, jobs }], &clock, "it was not touched"))
        }
    }
}

/// Fills in, for a plan that is only shown, the jobs of those whom it would evict. Fails where they
/// would not be waited for.
pub fn look(
    plan: &Plan,
    services: &[Service],
    snapshot: &mut Snapshot,
    drain: Drain,
    stop: &Stop,
) -> Result<()> {
    let is_victim = |service: &&Service| {
        plan.evict.iter().any(|eviction| eviction.service == service.name)
            && can_be_asked(service, snapshot.service(&service.name))
    };
    let victims: Vec<&Service> = services.iter().filter(is_victim).collect();
    let counts = count_jobs(&victims, TRY_LIMIT, stop)?;
    let mut busy = Vec::new();
    for (service, count) in victims.into_iter().zip(counts) {
        let observed = snapshot.services.iter_mut().find(|one| one.name == service.name);
        let (Some(observed), Some(count)) = (observed, count) else { continue };
        match count {
            Ok(jobs) => observed.jobs = Some(jobs),
            Err(failed) => observed.jobs_unknown = Some(failed.why),
        }
        let jobs = observed.jobs.unwrap_or(0);
        busy.extend((jobs > 0).then_some(AtWork { service, jobs }));
    }
    match drain == Drain::Within(Duration::ZERO) && !busy.is_empty() {
        true => Err(still_busy(&busy, &DrainClock::start(drain), "nothing would be stopped")),
        false => Ok(()),
    }
}

/// Whether there may be work: it runs, is given time to, and says how many jobs it has.
fn can_be_asked(service: &Service, observed: &Observed) -> bool {
    let runs = matches!(&observed.presence, Presence::Up(Running { trouble: None, .. }));
    runs && service.jobs.is_some()
}

fn until_idle(
    services: &[&Service],
    outcome: &str,
    is_first: bool,
    context: &Context,
) -> Result<Vec<Step>> {
    let mut told = !is_first;
    let mut steps = Vec::new();
    let mut working: HashMap<&str, (u64, Underway)> = HashMap::new();
    loop {
        let counts = count_jobs(services, TRY_LIMIT, context.stop)?;
        let mut busy = Vec::new();
        for (service, count) in services.iter().zip(counts) {
            let name = service.name.as_str();
            let known = working.get(name).map_or(0, |(jobs, _)| *jobs);
            let jobs = match count {
                Some(Ok(jobs)) => jobs,
                // One that works may not come to answer; one that is gone does not work.
                Some(Err(failed)) if failed.is_silence && known > 0 => known,
                Some(Err(failed)) => {
                    if !told {
                        context.progress.warning(&format!(
                            "{name}: cannot tell whether it is at work: {failed}; it is not waited for"
                        ));
                    }
                    0
                }
                None => 0,
            };
            match jobs {
                0 => steps.extend(working.remove(name).map(|(_, step)| step.done(None))),
                jobs => {
                    busy.push(AtWork { service, jobs });
                    let begin = || {
                        let limit = context.drain.limit(service);
                        (0, context.progress.begin_with(Action::Drain, name, &left(jobs), limit))
                    };
                    let (before, step) = working.entry(name).or_insert_with(begin);
                    if *before != 0 && *before != jobs {
                        step.tell(&left(jobs));
                    }
                    *before = jobs;
                }
            }
        }
        told = true;
        if busy.is_empty() {
            return Ok(steps);
        }
        if busy.iter().any(|one| context.drain.is_over(one.service)) {
            return Err(still_busy(&busy, &context.drain, outcome));
        }
        let pause = (context.drain.begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
        let ends = busy.iter().map(|one| context.drain.begun + context.drain.limit(one.service));
        let now = Instant::now();
        let next = ends.fold(now + pause, Instant::min).max(now);
        wait(&[], context.stop, next);
        context.stop.check()?;
    }
}

/// "1 job left"
fn left(jobs: u64) -> String {
    format!("{} left", counted(jobs, "job"))
}

fn still_busy(busy: &[AtWork], clock: &DrainClock, outcome: &str) -> Failure {
    let named = |one: &AtWork| format!("{} ({})", one.service.name, counted(one.jobs, "job"));
    let names: Vec<String> = busy.iter().map(named).collect();
    let longest = busy.iter().map(|one| clock.limit(one.service)).max().unwrap_or_default();
    let details: Vec<_> =
        busy.iter().map(|one| json!({"service": one.service.name, "jobs": one.jobs})).collect();
    let verb = if busy.len() == 1 { "is" } else { "are" };
    let waited = match longest.is_zero() {
        true => String::new(),
        false => format!(" after {}", Span(longest)),
    };
    Failure::new(
        Code::ServiceBusy,
        format!("{} {verb} still working{waited}; {outcome}", names.join(" and ")),
    )
    .hint("try again later, give it longer (--drain DUR), or cut the work off (--no-drain)")
    .detail("busy", details)
}
