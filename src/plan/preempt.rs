//! Decides which services have to go so that the needed ones fit: those that are being stopped
//! already, then lowest priority first. Then comes the reprieve, as in Kubernetes' preemption: each
//! victim, highest priority first, is spared again if the needed services fit all the same.

use super::fit::{CardBudget, ensure_fits, insufficient};
use super::{
    EvictHow, Eviction, Plan, has_unloaded, how_to_evict, refuse_unknown, refuse_unproven,
    warn_of_estimate, with_needs,
};
use crate::config::Config;
use crate::error::Result;
use crate::model::{Mb, Presence, Service, Snapshot};
use std::cmp::Reverse;
use std::collections::HashSet;

/// Plans `start`: makes one service ready. If `preempt` is set, it preempts services of strictly
/// lower priority; otherwise none.
pub fn start(
    config: &Config,
    snapshot: &Snapshot,
    service: &Service,
    preempt: bool,
) -> Result<Plan> {
    let may_go = |other: &Service| preempt && other.priority < service.priority;
    make_ready(config, snapshot, service, may_go, Plan::default())
}

/// Plans `restart`: stops the service, whatever state it is in, and makes it ready as `start` does.
/// It is refused before the stop if the start could not follow.
pub fn restart(
    config: &Config,
    snapshot: &Snapshot,
    service: &Service,
    force: bool,
) -> Result<Plan> {
    let mut plan = Plan::default();
    let observed = snapshot.service(&service.name);
    refuse_unproven(service, observed)?;
    if observed.can_be_stopped() {
        plan.evict.push(Eviction::stop(observed, force));
    }
    make_ready(config, snapshot, service, |other| other.priority < service.priority, plan)
}

/// Adds to a plan what makes one service ready, and those that it depends on. The services for
/// which `may_go` is true may be evicted for this.
pub fn make_ready(
    config: &Config,
    snapshot: &Snapshot,
    service: &Service,
    may_go: impl Fn(&Service) -> bool,
    mut plan: Plan,
) -> Result<Plan> {
    let (needed, others) = with_needs(config, snapshot, |one| one.name == service.name);
    for one in &needed {
        plan.need(one, snapshot.service(&one.name))?;
    }
    let budget = CardBudget::of(config, snapshot);
    if plan.is_empty() {
        // The service runs already; what is on the card beside it is not its business.
        for other in others {
            plan.keep_if_alive(snapshot.service(&other.name));
        }
    } else {
        let goes = |it: &&Service| may_go(it) || snapshot.service(&it.name).is_stopping();
        let candidates: Vec<&Service> = others.into_iter().filter(goes).collect();
        let names = needed.iter().map(|one| one.name.as_str()).collect();
        make_room(config, snapshot, &budget, &names, &candidates, &mut plan)?;
    }
    plan.clear_ports(&needed, snapshot)?;
    plan.wait_for_the_dead(config, snapshot);
    warn_of_estimate(&mut plan, snapshot);
    Ok(plan)
}

/// Plans the start of a service that ran a moment ago beside all that is on the card now. It goes
/// back as it was, even if the declared sizes of all services would not let it in.
pub fn start_again(config: &Config, snapshot: &Snapshot, service: &Service) -> Result<Plan> {
    let mut plan = Plan::default();
    for one in with_needs(config, snapshot, |one| one.name == service.name).0 {
        plan.need(one, snapshot.service(&one.name))?;
    }
    plan.required = Mb(0);
    Ok(plan)
}

/// Returns the services that run and whose containers need this one, so that it cannot be stopped
/// without them; none if it is only to unload.
fn dependents<'a>(config: &'a Config, snapshot: &Snapshot, service: &Service) -> Vec<&'a Service> {
    if how_to_evict(service, snapshot.service(&service.name)) == EvictHow::Unload {
        return Vec::new();
    }
    let all = config.services.iter().zip(&snapshot.managed);
    let depends = all.filter(|(_, managed)| managed.needs.contains(&service.name));
    let runs = |one: &&Service| snapshot.service(&one.name).can_be_stopped();
    depends.map(|(one, _)| one).filter(runs).collect()
}

/// Evicts as few of the candidates as the needed services require beside those that the plan evicts
/// already; fails if that is not enough.
pub fn make_room(
    config: &Config,
    snapshot: &Snapshot,
    budget: &CardBudget,
    needed: &HashSet<&str>,
    candidates: &[&Service],
    plan: &mut Plan,
) -> Result<()> {
    let has_unloaded = |service: &&&Service| has_unloaded(service, snapshot.service(&service.name));
    let empty: Vec<&str> =
        candidates.iter().filter(has_unloaded).map(|service| service.name.as_str()).collect();
    let gone: Vec<String> = plan.evict.iter().map(|eviction| eviction.service.clone()).collect();
    let dependents = |service: &Service| {
        let all = dependents(config, snapshot, service).into_iter();
        all.filter(|dependent| !gone.contains(&dependent.name)).collect::<Vec<_>>()
    };
    // A service that has to stay keeps what it depends on.
    let may_go = |name: &str| candidates.iter().any(|service| service.name == name);
    let is_free = |service: &Service| dependents(service).iter().all(|it| may_go(&it.name));
    let mut candidates: Vec<&Service> = candidates
        .iter()
        .copied()
        .filter(|service| {
            snapshot.service(&service.name).can_be_stopped()
                && budget.commitment_of(&service.name) > Mb(0)
                && is_free(service)
        })
        .collect();
    candidates.sort_by_key(|service| {
        let stays = !snapshot.service(&service.name).is_stopping();
        (stays, service.priority, Reverse(budget.commitment_of(&service.name)))
    });

    let mut victims: Vec<&Service> = Vec::new();
    let fits_without = |victims: &[&Service]| {
        let victims = victims.iter().map(|service| &service.name);
        let evicted = gone.iter().chain(victims).map(String::as_str).collect();
        budget.fits(needed, &evicted) == Some(true)
    };
    for candidate in &candidates {
        if fits_without(&victims) {
            break;
        }
        victims.push(candidate);
    }
    if !fits_without(&victims) && plan.starts_nothing() {
        victims.clear();
    } else if !fits_without(&victims) {
        // A service whose manager cannot be asked may be in the way, and might have been stopped.
        for service in
            config.services.iter().filter(|service| !needed.contains(service.name.as_str()))
        {
            refuse_unknown(service, snapshot.service(&service.name))?;
        }
        let victims = victims.iter().map(|service| &service.name);
        let evicted = gone.iter().chain(victims).map(String::as_str).collect();
        return Err(insufficient(config, snapshot, budget, needed, &evicted));
    }
    for index in (0..victims.len()).rev() {
        let mut fewer = victims.clone();
        fewer.remove(index);
        if fits_without(&fewer) {
            victims = fewer;
        }
    }
    let along: Vec<&Service> = victims.iter().flat_map(|victim| dependents(victim)).collect();
    victims.extend(&along);
    let stays = |name: &str| victims.iter().all(|victim| victim.name != name);
    let empty: Vec<&str> = empty.into_iter().filter(|name| stays(name)).collect();
    let loaded = needed.iter().chain(&empty).copied().collect();
    let victim_names = victims.iter().map(|service| &service.name);
    let evicted = gone.iter().chain(victim_names).map(String::as_str).collect();
    if budget.fits(&loaded, &evicted) != Some(true) {
        plan.unloaded = empty.into_iter().map(str::to_owned).collect();
    }
    for service in &config.services {
        let observed = snapshot.service(&service.name);
        if along.iter().any(|one| one.name == service.name) {
            plan.evict.push(Eviction::stop(observed, false));
        } else if victims.iter().any(|victim| victim.name == service.name) {
            plan.evict(service, observed);
        } else if !needed.contains(service.name.as_str()) && !gone.contains(&service.name) {
            plan.keep_if_alive(observed);
            if let Presence::Unknown(failure) = &observed.presence {
                plan.warnings.push(format!(
                    "{}: {}; assuming that it is running",
                    service.name, failure.message
                ));
            }
        }
    }
    ensure_fits(config, snapshot, budget, needed, plan)
}
