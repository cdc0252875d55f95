//! Checks what holds of every plan, whatever is on the card, with random machines, every command on
//! each of them, and a judge that tries all sets of victims.

mod judge;
mod machine;

use super::*;
use crate::exit::Code;
use crate::properties::settings;
use judge::Judge;
use machine::{Call, machines};
use proptest::prelude::*;

/// Returns the services that a plan evicts, except for those that its command needs.
fn victims(plan: &Plan, judge: &Judge) -> Vec<String> {
    let evicted = plan.evict.iter().map(|eviction| eviction.service.clone());
    evicted.filter(|name| !judge.needs(name)).collect()
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn a_plan_is_refused_exactly_when_there_is_none(machine in machines()) {
        for command in machine.commands() {
            let planned = machine.plan(&command);
            let judge = Judge::of(&machine, &command);
            prop_assert_eq!(planned.is_ok(), judge.permits(), "{:?}: {:?}", command, planned);
            if let Err(refusal) = planned
                && refusal.code == Code::InsufficientVram
            {
                let figure = |name: &str| refusal.details[name].as_u64();
                prop_assert!(figure("needed_mb") > figure("available_mb"), "{}", refusal);
            }
        }
    }

    #[test]
    fn what_is_committed_once_a_plan_is_carried_out_fits_on_the_card(machine in machines()) {
        for command in machine.commands() {
            let Ok(plan) = machine.plan(&command) else { continue };
            let judge = Judge::of(&machine, &command);
            if plan.starts_nothing() || judge.needed_memory() == 0 || !machine.is_measured() {
                continue;
            }
            let cleared = machine.after_evictions(&plan);
            prop_assert!(plan.required.0 <= cleared.free(), "{:?}: {:?}", command, plan);
            let after = cleared.after_starts(&plan);
            prop_assert!(after.committed() <= after.capacity(), "{:?}: {:?}", command, plan);
        }
    }

    #[test]
    fn a_plan_stops_by_the_rule_and_nothing_that_could_be_spared(machine in machines()) {
        for command in machine.commands() {
            let Ok(plan) = machine.plan(&command) else { continue };
            let judge = Judge::of(&machine, &command);
            let mut victims = victims(&plan, &judge);
            victims.sort();
            prop_assert_eq!(&victims, &judge.victims(), "{:?}", command);
            if judge.is_sparing() {
                for spared in &victims {
                    let fewer: Vec<String> =
                        victims.iter().filter(|name| *name != spared).cloned().collect();
                    prop_assert!(!judge.fits_without(&fewer), "{:?}: {} in vain", command, spared);
                }
            }
        }
    }

    #[test]
    fn what_is_wanted_is_made_ready_and_stopped_only_to_be_started_again(machine in machines()) {
        for command in machine.commands() {
            let Ok(plan) = machine.plan(&command) else { continue };
            let judge = Judge::of(&machine, &command);
            let after = machine.after_evictions(&plan).after_starts(&plan);
            for service in machine.names() {
                let is_started = plan.start.iter().any(|start| start.service == service);
                prop_assert!(!is_started || judge.needs(&service), "{:?}: {:?}", command, plan);
                prop_assert!(!judge.needs(&service) || after.is_ready(&service), "{:?}", command);
            }
        }
    }

    #[test]
    fn a_start_stops_strictly_lower_priorities_only(machine in machines()) {
        for command in machine.commands() {
            let (Call::Start { service, preempt }, Ok(plan)) = (&command, machine.plan(&command))
            else {
                continue;
            };
            let own = machine.priority(service);
            for victim in plan.evict.iter().filter(|eviction| eviction.service != *service) {
                let goes = *preempt && machine.priority(&victim.service) < own;
                prop_assert!(goes || machine.is_stopping(&victim.service), "{:?}", plan);
            }
        }
    }

    #[test]
    fn every_service_that_runs_is_evicted_kept_or_made_ready(machine in machines()) {
        for command in machine.commands() {
            let Ok(plan) = machine.plan(&command) else { continue };
            let is_kept = |name: &String| plan.kept.contains(name);
            prop_assert!(plan.unloaded.iter().all(is_kept), "{:?}: {:?}", command, plan);
            for service in machine.names() {
                let times = |names: &mut dyn Iterator<Item = &String>| {
                    names.filter(|name| **name == service).count()
                };
                let evicted = times(&mut plan.evict.iter().map(|eviction| &eviction.service));
                let kept = times(&mut plan.kept.iter());
                let started = times(&mut plan.start.iter().map(|start| &start.service));
                prop_assert!(evicted + kept <= 1 && started <= 1, "{:?}: {:?}", command, plan);
                let runs = machine.is_alive(&service);
                prop_assert!(!runs || evicted + kept + started > 0, "{:?}: {:?}", command, plan);
                let is_there = runs || machine.is_stopping(&service);
                prop_assert!(is_there || evicted + kept == 0, "{:?}: {:?}", command, plan);
            }
        }
    }

    #[test]
    fn a_plan_that_is_carried_out_leaves_nothing_to_do(machine in machines()) {
        for command in machine.commands() {
            let Ok(plan) = machine.plan(&command) else { continue };
            let after = machine.after_evictions(&plan).after_starts(&plan);
            let again = after.plan(&command);
            // Without a measurement nobody knows that a service has unloaded, so it is asked again.
            let asks_again = |eviction: &Eviction| {
                eviction.how == EvictHow::Unload && !machine.is_measured()
            };
            let is_done = |plan: &Plan| {
                plan.evict.iter().all(asks_again)
                    && plan.start.iter().all(|start| start.how == StartHow::Wake)
            };
            prop_assert!(
                again.as_ref().is_ok_and(is_done),
                "{:?}: {:?}, then {:?} on\n{:?}", command, plan, again, after
            );
        }
    }
}
