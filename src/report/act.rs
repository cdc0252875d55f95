//! The report of an acting command: what it did or, with `--dry-run`, what it would do.

use crate::config::Config;
use crate::execute::Outcome;
use crate::model::{InFlight, Mb, Snapshot, Unproven};
use crate::plan::{EvictHow, Plan, StartHow};
use crate::step::{Action, Step};
use schemars::JsonSchema;
use serde::Serialize;

/// What an acting command did or, with `--dry-run`, would do.
#[derive(Serialize, JsonSchema)]
pub struct ActReport {
    pub success: bool,
    #[serde(flatten)]
    pub subject: Subject,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    pub stopped: Vec<String>,
    pub unloaded: Vec<String>,
    pub started: Vec<String>,
    pub kept: Vec<String>,
    pub freed_mb: Option<Mb>,
    pub elapsed_ms: u64,
    pub steps: Vec<Step>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a command acts for.
#[derive(Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Subject {
    Phase {
        phase: u32,
        name: Option<String>,
    },
    Service {
        service: String,
    },
    Services {
        services: Vec<String>,
    },
    /// The services that have been idle for a while.
    Idle {},
    /// Free memory for a command that is no service.
    Room {
        vram_mb: Mb,
    },
    All {},
}

impl ActReport {
    /// Builds the report of a plan that is not carried out, for `--dry-run`.
    pub fn planned(
        subject: Subject,
        plan: &Plan,
        config: &Config,
        snapshot: &Snapshot,
    ) -> ActReport {
        let step = |action, service: &str, memory_mb| Step {
            memory_mb,
            ..Step::new(action, Some(service), None)
        };
        let mut steps = Vec::new();
        for eviction in &plan.evict {
            let action = match eviction.how {
                EvictHow::Stop => Action::Stop,
                EvictHow::Kill => Action::Kill,
                EvictHow::Unload => Action::Unload,
            };
            let mut report = step(action, &eviction.service, eviction.frees);
            let notes = [
                note_work(snapshot, &eviction.service),
                note_unproven(snapshot, &eviction.service),
            ];
            report.note = notes.into_iter().flatten().reduce(|a, b| format!("{a}; {b}"));
            steps.push(report);
        }
        if !plan.evict.is_empty() {
            let freed = plan.evict.iter().map(|eviction| eviction.frees).sum();
            steps.push(Step { memory_mb: freed, ..Step::new(Action::Reclaim, None, None) });
        }
        for start in &plan.start {
            let action = match start.how {
                StartHow::Start => Action::Start,
                StartHow::Await => Action::Await,
                StartHow::Wake => continue,
            };
            let service = config.services.iter().find(|service| service.name == start.service);
            steps.push(step(action, &start.service, service.map(|service| service.vram)));
        }
        let evicted = |unload: bool| {
            let chosen = plan
                .evict
                .iter()
                .filter(move |eviction| (eviction.how == EvictHow::Unload) == unload);
            chosen.map(|eviction| eviction.service.clone()).collect()
        };
        let starts = plan.start.iter().filter(|start| start.how != StartHow::Wake);
        ActReport {
            success: true,
            subject,
            dry_run: true,
            stopped: evicted(false),
            unloaded: evicted(true),
            started: starts.map(|start| start.service.clone()).collect(),
            kept: plan.kept.clone(),
            freed_mb: plan.evict.iter().map(|eviction| eviction.frees).sum(),
            elapsed_ms: 0,
            steps,
            warnings: plan.warnings.clone(),
        }
    }

    /// Builds the report of a plan that was carried out. `success` is false if the outcome holds a
    /// failure.
    pub fn done(subject: Subject, plan: &Plan, outcome: &Outcome) -> ActReport {
        ActReport {
            success: outcome.failure.is_none(),
            subject,
            dry_run: false,
            stopped: outcome.stopped.clone(),
            unloaded: outcome.unloaded.clone(),
            started: outcome.started.clone(),
            kept: outcome.kept.clone(),
            freed_mb: outcome.freed,
            elapsed_ms: outcome.elapsed.as_millis() as u64,
            steps: outcome.steps.clone(),
            warnings: plan.warnings.clone(),
        }
    }
}

/// Describes the work that the service has in flight, or says why that is unknown. `None` if it has
/// none or was not asked for its jobs.
fn note_work(snapshot: &Snapshot, service: &str) -> Option<String> {
    let observed = snapshot.service(service);
    let unknown = observed.jobs_unknown.as_ref();
    match observed.jobs {
        Some(0) => None,
        Some(jobs) => Some(format!("at work now, with {}", InFlight::Jobs(jobs))),
        None if observed.works_silently => Some(format!("at work now: {}", InFlight::OnCard)),
        None => unknown.map(|why| format!("cannot tell whether it is at work: {why}")),
    }
}

/// Names the processes that may belong to the service but are not proven to, and are therefore left
/// alone. `None` if there are none.
fn note_unproven(snapshot: &Snapshot, service: &str) -> Option<String> {
    let unproven = &snapshot.service(service).unproven;
    let named: Vec<String> = unproven.iter().map(Unproven::to_string).collect();
    (!named.is_empty()).then(|| format!("left alone, matches, unproven: {}", named.join(", ")))
}
