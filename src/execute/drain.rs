//! Deals with the work in flight of services that have to make room: it is waited for before
//! anything is stopped or unloaded, looked for again just before each service's own stop, or cut
//! off if that is wanted.

mod survey;

pub use survey::Survey;

use super::Context;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{InFlight, Observed, Service, Snapshot};
use crate::notes::{Notes, RunSeen};
use crate::plan::{EvictHow, Eviction, Plan};
use crate::progress::Underway;
use crate::step::{Action, Step};
use crate::world::clock::SinceBoot;
use crate::world::health::TRY_LIMIT;
use crate::world::wait::wait;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use survey::can_work;

/// Shortest pause between two questions for the jobs. A pause is a twentieth of the time waited so
/// far, up to `LONGEST`.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest pause between two questions for the jobs.
const LONGEST: Duration = Duration::from_secs(1);

/// Time that a service has to say whether it works if its work is to be cut off anyway.
const GLANCE: Duration = Duration::from_secs(2);

/// Note on a service that has worked on the card without an answer, and does so no more.
const SILENT_STILL: &str = "it still does not answer, and no longer works on the card";

/// How long work in flight is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Each service has as long as it is configured to have.
    Configured,
    /// Every service has this long, whatever it is configured to have.
    Within(Duration),
    /// Work is not waited for at all.
    CutOff,
}

/// How long work in flight is waited for, and since when.
#[derive(Clone, Copy, Debug)]
pub struct DrainClock {
    drain: Drain,
    begun: Instant,
}

impl DrainClock {
    /// Returns the clock of a wait that begins now.
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

/// A service that is at work, and what it is at work on.
struct AtWork<'a> {
    service: &'a Service,
    on: InFlight,
}

impl<'a> Survey<'a> {
    fn of(context: &'a Context) -> Survey<'a> {
        Survey {
            config: context.config,
            reader: context.reader,
            stop: context.stop,
            managed: &context.before.managed,
        }
    }
}

/// Waits until no service that the plan evicts is at work, unless it is to be killed; the steps
/// report those that were. Fails with `service_busy` when their time is over.
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

/// Looks once more whether services are at work, just before they are stopped or unloaded, and
/// waits for what they have taken on since, unless `force` is set. Returns whether there was
/// anything to wait for.
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

/// Returns a note on the work that an eviction cuts off, or `None` if there is none or it is waited
/// for.
pub(super) fn cut_off(eviction: &Eviction, context: &Context) -> Result<Option<String>> {
    let service = context.service(&eviction.service);
    let cuts = eviction.how == EvictHow::Kill || context.drain.drain == Drain::CutOff;
    if !cuts || !can_be_asked(service, context.before.service(&service.name)) {
        return Ok(None);
    }
    let found = Survey::of(context).ask(&[service], GLANCE)?;
    Ok(found.into_iter().find_map(|found| found.ok().flatten()).map(|on| match on {
        InFlight::Jobs(_) => format!("{on} cut off"),
        InFlight::OnCard => "work cut off: it did not answer, and worked on the card".to_owned(),
    }))
}

/// Fails if a service is at work now.
pub fn refuse_busy(service: &Service, survey: &Survey) -> Result<()> {
    let found = survey.ask(&[service], TRY_LIMIT)?;
    match found.into_iter().find_map(|found| found.ok().flatten()) {
        None => Ok(()),
        Some(on) => {
            let clock = DrainClock::start(Drain::Within(Duration::ZERO));
            Err(still_busy(&[AtWork { service, on }], &clock, "it was not touched"))
        }
    }
}

/// Fills in, for a plan that is only shown, what the services that it would evict are at work on.
/// Fails if there is work and the time to wait for it is zero.
pub fn look(plan: &Plan, snapshot: &mut Snapshot, drain: Drain, survey: &Survey) -> Result<()> {
    let is_victim = |service: &&Service| {
        plan.evict.iter().any(|eviction| eviction.service == service.name)
            && can_be_asked(service, snapshot.service(&service.name))
    };
    let victims: Vec<&Service> = survey.config.services.iter().filter(is_victim).collect();
    let found = survey.ask(&victims, TRY_LIMIT)?;
    let mut busy = Vec::new();
    for (service, found) in victims.into_iter().zip(found) {
        let observed = snapshot.services.iter_mut().find(|one| one.name == service.name);
        let Some(observed) = observed else { continue };
        match found {
            Ok(None) => observed.jobs = Some(0),
            Ok(Some(on)) => {
                observed.jobs = on.jobs();
                observed.works_silently = on == InFlight::OnCard;
                busy.push(AtWork { service, on });
            }
            Err(failed) => observed.jobs_unknown = Some(failed.why),
        }
    }
    match drain == Drain::Within(Duration::ZERO) && !busy.is_empty() {
        true => Err(still_busy(&busy, &DrainClock::start(drain), "nothing would be stopped")),
        false => Ok(()),
    }
}

/// Reports whether a service can be asked for its work: it runs, is given time to, and says how
/// many jobs it has.
fn can_be_asked(service: &Service, observed: &Observed) -> bool {
    can_work(&observed.presence) && service.jobs.is_some()
}

/// Waits as `wait_until_idle` does, and notes which services were seen at work and when they last
/// were.
fn until_idle(
    services: &[&Service],
    outcome: &str,
    is_first: bool,
    context: &Context,
) -> Result<Vec<Step>> {
    let mut seen = RunSeen::default();
    let waited = wait_until_idle(services, outcome, is_first, &mut seen, context);
    Notes::keep_run(context.config, &[], &seen);
    waited
}

/// Waits until none of the services is at work; fails when the time of one is over. A service that
/// cannot be asked is not waited for, and the first look warns of that.
fn wait_until_idle(
    services: &[&Service],
    outcome: &str,
    is_first: bool,
    seen: &mut RunSeen,
    context: &Context,
) -> Result<Vec<Step>> {
    let survey = Survey::of(context);
    let mut untold: HashSet<&str> = HashSet::new();
    let mut steps = Vec::new();
    let mut working: HashMap<&str, (InFlight, Underway)> = HashMap::new();
    loop {
        let found = survey.ask(services, TRY_LIMIT)?;
        let mut busy = Vec::new();
        for (service, found) in services.iter().zip(found) {
            let name = service.name.as_str();
            let known = working.get(name).map(|(on, _)| *on);
            // A service that has reported jobs has them until it reports otherwise or is gone.
            let known_jobs = known.filter(|on| on.jobs().is_some());
            let is_silent_still = found.is_err() && known == Some(InFlight::OnCard);
            let on = match (found, known_jobs) {
                (Ok(Some(InFlight::OnCard)), Some(jobs)) => Some(jobs),
                (Ok(on), _) => on,
                (Err(failed), Some(jobs)) if failed.is_silence => Some(jobs),
                (Err(_), Some(jobs)) => survey.is_there(service).then_some(jobs),
                (Err(failed), None) => {
                    if untold.insert(name) && is_first {
                        context.progress.warning(&format!(
                            "{name}: cannot tell whether it is at work: {failed}; it is not waited for"
                        ));
                    }
                    None
                }
            };
            let Some(on) = on else {
                let note = is_silent_still.then(|| SILENT_STILL.to_owned());
                steps.extend(working.remove(name).map(|(_, step)| step.done(note)));
                continue;
            };
            busy.push(AtWork { service, on });
            seen.worked.insert(name.to_owned(), SinceBoot::now());
            match working.get_mut(name) {
                Some((before, step)) if *before != on => {
                    step.tell(&left(on));
                    *before = on;
                }
                Some(_) => {}
                None => {
                    let limit = context.drain.limit(service);
                    let step = context.progress.begin_with(Action::Drain, name, &left(on), limit);
                    working.insert(name, (on, step));
                }
            }
        }
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

/// Describes the work that is left, as in "1 job left".
fn left(on: InFlight) -> String {
    match on {
        InFlight::Jobs(_) => format!("{on} left"),
        InFlight::OnCard => on.to_string(),
    }
}

fn still_busy(busy: &[AtWork], clock: &DrainClock, outcome: &str) -> Failure {
    let named = |one: &AtWork| format!("{} ({})", one.service.name, one.on);
    let names: Vec<String> = busy.iter().map(named).collect();
    let longest = busy.iter().map(|one| clock.limit(one.service)).max().unwrap_or_default();
    let detail = |one: &AtWork| json!({"service": one.service.name, "jobs": one.on.jobs()});
    let details: Vec<_> = busy.iter().map(detail).collect();
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
