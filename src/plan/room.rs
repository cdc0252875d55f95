//! Plans `run --vram`: room for a command that is no service, and afterwards everything back as it
//! was.

use super::fit::{COMMAND, CardBudget};
use super::preempt::{make_ready, make_room, start_again};
use super::{EvictHow, Eviction, Plan, has_unloaded, warn_of_estimate};
use crate::config::Config;
use crate::error::Result;
use crate::exit::Code;
use crate::model::{Mb, Service, Snapshot};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Plans to make room of a size, lowest priority first, by evicting any service or, if `below` is
/// given, only those of a strictly lower priority.
pub fn clear(config: &Config, snapshot: &Snapshot, size: Mb, below: Option<i64>) -> Result<Plan> {
    let mut plan = Plan { required: size, ..Plan::default() };
    let budget = CardBudget::of(config, snapshot).with(COMMAND, size);
    let may_go = |service: &&Service| {
        below.is_none_or(|below| service.priority < below)
            || snapshot.service(&service.name).is_stopping()
    };
    let candidates: Vec<&Service> = config.services.iter().filter(may_go).collect();
    make_room(config, snapshot, &budget, &HashSet::from([COMMAND]), &candidates, &mut plan)?;
    plan.wait_for_the_dead(config, snapshot);
    warn_of_estimate(&mut plan, snapshot);
    Ok(plan)
}

/// The services that a call has evicted and is to make ready again at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    pub evicted: Vec<Evicted>,
    /// Services that did not run when the call began, and make room again for those that did.
    newcomers: Vec<String>,
    /// Memory that all services together could commit when the call began, or `None` if the card's
    /// size was not known.
    capacity: Option<Mb>,
}

/// A service that was evicted, or whose eviction was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    pub service: String,
    how: EvictHow,
    /// Whether the eviction has come to its end.
    is_over: bool,
}

impl Debt {
    /// Returns the debt of a call that begins, which has evicted nothing yet.
    pub fn new(config: &Config, snapshot: &Snapshot) -> Debt {
        let newcomers = snapshot.services.iter().filter(|service| !service.may_run());
        Debt {
            evicted: Vec::new(),
            newcomers: newcomers.map(|service| service.name.clone()).collect(),
            capacity: CardBudget::of(config, snapshot).capacity,
        }
    }

    /// Notes that an eviction begins; a service that did not run when the call began is not owed.
    pub fn begin(&mut self, eviction: &Eviction) {
        let Eviction { service, how, .. } = eviction;
        match self.evicted.iter_mut().find(|evicted| evicted.service == *service) {
            Some(known) => (known.how, known.is_over) = (*how, false),
            None if self.newcomers.contains(service) => {}
            None => {
                let (service, how) = (service.clone(), *how);
                self.evicted.push(Evicted { service, how, is_over: false });
            }
        }
    }

    /// Notes that an eviction has come to its end.
    pub fn end(&mut self, eviction: &Eviction) {
        let known = self.evicted.iter_mut().find(|it| it.service == eviction.service);
        known.into_iter().for_each(|known| known.is_over = true);
    }

    /// Reports whether an eviction was begun whose end was not seen.
    pub fn is_underway(&self) -> bool {
        self.evicted.iter().any(|evicted| !evicted.is_over)
    }

    /// Takes a service, which is ready again, out of the debt.
    pub fn settle(&mut self, service: &str) {
        self.evicted.retain(|evicted| evicted.service != service);
    }

    /// Returns the services that are owed, the highest priority first.
    pub fn services<'a>(&self, config: &'a Config) -> Vec<&'a Service> {
        let is_owed = |name: &str| self.evicted.iter().any(|evicted| evicted.service == name);
        let mut owed: Vec<&Service> =
            config.services.iter().filter(|service| is_owed(&service.name)).collect();
        owed.sort_by_key(|service| std::cmp::Reverse(service.priority));
        owed
    }

    /// Plans to carry the evictions that were begun to their end, because a service that was told
    /// to end may answer for a moment still.
    pub fn finish(&self, snapshot: &Snapshot) -> Plan {
        let begun = self.evicted.iter().filter(|evicted| !evicted.is_over);
        let evictions = begun.filter_map(|evicted| {
            let observed = snapshot.service(&evicted.service);
            let (service, how) = (evicted.service.clone(), evicted.how);
            let eviction = Eviction { service, how, frees: observed.used };
            observed.can_be_stopped().then_some(eviction)
        });
        Plan { evict: evictions.collect(), ..Plan::default() }
    }

    /// Plans to make a service ready again. Services that did not run when the call began make room
    /// for it. If others hold about as much as then, it goes back as it was, even if the declared
    /// sizes of all services would not let it in.
    pub fn pay(&self, config: &Config, snapshot: &Snapshot, service: &Service) -> Result<Plan> {
        let may_go = |other: &Service| self.newcomers.contains(&other.name);
        make_ready(config, snapshot, service, may_go, Plan::default()).or_else(|refusal| {
            let capacity = CardBudget::of(config, snapshot).capacity;
            // The reserve is there for what the desktop takes meanwhile.
            let is_cleared = match (capacity, self.capacity) {
                (Some(now), Some(then)) => now + config.gpu.reserve >= then,
                (now, then) => now == then,
            };
            if refusal.code != Code::InsufficientVram || !is_cleared {
                return Err(refusal);
            }
            let mut plan = start_again(config, snapshot, service)?;
            for other in config.services.iter().filter(|other| may_go(other)) {
                let observed = snapshot.service(&other.name);
                match observed.can_be_stopped() && !has_unloaded(other, observed) {
                    true => plan.evict(other, observed),
                    false => plan.keep_if_alive(observed),
                }
            }
            Ok(plan)
        })
    }
}
