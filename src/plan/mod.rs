//! Decides, from the configuration and a snapshot, what to stop, unload and start. Pure: no I/O,
//! no clock, no logging. A plan that cannot work is refused before anything is done.

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

/// A plan is done in three stages: evictions side by side, then the wait for their
/// memory, then starts side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub evict: Vec<Eviction>,
    /// The starts will take this much; it is to be free, beside the reserve, before any of them
    /// begins.
    pub required: Mb,
    pub start: Vec<Start>,
    /// Services that have to be ready in the end, whether they are started or not.
    pub needed: Vec<String>,
    /// The memory of dead processes, which the driver has yet to take back, is waited for.
    pub awaits_dead: bool,
    /// Services that run and are left running.
    pub kept: Vec<String>,
    /// Those of them that have unloaded, and would have had to if they had not.
    pub unloaded: Vec<String>,
    pub warnings: Vec<String>,
}

/// A service that has to give its memory back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub service: String,
    pub how: EvictHow,
    /// It holds this much now; `None` where that cannot be told.
    pub frees: Option<Mb>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvictHow {
    Stop,
    /// SIGKILL or `docker kill` at once.
    Kill,
    Unload,
}

/// A service that has to become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub service: String,
    pub how: StartHow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartHow {
    Start,
    /// It is on its way already.
    Await,
    /// It is ready, but may have been put to sleep by an unload.
    Wake,
}

/// Stops the named services, or waits for those that are being stopped; those that do not run are
/// left as they are.
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

/// Stops every service that runs.
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

/// Names those of the services that hold memory and have not worked for `after`, or else for the time
/// of their own. One of which that is not known is not idle.
pub fn idle(
    config: &Config,
    snapshot: &Snapshot,
    names: &[String],
    after: Option<Duration>,
) -> Vec<String> {
    let is_idle = |service: &&Service| {
        let observed = snapshot.service(&service.name);
        let limit = after.or(service.idle).filter(|_| names.contains(&service.name));
        // What works now has been idle for no time at all.
        let idle = observed.idle.filter(|idle| !idle.is_zero());
        let is_due = limit.zip(idle).is_some_and(|(limit, idle)| idle >= limit);
        is_due && !has_unloaded(service, observed)
    };
    config.services.iter().filter(is_idle).map(|service| service.name.clone()).collect()
}

/// Evicts the named services, each as it is configured to be.
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
    /// Nothing is to be stopped or started.
    pub fn is_empty(&self) -> bool {
        self.evict.is_empty() && self.starts_nothing() && !self.awaits_dead
    }

    /// Warns of containers that the engine removes when they end, and nobody makes anew, as a unit does that runs one;
    /// refuses to stop one that it is to start again.
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

    /// Adds what makes a needed service ready, whatever state it is in.
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
            // One that works and does not answer is waited for, and never restarted by a plan.
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

    /// Sees to the ports that needed services share with others: who holds one must go entirely,
    /// and who is not evicted is in the way.
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

    /// Waits for the memory of dead processes where there is no room without it.
    fn wait_for_the_dead(&mut self, config: &Config, snapshot: &Snapshot) {
        let vram = &snapshot.vram;
        let has_room =
            vram.free.is_some_and(|free| free.saturating_sub(config.gpu.reserve) >= self.required);
        self.awaits_dead = vram.dead() > Mb(0) && self.required > Mb(0) && !has_room;
    }

    /// Evicts a service in the way it is configured for.
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

/// Divides all services into those that have to be ready for the wanted ones to be, which are they
/// themselves and those that their containers depend on, and the others.
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

/// The way that a service is configured for. One that has unloaded already and still has to go can only
/// be stopped.
fn how_to_evict(service: &Service, observed: &Observed) -> EvictHow {
    match can_unload(service, observed) && !has_unloaded(service, observed) {
        true => EvictHow::Unload,
        false => EvictHow::Stop,
    }
}

/// Whether it can be asked to unload, instead of being stopped.
fn can_unload(service: &Service, observed: &Observed) -> bool {
    service.evict == Evict::Unload && matches!(observed.state, State::Ready | State::Asleep)
}

/// Whether it has nothing left to give but what its context keeps, and will want its memory back when
/// it is woken or used.
fn has_unloaded(service: &Service, observed: &Observed) -> bool {
    let Observed { used, kept, .. } = observed;
    let holds_residue = used.is_some_and(|held| service.holds_residue(held, *kept));
    can_unload(service, observed) && holds_residue
}

/// The manager's failure, told of a service.
fn about(service: &Service, failure: &Failure) -> Failure {
    Failure { message: format!("{}: {}", service.name, failure.message), ..failure.clone() }
}

/// A service that may be running, for all that can be told, spoils every plan that counts on its
/// being stopped.
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

/// So many processes are told of in a message; its details have all of them.
const MOST_NAMED: usize = 16;

/// Whether somebody may be starting it by hand: what its `match` finds is no older than a start takes.
fn is_coming_up(service: &Service, observed: &Observed) -> bool {
    observed.unproven.iter().any(|process| process.age < service.start_timeout)
}

/// A service of which there is nothing but what may be its own cannot be said to be stopped.
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

/// A warning where the sizes are estimated.
fn warn_of_estimate(plan: &mut Plan, snapshot: &Snapshot) {
    if let (Source::Estimate, Some(error)) = (snapshot.vram.source, &snapshot.vram.error) {
        let basis = match snapshot.vram.total {
            Some(_) => "planning with gpu.total_mb and the declared sizes",
            None => "planning without knowing the card's size; set gpu.total_mb",
        };
        plan.warnings.push(format!("{error}; {basis}"));
    }
}
