//! Decides, from the configuration and a snapshot, what to stop, unload and start. The planner is
//! pure: no I/O, no clock, no logging. A plan that cannot work is refused before anything is done.

mod fit;
mod phase;
mod preempt;
#[cfg(test)]
mod properties;
mod room;
#[cfg(test)]
mod tests;

pub use fit::{CardBudget, reading_required};
pub use phase::{name_phase, prepare_phase};
pub use preempt::{restart, start, start_again};
pub use room::{Debt, clear};

use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{
    AnsweredBy, Evict, Mb, Observed, Presence, Service, Snapshot, Source, State, Trouble, Unproven,
};
use fit::presumed;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Duration;

/// What is to be done, in three stages: evictions side by side, then the wait for their memory,
/// then starts side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub evict: Vec<Eviction>,
    /// Memory that the starts will take; it has to be free, beside the reserve, before any of them
    /// begins.
    pub required: Mb,
    pub start: Vec<Start>,
    /// Services that have to be ready in the end, whether they are started or not.
    pub needed: Vec<String>,
    /// Whether the memory of dead processes, which the driver has yet to take back, is waited for.
    pub awaits_dead: bool,
    /// Services that run and are left running.
    pub kept: Vec<String>,
    /// Kept services that have unloaded already, and would have been asked to if they had not.
    pub unloaded: Vec<String>,
    pub warnings: Vec<String>,
}

/// A service that has to give its memory back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub service: String,
    pub how: EvictHow,
    /// Memory that the service holds now, or `None` if that cannot be determined.
    pub frees: Option<Mb>,
}

/// How a service gives its memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvictHow {
    Stop,
    /// SIGKILL or `docker kill`, at once.
    Kill,
    Unload,
}

/// A service that has to become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub service: String,
    pub how: StartHow,
}

/// How a service becomes ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartHow {
    Start,
    /// The service is on its way already, and is only waited for.
    Await,
    /// The service is ready, but may have been put to sleep by an unload.
    Wake,
}

/// Plans to stop the named services, or to wait for those that are being stopped already; services
/// that do not run are left as they are. Fails for a service whose manager cannot be asked or does
/// not know it, and for a service that may be running as a process which is not proven to be its
/// own.
pub fn stop(config: &Config, snapshot: &Snapshot, names: &[String], force: bool) -> Result<Plan> {
    let mut plan = Plan::default();
    for service in &config.services {
        let observed = snapshot.service(&service.name);
        if !names.contains(&service.name) {
            plan.keep_if_alive(observed);
            continue;
        }
        match &observed.presence {
            Presence::Unknown(failure) | Presence::Missing(failure) => {
                return Err(about(service, failure));
            }
            Presence::Up(_) | Presence::Stopping(_) => {
                plan.evict.push(Eviction::stop(observed, force));
            }
            Presence::Down(_) | Presence::Dead(_) => refuse_unproven(service, observed)?,
        }
    }
    plan.awaits_dead = snapshot.vram.dead() > Mb(0);
    Ok(plan)
}

/// Plans to stop every service that runs. Fails if it cannot be determined whether one of them
/// runs.
pub fn release_all(config: &Config, snapshot: &Snapshot, force: bool) -> Result<Plan> {
    let mut plan = Plan::default();
    for service in &config.services {
        let observed = snapshot.service(&service.name);
        refuse_unknown(service, observed)?;
        refuse_unproven(service, observed)?;
        if observed.can_be_stopped() {
            plan.evict.push(Eviction::stop(observed, force));
        }
    }
    plan.awaits_dead = snapshot.vram.dead() > Mb(0);
    Ok(plan)
}

/// Returns the named services that have not worked for `after`, or else for the time that each is
/// configured with. A service whose idle time is not known, or which has unloaded, is left out.
pub fn idle(
    config: &Config,
    snapshot: &Snapshot,
    names: &[String],
    after: Option<Duration>,
) -> Vec<String> {
    let is_idle = |service: &&Service| {
        let observed = snapshot.service(&service.name);
        let limit = after.or(service.idle).filter(|_| names.contains(&service.name));
        // A service that works now has been idle for no time at all.
        let idle = observed.idle.filter(|idle| !idle.is_zero());
        let is_due = limit.zip(idle).is_some_and(|(limit, idle)| idle >= limit);
        is_due && !has_unloaded(service, observed)
    };
    config.services.iter().filter(is_idle).map(|service| service.name.clone()).collect()
}

/// Plans to evict those of the named services that run, each in the way it is configured for.
pub fn release(config: &Config, snapshot: &Snapshot, names: &[String]) -> Result<Plan> {
    let mut plan = Plan::default();
    for service in &config.services {
        let observed = snapshot.service(&service.name);
        match names.contains(&service.name) && observed.can_be_stopped() {
            true => plan.evict(service, observed),
            false => plan.keep_if_alive(observed),
        }
    }
    Ok(plan)
}

impl Plan {
    /// Reports whether nothing is to be stopped, started or waited for; services may still be
    /// woken.
    pub fn is_empty(&self) -> bool {
        self.evict.is_empty() && self.starts_nothing() && !self.awaits_dead
    }

    /// Warns of containers that the engine removes when they end (`--rm`), except for those of a
    /// unit, which makes them anew. Fails if such a container would have to be started again.
    pub fn warn_of_removal(&mut self, snapshot: &Snapshot) -> Result<()> {
        for eviction in self.evict.iter().filter(|eviction| eviction.how != EvictHow::Unload) {
            let managed = snapshot.managed(&eviction.service);
            let is_units = !managed.control_groups.is_empty();
            let removed = managed.containers.iter();
            let removed = removed.filter(|one| one.setup.is_removed_at_its_end && !is_units);
            let is_started = self.start.iter().any(|start| start.service == eviction.service);
            for container in removed {
                let warning = format!(
                    "{}: its container {} was made with --rm: stopping it removes it, and gpuctl cannot start it again",
                    eviction.service, container.name
                );
                if is_started {
                    return Err(Failure::new(Code::StartFailed, warning).hint(format!(
                        "recreate it without --rm; `gpuctl stop {}` stops it for good",
                        eviction.service
                    )));
                }
                self.warnings.push(warning);
            }
        }
        Ok(())
    }

    fn starts_nothing(&self) -> bool {
        self.required == Mb(0) && self.start.iter().all(|start| start.how == StartHow::Wake)
    }

    fn keep_if_alive(&mut self, observed: &Observed) {
        if observed.is_alive() {
            self.kept.push(observed.name.clone());
        }
    }

    /// Adds what makes a needed service ready, whatever state it is in; fails if that is
    /// impossible.
    fn need(&mut self, service: &Service, observed: &Observed) -> Result<()> {
        self.needed.push(service.name.clone());
        if let Some(stranger @ AnsweredBy { service: None, .. }) = &observed.answered_by {
            return Err(stranger.in_the_way_of(service));
        }
        let is_going = self.evict.iter().any(|eviction| eviction.service == service.name);
        let how = match (&observed.presence, observed.state) {
            (
                Presence::Unknown(failure) | Presence::Missing(failure) | Presence::Dead(failure),
                _,
            ) => {
                return Err(about(service, failure));
            }
            _ if is_going => StartHow::Start,
            (Presence::Up(_), State::Ready | State::Asleep) => {
                self.kept.push(service.name.clone());
                if service.unload.is_none() {
                    return Ok(());
                }
                StartHow::Wake
            }
            // A service that works and does not answer is waited for, and never restarted by a
            // plan.
            (Presence::Up(_), State::Starting | State::Unresponsive) => StartHow::Await,
            (Presence::Up(running), _) => {
                let goes_on = Some(Trouble::Paused) == running.trouble
                    || matches!(running.trouble, Some(Trouble::Incomplete(_)));
                if !goes_on {
                    self.evict.push(Eviction::stop(observed, false));
                }
                StartHow::Start
            }
            (Presence::Stopping(_), _) => {
                self.evict.push(Eviction::stop(observed, false));
                StartHow::Start
            }
            (Presence::Down(_), _) if is_coming_up(service, observed) => StartHow::Await,
            (Presence::Down(_), _) => {
                refuse_unproven(service, observed)
                    .map_err(|refusal| Failure { code: Code::StartFailed, ..refusal })?;
                StartHow::Start
            }
        };
        if how != StartHow::Wake || has_unloaded(service, observed) {
            let held = match self.evict.iter().any(|eviction| eviction.service == service.name) {
                true => Mb(0),
                false => presumed(service, observed),
            };
            self.required = self.required + service.vram.saturating_sub(held);
        }
        self.start.push(Start { service: service.name.clone(), how });
        Ok(())
    }

    /// Clears the ports that needed services share with others: a service that holds such a port
    /// must be stopped, not only unloaded. Fails if it is not evicted at all.
    fn clear_ports(&mut self, needed: &[&Service], snapshot: &Snapshot) -> Result<()> {
        for service in needed {
            let answered_by = &snapshot.service(&service.name).answered_by;
            let Some(holder @ AnsweredBy { service: Some(name), .. }) = answered_by else {
                continue;
            };
            match self.evict.iter_mut().find(|eviction| eviction.service == *name) {
                Some(eviction) => eviction.how = EvictHow::Stop,
                None => return Err(holder.in_the_way_of(service)),
            }
        }
        Ok(())
    }

    /// Makes the plan wait for the memory of dead processes if there is no room without it.
    fn wait_for_the_dead(&mut self, config: &Config, snapshot: &Snapshot) {
        let vram = &snapshot.vram;
        let has_room =
            vram.free.is_some_and(|free| free.saturating_sub(config.gpu.reserve) >= self.required);
        self.awaits_dead = vram.dead() > Mb(0) && self.required > Mb(0) && !has_room;
    }

    /// Adds the eviction of a service, in the way that the service is configured for.
    fn evict(&mut self, service: &Service, observed: &Observed) {
        let how = how_to_evict(service, observed);
        self.evict.push(Eviction { how, ..Eviction::stop(observed, false) });
    }
}

impl Eviction {
    fn stop(observed: &Observed, force: bool) -> Eviction {
        let how = if force { EvictHow::Kill } else { EvictHow::Stop };
        Eviction { service: observed.name.clone(), how, frees: observed.used }
    }
}

/// Divides all services into those that have to be ready, which are the wanted ones and those that
/// their containers depend on, and the others.
fn with_needs<'a>(
    config: &'a Config,
    snapshot: &Snapshot,
    is_wanted: impl Fn(&Service) -> bool,
) -> (Vec<&'a Service>, Vec<&'a Service>) {
    let wanted = || config.services.iter().enumerate().filter(|(_, service)| is_wanted(service));
    let needs = wanted().filter_map(|(at, _)| snapshot.managed.get(at));
    let names: HashSet<&str> = wanted()
        .map(|(_, service)| service.name.as_str())
        .chain(needs.flat_map(|managed| &managed.needs).map(String::as_str))
        .collect();
    config.services.iter().partition(|service| names.contains(service.name.as_str()))
}

/// Returns the way in which a service is configured to be evicted; but a service that has unloaded
/// already and still has to go can only be stopped.
fn how_to_evict(service: &Service, observed: &Observed) -> EvictHow {
    match can_unload(service, observed) && !has_unloaded(service, observed) {
        true => EvictHow::Unload,
        false => EvictHow::Stop,
    }
}

/// Reports whether a service can be asked to unload instead of being stopped.
fn can_unload(service: &Service, observed: &Observed) -> bool {
    service.evict == Evict::Unload && matches!(observed.state, State::Ready | State::Asleep)
}

/// Reports whether a service that can unload holds no more than its context keeps. It will want its
/// memory back when it is woken or used.
fn has_unloaded(service: &Service, observed: &Observed) -> bool {
    let Observed { used, kept, .. } = observed;
    let holds_residue = used.is_some_and(|held| service.holds_residue(held, *kept));
    can_unload(service, observed) && holds_residue
}

/// Returns the manager's failure with the service's name in front.
fn about(service: &Service, failure: &Failure) -> Failure {
    Failure { message: format!("{}: {}", service.name, failure.message), ..failure.clone() }
}

/// Fails if it cannot be determined whether a service runs, because that spoils every plan that
/// counts on its being stopped.
fn refuse_unknown(service: &Service, observed: &Observed) -> Result<()> {
    match &observed.presence {
        Presence::Unknown(failure) => {
            let refusal = about(service, failure);
            Err(refusal.hint(format!(
                "cannot tell whether {} is running, so nothing was changed",
                service.name
            )))
        }
        _ => Ok(()),
    }
}

/// Largest number of processes that a message names; its details have all of them.
const MOST_NAMED: usize = 16;

/// Reports whether somebody may be starting a service by hand: a process that may be its own is no
/// older than a start may take.
fn is_coming_up(service: &Service, observed: &Observed) -> bool {
    observed.unproven.iter().any(|process| process.age < service.start_timeout)
}

/// Fails if a service does not run but processes may be its own without being proven to be: then it
/// cannot be said to be stopped.
fn refuse_unproven(service: &Service, observed: &Observed) -> Result<()> {
    let Some(first) = observed.unproven.first().filter(|_| !observed.can_be_stopped()) else {
        return Ok(());
    };
    let name = &service.name;
    let mut listed: Vec<String> =
        observed.unproven.iter().take(MOST_NAMED).map(Unproven::to_string).collect();
    let others = observed.unproven.len() - listed.len();
    listed.extend((others > 0).then(|| format!("and {others} more")));
    let (noun, verb) = if listed.len() == 1 { ("process", "is") } else { ("processes", "are") };
    Err(Failure::new(
        Code::StopFailed,
        format!(
            "{name}: {noun} {} may be it, but {verb} not proven to be; nothing was done to {}",
            listed.join(", "),
            if listed.len() == 1 { "it" } else { "them" },
        ),
    )
    .hint(format!("if it is {name}: gpuctl adopt {name} {}", first.pid))
    .hint(format!(
        "if not: set services.{name}.match to something that only {name} has in its command line"
    ))
    .detail("unproven", observed.unproven.iter().map(|one| one.pid).collect::<Vec<_>>()))
}

/// Adds a warning if the figures of memory are estimated.
fn warn_of_estimate(plan: &mut Plan, snapshot: &Snapshot) {
    if let (Source::Estimate, Some(error)) = (snapshot.vram.source, &snapshot.vram.error) {
        let basis = match snapshot.vram.total {
            Some(_) => "planning with gpu.total_mb and the declared sizes",
            None => "planning without knowing the card's size; set gpu.total_mb",
        };
        plan.warnings.push(format!("{error}; {basis}"));
    }
}
