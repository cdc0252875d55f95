//! The report of `status`: the card, its processes, the services and the lock.

use super::LockReport;
use crate::config::Config;
use crate::error::Result;
use crate::lock::Held;
use crate::model::{GpuProcess, Mb, Pid, Snapshot, Source, State, Vram};
use crate::plan::CardBudget;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;

/// The answer to `status`.
#[derive(Serialize, JsonSchema)]
pub struct StatusReport {
    pub schema: u32,
    pub gpu: GpuReport,
    pub vram: VramReport,
    pub services: IndexMap<String, ServiceReport>,
    pub lock: LockReport,
    /// Whether all services that `--check` names are ready or busy; absent without `--check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<bool>,
}

/// The card.
#[derive(Serialize, JsonSchema)]
pub struct GpuReport {
    pub index: Option<u32>,
    pub name: Option<String>,
    pub uuid: Option<String>,
    pub driver_version: Option<String>,
}

/// The card's memory.
#[derive(Serialize, JsonSchema)]
pub struct VramReport {
    pub source: Source,
    pub total_mb: Option<Mb>,
    pub used_mb: Option<Mb>,
    pub free_mb: Option<Mb>,
    pub available_mb: Option<Mb>,
    pub reserve_mb: Mb,
    pub committed_mb: Mb,
    /// Memory that running services have declared and not yet used.
    #[serde(skip)]
    pub promised: Mb,
    pub processes: Option<Vec<ProcessReport>>,
    pub temperature_c: Option<u32>,
    pub utilization_percent: Option<u32>,
    pub error: Option<String>,
}

/// A process that holds memory on the card.
#[derive(Serialize, JsonSchema)]
pub struct ProcessReport {
    pub pid: Pid,
    pub name: String,
    pub memory_mb: Option<Mb>,
    pub service: Option<String>,
    /// The command line, for people only: it may hold what is nobody else's business.
    #[serde(skip)]
    pub command: Option<String>,
}

impl From<&GpuProcess> for ProcessReport {
    fn from(process: &GpuProcess) -> Self {
        ProcessReport {
            pid: process.pid,
            name: process.name.clone(),
            memory_mb: process.memory,
            service: process.service.clone(),
            command: process.command.clone(),
        }
    }
}

/// A service of the configuration.
#[derive(Serialize, JsonSchema)]
pub struct ServiceReport {
    pub state: State,
    pub r#type: &'static str,
    pub vram_mb: Mb,
    pub used_mb: Option<Mb>,
    pub priority: i64,
    pub phases: Vec<u32>,
    pub pids: Vec<Pid>,
    /// Number of the service's jobs, running or waiting; null if it is not known.
    pub jobs: Option<u64>,
    /// The most memory that the service's processes were seen to hold; null if none was seen yet.
    pub peak_mb: Option<Mb>,
    /// Seconds for which the service has not worked; null if that is not known.
    pub idle_s: Option<u64>,
    /// Milliseconds that the health check took; null unless it found the service ready.
    pub health_ms: Option<f64>,
    pub uptime_s: Option<u64>,
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The service's container or unit, or whatever its manager calls it.
    #[serde(skip)]
    pub place: Option<String>,
    /// Memory for which the service counts in an estimate.
    #[serde(skip)]
    pub estimated_mb: Mb,
}

/// Returns the free memory that is left beyond the reserve, or `None` if the free memory is not
/// known.
pub fn available(vram: &Vram, reserve: Mb) -> Option<Mb> {
    vram.free.map(|free| free.saturating_sub(reserve))
}

impl StatusReport {
    pub fn new(config: &Config, snapshot: &Snapshot, lock: &Result<Option<Held>>) -> StatusReport {
        let vram = &snapshot.vram;
        let budget = CardBudget::of(config, snapshot);
        let device = vram.device.as_ref();
        let services = config.services.iter().zip(&snapshot.services).map(|(service, observed)| {
            let report = ServiceReport {
                state: observed.state,
                r#type: service.manager.type_name(),
                vram_mb: service.vram,
                used_mb: observed.used,
                priority: service.priority,
                phases: service.phases.iter().copied().collect(),
                pids: observed.pids().to_vec(),
                jobs: observed.jobs,
                peak_mb: observed.peak,
                idle_s: observed.idle.map(|idle| idle.as_secs()),
                health_ms: observed.health.map(|took| took.as_micros() as f64 / 1000.0),
                uptime_s: observed.uptime().map(|age| age.as_secs()),
                detail: observed.detail.clone(),
                error: (observed.state == State::Unknown)
                    .then(|| observed.detail.clone())
                    .flatten(),
                place: service.manager.place(),
                estimated_mb: if observed.may_run() { service.vram } else { Mb(0) },
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
                committed_mb: budget.committed(),
                promised: budget.unused(),
                processes: vram
                    .processes
                    .as_ref()
                    .map(|list| list.iter().map(ProcessReport::from).collect()),
                temperature_c: vram.temperature_c,
                utilization_percent: vram.utilization_percent,
                error: vram.error.clone(),
            },
            services: services.collect(),
            lock: LockReport::new(config, lock),
            checked: None,
        }
    }
}
