//! The arithmetic of memory: what services commit, what others hold, what that leaves.

use super::Plan;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Evict, GpuProcess, Mb, Observed, Service, Snapshot, Vram};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Name of a command among the names of services, none of which has a space.
pub const COMMAND: &str = "the command";

/// The card's memory as commitments. A service that runs commits the larger of what it declares and
/// what it holds, because an idle one that holds little will take the rest at its next job. One
/// that unloads on request commits only what it holds.
#[derive(Clone, Debug)]
pub struct CardBudget {
    /// Memory that all services together may commit, or `None` if the card's size is not known.
    pub capacity: Option<Mb>,
    /// Memory in use on the card, by services and others, or `None` if it is not known.
    in_use: Option<Mb>,
    services: Vec<Commitment>,
}

#[derive(Clone, Debug)]
struct Commitment {
    service: String,
    committed: Mb,
    held: Mb,
    /// Memory that the service commits if a plan needs it, because it will then be used to the
    /// full.
    needed: Mb,
}

impl CardBudget {
    /// Returns the budget of the card as it is in a snapshot.
    pub fn of(config: &Config, snapshot: &Snapshot) -> CardBudget {
        let observed = || config.services.iter().zip(&snapshot.services);
        let held: Mb = observed().map(|(service, observed)| presumed(service, observed)).sum();
        let in_use = snapshot.vram.total.zip(snapshot.vram.free);
        let in_use = in_use.map(|(total, free)| total.saturating_sub(free));
        // The driver is taking back what dead processes held.
        let held_or_dead = held + snapshot.vram.dead();
        let others = in_use.map(|in_use| in_use.saturating_sub(held_or_dead));
        CardBudget {
            in_use,
            capacity: snapshot.vram.total.zip(others).map(|(total, others)| {
                total.saturating_sub(config.gpu.reserve).saturating_sub(others)
            }),
            services: observed()
                .map(|(service, observed)| Commitment {
                    service: service.name.clone(),
                    committed: commitment(service, observed),
                    held: presumed(service, observed),
                    needed: service.vram.max(observed.used.unwrap_or_default()),
                })
                .collect(),
        }
    }

    /// Returns the budget with one more entry, which will need `needed` and holds nothing yet.
    pub fn with(mut self, name: &str, needed: Mb) -> CardBudget {
        let (service, committed, held) = (name.to_owned(), Mb(0), Mb(0));
        self.services.push(Commitment { service, committed, held, needed });
        self
    }

    /// Returns all memory that is committed now.
    pub fn committed(&self) -> Mb {
        self.services.iter().map(|service| service.committed).sum()
    }

    /// Returns the memory that is promised to services and not yet in use. Services whose manager
    /// cannot be asked are presumed to hold theirs, so no more counts as held than is in use on the
    /// card.
    pub fn unused(&self) -> Mb {
        let held: Mb = self.services.iter().map(|service| service.held).sum();
        self.committed().saturating_sub(self.in_use.map_or(held, |in_use| held.min(in_use)))
    }

    /// Returns the memory that would be committed with `needed` in full use and `evicted` gone.
    pub fn demand(&self, needed: &HashSet<&str>, evicted: &HashSet<&str>) -> Mb {
        let share = |entry: &Commitment| match entry.service.as_str() {
            name if needed.contains(name) => entry.needed,
            name if evicted.contains(name) => Mb(0),
            _ => entry.committed,
        };
        self.services.iter().map(share).sum()
    }

    /// Reports whether the card has room with `needed` in full use and `evicted` gone. What needs
    /// nothing always fits, however full the card is. If the card's size is not known, the answer
    /// is `None`, which means undecidable, unless nothing but `needed` would be left on the card.
    pub fn fits(&self, needed: &HashSet<&str>, evicted: &HashSet<&str>) -> Option<bool> {
        let demand = self.demand(needed, evicted);
        let everything = self.services.iter().map(|entry| entry.service.as_str()).collect();
        let alone = self.demand(needed, &everything);
        match self.capacity {
            _ if alone == Mb(0) => Some(true),
            Some(capacity) => Some(demand <= capacity),
            None => (demand == alone).then_some(true),
        }
    }

    /// Returns the memory that a service commits now.
    pub fn commitment_of(&self, service: &str) -> Mb {
        let entry = self.services.iter().find(|entry| entry.service == service);
        entry.map_or(Mb(0), |entry| entry.committed)
    }
}

/// Returns the memory that a service holds or, if that is not known, must be presumed to hold.
pub fn presumed(service: &Service, observed: &Observed) -> Mb {
    let unknown = if observed.may_run() { service.vram } else { Mb(0) };
    observed.used.unwrap_or(unknown)
}

fn commitment(service: &Service, observed: &Observed) -> Mb {
    let held = presumed(service, observed);
    match (observed.may_run(), service.evict) {
        (true, Evict::Stop) => held.max(service.vram),
        _ => held,
    }
}

/// Returns the refusal of a plan that does not fit: what is needed, what can be freed, and what is
/// in the way.
pub fn insufficient(
    config: &Config,
    snapshot: &Snapshot,
    budget: &CardBudget,
    needed: &HashSet<&str>,
    evicted: &HashSet<&str>,
) -> Failure {
    let Some(capacity) = budget.capacity else {
        let refusal = reading_required(&snapshot.vram);
        return Failure {
            message: format!("cannot decide which services have to make room: {}", refusal.message),
            ..refusal
        };
    };
    let nothing = HashSet::new();
    let everything = config.services.iter().map(|service| service.name.as_str()).collect();
    let required = budget.demand(needed, &everything);
    let left = budget.demand(&nothing, &evicted.union(needed).copied().collect());
    let available = capacity.saturating_sub(left);

    let mut told = Vec::new();
    let mut blockers: Vec<Value> = Vec::new();
    for service in &config.services {
        let name = service.name.as_str();
        let committed = budget.commitment_of(name);
        if committed > Mb(0) && !needed.contains(name) && !evicted.contains(name) {
            told.push(format!("{name} (priority {}, {committed})", service.priority));
            blockers.push(
                json!({"service": name, "priority": service.priority, "memory_mb": committed}),
            );
        }
    }
    let strangers = |process: &&GpuProcess| process.service.is_none() && !process.is_ending;
    for process in snapshot.vram.processes.iter().flatten().filter(strangers) {
        told.push(process.to_string());
        blockers.push(process.detail());
    }
    let mut names: Vec<&str> = needed.iter().copied().collect();
    names.sort_unstable();
    let in_the_way = match told.is_empty() {
        true => String::new(),
        false => format!("; in the way: {}", told.join(", ")),
    };
    let failure = Failure::new(
        Code::InsufficientVram,
        format!(
            "{} {} {required}, but at most {available} can be freed (beside a reserve of {}){in_the_way}",
            names.join(" and "),
            if names.len() == 1 { "needs" } else { "need" },
            config.gpu.reserve
        ),
    );
    let is_command = needed.contains(COMMAND);
    let hint = match (blockers.is_empty(), blockers.iter().any(|it| it.get("service").is_some())) {
        (true, _) if is_command => "the card is too small for this; ask for less with --vram",
        (true, _) => {
            "the card is too small for this; lower vram_mb or gpu.reserve_mb if they are set too high"
        }
        (false, true) if is_command => {
            "nothing was stopped; stop one of these yourself, or give the command a higher --priority"
        }
        (false, true) => {
            "nothing was stopped; stop one of these yourself, or give the service a higher priority"
        }
        (false, false) => {
            "nothing was stopped; gpuctl does not manage these processes, so stop them yourself"
        }
    };
    failure
        .hint(hint)
        .detail("needed_mb", required.0)
        .detail("available_mb", available.0)
        .detail("reserve_mb", config.gpu.reserve.0)
        .detail("blockers", blockers)
}

/// Fails if a plan does not fit. A plan that starts nothing is let through with a warning, because
/// what runs already is not made worse by it.
pub fn ensure_fits(
    config: &Config,
    snapshot: &Snapshot,
    budget: &CardBudget,
    needed: &HashSet<&str>,
    plan: &mut Plan,
) -> Result<()> {
    let evicted = plan.evict.iter().map(|eviction| eviction.service.as_str()).collect();
    if budget.fits(needed, &evicted) == Some(true) {
        return Ok(());
    }
    let refusal = insufficient(config, snapshot, budget, needed, &evicted);
    if plan.starts_nothing() {
        plan.warnings.push(refusal.message);
        return Ok(());
    }
    Err(refusal)
}

/// Returns the failure of something that cannot be done without a reading of the card.
pub fn reading_required(vram: &Vram) -> Failure {
    let why = vram.error.as_deref().unwrap_or("the driver gives no figure");
    let failure = Failure::new(Code::Unavailable, format!("VRAM cannot be read: {why}"));
    match vram.no_such_gpu {
        true => failure.hint("--gpu, gpu.index or gpu.uuid names the card"),
        false => failure.hint("for an estimate from the declared sizes of running services, set gpu.total_mb in the configuration"),
    }
}
