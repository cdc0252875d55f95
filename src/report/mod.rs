//! What is told: serialisable structs with the fields of the contract, and how they reach stdout.
//! Nothing else prints.

mod human;
pub mod progress;

use crate::config::{Config, Lock};
use crate::error::Failure;
use crate::execute::Outcome;
use crate::exit::Code;
use crate::model::{GpuProcess, Mb, Pid, Snapshot, Source, State, Vram};
use crate::plan::{Budget, EvictHow, Plan, StartHow};
use anyhow::Result;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;

/// A report in its two forms.
pub trait Report: Serialize {
    fn text(&self) -> String;
}

/// Prints a report on stdout. A reader that has gone away is no failure of the command.
pub fn print(report: &impl Report, as_json: bool) -> Result<()> {
    if as_json { print_json(&serde_json::to_value(report)?) } else { print_text(&report.text()) }
}

/// Prints a document that is asked for as such.
pub fn print_json(document: &Value) -> Result<()> {
    print_text(&format!("{document:#}\n"))
}

/// Prints text that is asked for as such (a template, a schema).
#[expect(clippy::disallowed_methods, reason = "the one place that prints results")]
pub fn print_text(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Io, format!("cannot write to stdout: {e}")).into())
        }
        _ => Ok(()),
    }
}

/// A failure, on stdout as JSON or on stderr as lines. Whether that succeeds changes nothing.
#[expect(clippy::disallowed_methods, reason = "the one place that prints errors")]
pub fn print_failure(failure: &Failure, as_json: bool) {
    if as_json {
        let hint = match failure.hints.is_empty() {
            true => Value::Null,
            false => Value::from(failure.hints.join("\n")),
        };
        let document = json!({"error": {
            "code": failure.code.name(),
            "exit_code": failure.code.status(),
            "message": failure.message,
            "hint": hint,
            "details": failure.details,
        }});
        let _ = print_json(&document);
        return;
    }
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "gpuctl: {}", failure.message);
    for hint in &failure.hints {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

#[derive(Serialize)]
pub struct StatusReport {
    schema: u32,
    gpu: GpuReport,
    vram: VramReport,
    services: IndexMap<String, ServiceReport>,
    lock: LockReport,
}

#[derive(Serialize)]
struct GpuReport {
    index: Option<u32>,
    name: Option<String>,
    uuid: Option<String>,
    driver_version: Option<String>,
}

#[derive(Serialize)]
struct VramReport {
    source: Source,
    total_mb: Option<Mb>,
    used_mb: Option<Mb>,
    free_mb: Option<Mb>,
    available_mb: Option<Mb>,
    reserve_mb: Mb,
    committed_mb: Mb,
    processes: Option<Vec<ProcessReport>>,
    temperature_c: Option<u32>,
    utilization_percent: Option<u32>,
    error: Option<String>,
}

#[derive(Serialize)]
struct ProcessReport {
    pid: Pid,
    name: String,
    memory_mb: Option<Mb>,
    service: Option<String>,
}

impl From<&GpuProcess> for ProcessReport {
    fn from(process: &GpuProcess) -> Self {
        ProcessReport {
            pid: process.pid,
            name: process.name.clone(),
            memory_mb: process.memory,
            service: process.service.clone(),
        }
    }
}

#[derive(Serialize)]
struct ServiceReport {
    state: State,
    r#type: &'static str,
    vram_mb: Mb,
    used_mb: Option<Mb>,
    priority: i64,
    phases: Vec<u32>,
    pids: Vec<Pid>,
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The GPU lock. Figures that are not known are `None`.
#[derive(Serialize)]
struct LockReport {
    backend: &'static str,
    holder: Option<String>,
    /// Seconds; -2: no lock.
    ttl: Option<i64>,
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl LockReport {
    /// Nothing of this version takes the lock; of a Redis that other programs use nothing is known.
    fn of(lock: Lock) -> LockReport {
        let (backend, ttl, error) = match lock {
            Lock::File => ("file", Some(-2), None),
            Lock::Redis => {
                ("redis", None, Some("this version does not read the lock in Redis".to_owned()))
            }
        };
        LockReport { backend, holder: None, ttl, owner: None, error }
    }
}

/// What is left of the free memory beside the reserve.
pub fn available(vram: &Vram, reserve: Mb) -> Option<Mb> {
    vram.free.map(|free| free.saturating_sub(reserve))
}

impl StatusReport {
    pub fn new(config: &Config, snapshot: &Snapshot) -> StatusReport {
        let vram = &snapshot.vram;
        let device = vram.device.as_ref();
        let services = config.services.iter().map(|service| {
            let observed = snapshot.service(&service.name);
            let report = ServiceReport {
                state: observed.state,
                r#type: service.manager.type_name(),
                vram_mb: service.vram,
                used_mb: observed.used,
                priority: service.priority,
                phases: service.phases.iter().copied().collect(),
                pids: observed.pids().to_vec(),
                detail: observed.detail.clone(),
                error: (observed.state == State::Unknown)
                    .then(|| observed.detail.clone())
                    .flatten(),
            };
            (service.name.clone(), report)
        });
        StatusReport {
            schema: 1,
            gpu: GpuReport {
                index: device.map(|device| device.index),
                name: device.and_then(|device| device.name.clone()),
                uuid: device.and_then(|device| device.uuid.clone()),
                driver_version: device.and_then(|device| device.driver_version.clone()),
            },
            vram: VramReport {
                source: vram.source,
                total_mb: vram.total,
                used_mb: vram.used,
                free_mb: vram.free,
                available_mb: available(vram, config.gpu.reserve),
                reserve_mb: config.gpu.reserve,
                committed_mb: Budget::of(config, snapshot).committed(),
                processes: vram
                    .processes
                    .as_ref()
                    .map(|list| list.iter().map(ProcessReport::from).collect()),
                temperature_c: vram.temperature_c,
                utilization_percent: vram.utilization_percent,
                error: vram.error.clone(),
            },
            services: services.collect(),
            lock: LockReport::of(config.lock),
        }
    }
}

#[derive(Serialize)]
pub struct CanFitReport {
    pub fits: bool,
    pub required_mb: Mb,
    pub margin_mb: Mb,
    pub free_mb: Mb,
    pub available_mb: Mb,
    pub source: Source,
}

/// What an acting command did, or would do.
#[derive(Serialize)]
pub struct ActReport {
    success: bool,
    #[serde(flatten)]
    subject: Subject,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    stopped: Vec<String>,
    unloaded: Vec<String>,
    started: Vec<String>,
    kept: Vec<String>,
    freed_mb: Option<Mb>,
    elapsed_ms: u64,
    steps: Vec<StepReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What a command acted for.
#[derive(Clone, Serialize)]
#[serde(untagged)]
pub enum Subject {
    Phase { phase: u32, name: Option<String> },
    Service { service: String },
    Services { services: Vec<String> },
    All {},
}

#[derive(Serialize)]
struct StepReport {
    action: &'static str,
    service: Option<String>,
    /// Memory that it concerns, in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<Mb>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elapsed_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl ActReport {
    /// The plan, for `--dry-run`.
    pub fn planned(
        subject: Subject,
        plan: &Plan,
        config: &Config,
        snapshot: &Snapshot,
    ) -> ActReport {
        let step = |action, service: &str, memory_mb| StepReport {
            action,
            service: Some(service.to_owned()),
            memory_mb,
            elapsed_ms: None,
            note: None,
        };
        let mut steps = Vec::new();
        for eviction in &plan.evict {
            let action = match eviction.how {
                EvictHow::Stop => "stop",
                EvictHow::Kill => "kill",
                EvictHow::Unload => "unload",
            };
            let mut report = step(action, &eviction.service, eviction.frees);
            report.note = strangers_note(snapshot, &eviction.service);
            steps.push(report);
        }
        if !plan.evict.is_empty() {
            let freed = plan.evict.iter().map(|eviction| eviction.frees).sum();
            steps.push(StepReport { service: None, ..step("reclaim", "", freed) });
        }
        for start in &plan.start {
            let action = match start.how {
                StartHow::Start => "start",
                StartHow::Await => "await",
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

    /// What was done.
    pub fn done(subject: Subject, plan: &Plan, outcome: &Outcome) -> ActReport {
        let steps = outcome.steps.iter().map(|step| StepReport {
            action: step.action,
            service: step.service.clone(),
            memory_mb: None,
            elapsed_ms: Some(step.elapsed.as_millis() as u64),
            note: step.note.clone(),
        });
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
            steps: steps.collect(),
            warnings: plan.warnings.clone(),
        }
    }
}

/// Processes that match the service's pattern and are left alone, and those that only its pattern
/// calls its own.
fn strangers_note(snapshot: &Snapshot, service: &str) -> Option<String> {
    let observed = snapshot.service(service);
    let strangers: Vec<String> =
        observed.strangers.iter().map(|(pid, line)| format!("{pid} ({line})")).collect();
    (!strangers.is_empty())
        .then(|| format!("matched by its pattern and left alone: {}", strangers.join(", ")))
}

/// What `config check` found.
#[derive(Serialize)]
pub struct CheckReport {
    pub valid: bool,
    pub path: String,
    pub services: Vec<String>,
    pub phases: Vec<u32>,
}

/// A path, for `config path` and `config init`.
#[derive(Serialize)]
pub struct PathReport {
    pub path: Option<String>,
}
