//! Plans `prepare-phase`: what a phase needs, and what has to make room for it.

use super::fit::CardBudget;
use super::preempt::make_room;
use super::{Plan, has_unloaded, refuse_unknown, refuse_unproven, warn_of_estimate, with_needs};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Mb, Service, Snapshot};
use std::collections::HashSet;

/// Plans what makes a phase ready. Everything that the phase does not need is evicted; if `lazy` is
/// set, only as much as the needed services require. A phase that needs nothing releases
/// everything, unless `lazy` is set.
pub fn prepare_phase(config: &Config, snapshot: &Snapshot, phase: u32, lazy: bool) -> Result<Plan> {
    let is_listed = |service: &Service| service.phases.contains(&phase);
    let (needed, others) = with_needs(config, snapshot, is_listed);
    let budget = CardBudget::of(config, snapshot);
    let names: HashSet<&str> = needed.iter().map(|service| service.name.as_str()).collect();
    let mut plan = Plan::default();
    for service in &needed {
        plan.need(service, snapshot.service(&service.name))?;
    }
    if lazy {
        make_room(config, snapshot, &budget, &names, &others, &mut plan)?;
    } else {
        let is_empty = |service: &&Service| has_unloaded(service, snapshot.service(&service.name));
        let (empty, others): (Vec<&Service>, Vec<&Service>) =
            others.into_iter().partition(is_empty);
        for service in &others {
            let observed = snapshot.service(&service.name);
            refuse_unknown(service, observed)?;
            // A process that only listens on the service's port is a stranger to the phase.
            if observed.unproven.iter().any(|one| one.matches || one.is_on_card) {
                refuse_unproven(service, observed)?;
            }
            if observed.can_be_stopped() {
                plan.evict(service, observed);
            }
        }
        // A service that has unloaded has to go only if the phase does not fit beside what it
        // keeps.
        make_room(config, snapshot, &budget, &names, &empty, &mut plan)?;
        let stays = |name: &String| plan.kept.contains(name);
        plan.unloaded = empty.iter().map(|service| service.name.clone()).filter(stays).collect();
    }
    plan.clear_ports(&needed, snapshot)?;
    plan.wait_for_the_dead(config, snapshot);
    // A phase is prepared only when what it does not need has given its memory back.
    plan.awaits_dead |= !lazy && snapshot.vram.dead() > Mb(0);
    warn_of_estimate(&mut plan, snapshot);
    Ok(plan)
}

/// Adds to the refusal to start a service for want of memory the phase that would make the service
/// ready, if there is one: a phase stops what it does not need, whatever its priority.
pub fn name_phase(
    refusal: Failure,
    config: &Config,
    snapshot: &Snapshot,
    service: &Service,
) -> Failure {
    let serves = |phase: &&u32| prepare_phase(config, snapshot, **phase, false).is_ok();
    match service.phases.iter().find(serves).filter(|_| refusal.code == Code::InsufficientVram) {
        Some(phase) => {
            let name = config.phases[phase].clone().unwrap_or_else(|| phase.to_string());
            refusal.hint(format!(
                "phase {name} needs it, and stops what it does not need, whatever its priority: \
                 `gpuctl prepare-phase {name}`, or `gpuctl run --phase {name} -- CMD`"
            ))
        }
        None => refusal,
    }
}
