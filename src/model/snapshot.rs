//! The world at one moment, as plain data.

use super::{Compose, ComposeFiles, Container, Manager, Mb, Pid, Presence, Service, State};
use crate::error::Failure;
use crate::exit::Code;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// The world at one moment: all that a plan is made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub vram: Vram,
    /// The services as they were observed, in the order of the configuration.
    pub services: Vec<Observed>,
    /// What managers have said of the services, in the same order; empty for a service that no
    /// manager knows of.
    pub managed: Vec<Managed>,
}

impl Snapshot {
    /// Sets the state of each ready service for which `is_used` is true to `Busy`.
    pub fn mark_busy(&mut self, is_used: impl Fn(&str) -> bool) {
        let ready = self.services.iter_mut().filter(|service| service.state == State::Ready);
        for service in ready.filter(|service| is_used(&service.name)) {
            service.state = State::Busy;
        }
    }

    /// Returns what a service's manager has said of where the service is.
    pub fn managed(&self, name: &str) -> &Managed {
        let at = self.services.iter().position(|service| service.name == name);
        &self.managed[at.expect("a snapshot holds every configured service")]
    }

    /// Returns a service as it was observed.
    pub fn service(&self, name: &str) -> &Observed {
        self.services
            .iter()
            .find(|service| service.name == name)
            .expect("a snapshot holds every configured service")
    }
}

/// One service as it was observed.
#[derive(Clone, Debug)]
pub struct Observed {
    pub name: String,
    pub presence: Presence,
    pub state: State,
    /// Reason why the service is in its state, if there is one to tell.
    pub detail: Option<String>,
    /// Time that the service's health check took, if the check found it ready.
    pub health: Option<Duration>,
    /// The process or service that answers this service's health check in its place, if there is
    /// one.
    pub answered_by: Option<AnsweredBy>,
    /// Memory held by the service's processes, or `None` if that is not known.
    pub used: Option<Mb>,
    /// Number of the service's jobs, running or waiting; `None` if it was not asked for them, or
    /// they are not known.
    pub jobs: Option<u64>,
    /// Reason why the service's jobs are not known, if it was asked for them.
    pub jobs_unknown: Option<String>,
    /// Whether the service was asked for its jobs and gave no answer while its processes work on
    /// the card.
    pub works_silently: bool,
    /// The most memory that the service's processes have held, as far as gpuctl has seen.
    pub peak: Option<Mb>,
    /// Memory that the service's present processes still held after gpuctl had asked them to unload
    /// for the second time. `None` if there was no need for that, the driver did not tell, or the
    /// processes are others by now.
    pub kept: Option<Mb>,
    /// Whether the service's present processes have unloaded before when gpuctl asked them to; not
    /// noted if what they held then was no more than a context.
    pub has_unloaded_before: bool,
    /// Time for which the service has not worked, or `None` if that is not known.
    pub idle: Option<Duration>,
    /// Processes that may be the service's, and that nothing proves to be.
    pub unproven: Vec<Unproven>,
}

impl Observed {
    pub fn is_alive(&self) -> bool {
        matches!(self.presence, Presence::Up(_))
    }

    /// Reports whether the service is being stopped already, so that its memory comes back without
    /// gpuctl.
    pub fn is_stopping(&self) -> bool {
        matches!(self.presence, Presence::Stopping(_))
    }

    /// Reports whether there is anything of the service to stop, or to wait for until it has
    /// stopped.
    pub fn can_be_stopped(&self) -> bool {
        self.is_alive() || self.is_stopping()
    }

    /// Reports whether the service runs; one whose manager cannot be asked is taken to be running.
    pub fn may_run(&self) -> bool {
        matches!(self.presence, Presence::Up(_) | Presence::Unknown(_))
    }

    pub fn pids(&self) -> &[Pid] {
        match &self.presence {
            Presence::Up(running) => &running.pids,
            _ => &[],
        }
    }

    /// Returns the time since the service came up, if that is known.
    pub fn uptime(&self) -> Option<Duration> {
        match &self.presence {
            Presence::Up(running) => running.age,
            _ => None,
        }
    }
}

/// The work that a service is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Number of jobs, running or waiting, as the service itself reports it; at least one.
    Jobs(u64),
    /// The service gives no answer, and the driver reports that its processes work.
    OnCard,
}

impl InFlight {
    /// Returns the number of jobs, or `None` if it is not known.
    pub fn jobs(self) -> Option<u64> {
        match self {
            InFlight::Jobs(jobs) => Some(jobs),
            InFlight::OnCard => None,
        }
    }
}

impl fmt::Display for InFlight {
    /// Writes `1 job`, `2 jobs` or `does not answer, and works on the card`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InFlight::Jobs(1) => f.write_str("1 job"),
            InFlight::Jobs(jobs) => write!(f, "{jobs} jobs"),
            InFlight::OnCard => f.write_str("does not answer, and works on the card"),
        }
    }
}

/// The process or service that answers a service's health check in its place.
#[derive(Clone, Debug)]
pub struct AnsweredBy {
    /// Description of what answers: `process 12 (nginx) answers on port 8099`.
    pub who: String,
    /// Name of the configured service that answers, if it is one: the two share a port and run one
    /// at a time.
    pub service: Option<String>,
    /// PID of the process that answers, if it belongs to no service and no container.
    pub pid: Option<Pid>,
}

impl AnsweredBy {
    /// Returns the failure of a service whose port is taken.
    pub fn in_the_way_of(&self, service: &Service) -> Failure {
        let name = &service.name;
        let failure = Failure::new(Code::StartFailed, format!("{name}: {}", self.who))
            .hint("stop that one, or give the service another port");
        match (self.pid, &service.manager) {
            (Some(pid), Manager::Native(_)) => {
                failure.hint(format!("if it is {name}: gpuctl adopt {name} {pid}"))
            }
            _ => failure,
        }
    }
}

/// What ties a process to its service, the strongest proof first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// The process is in the control group of the service's unit, container or scope.
    ControlGroup,
    /// The process descends from the main process of the service's container.
    Container,
    /// gpuctl recorded the process when the service was started, or the user has adopted it; or it
    /// descends from such a process, is in its session, or writes to the log of that start.
    Start,
    /// `GPUCTL_SERVICE` in the environment of the process names the service.
    Mark,
    /// The service's `match` finds the process, and the process's family listens on the service's
    /// port, or is the only one that is on the card.
    Match,
}

/// A process that may be a native service's, and that nothing proves to be: the service's `match`
/// finds it, or it listens on the service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    pub pid: Pid,
    /// Command line of the process.
    pub command: String,
    /// Whether the service's `match` finds the process.
    pub matches: bool,
    pub is_on_card: bool,
    pub age: Duration,
}

impl fmt::Display for Unproven {
    /// Writes the process as `4711 (python3 main.py)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.command)
    }
}

/// What a manager has said of where a service's processes are.
#[derive(Clone, Debug, Default)]
pub struct Managed {
    /// The service's containers.
    pub containers: Vec<Container>,
    /// Containers that the service's own depend on, if no service of the configuration has them or
    /// they only have to do their work to its end.
    pub dependencies: Vec<Container>,
    /// Names of the configured services whose containers the service's own depend on, also by way
    /// of others.
    pub needs: Vec<String>,
    /// Services of the compose project that have to have a container before this service can be
    /// started, and have none.
    pub unmade: Vec<Compose>,
    /// The files that compose makes the service's containers from, if they are known and all exist.
    pub compose_files: Option<ComposeFiles>,
    /// Paths of the service's control groups.
    pub control_groups: Vec<String>,
    /// The systemd socket that starts the service's unit, which has stopped, for any process that
    /// connects.
    pub socket: Option<String>,
}

/// The card's memory, measured or estimated. Sizes that are not known are `None`.
#[derive(Clone, Debug, Default)]
pub struct Vram {
    pub source: Source,
    pub device: Option<Device>,
    pub total: Option<Mb>,
    pub used: Option<Mb>,
    /// Free memory as the driver gives it, without what it reserves for itself; in an estimate,
    /// `total` less `used`.
    pub free: Option<Mb>,
    /// Processes on the card, or `None` if the driver does not list them.
    pub processes: Option<Vec<GpuProcess>>,
    pub temperature_c: Option<u32>,
    pub utilization_percent: Option<u32>,
    /// Time of the driver's latest sample of which processes work; `None` if the driver tells of
    /// none, or was not asked.
    pub sampled: Option<Timestamp>,
    /// Reason why the memory was not measured, or not all of it.
    pub error: Option<String>,
    /// Whether the driver works and knows other cards than the one that was asked for. No estimate
    /// is made then, since there is no card to make it for.
    pub no_such_gpu: bool,
}

impl Vram {
    /// Returns the processes on the card that belong to a service.
    pub fn of_service(&self, name: &str) -> impl Iterator<Item = &GpuProcess> {
        let processes = self.processes.iter().flatten();
        processes.filter(move |process| process.service.as_deref() == Some(name))
    }

    /// Reports whether processes of a service have worked lately, according to the driver.
    pub fn shows_at_work(&self, name: &str) -> bool {
        self.of_service(name).any(|process| process.works == Some(true))
    }

    /// Returns the memory of dead processes that belong to no service: it is on its way back.
    pub fn dead(&self) -> Mb {
        let dead =
            self.processes.iter().flatten().filter(|one| one.is_ending && one.service.is_none());
        dead.filter_map(|process| process.memory).sum()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Nvml,
    /// The figures are estimated from `gpu.total_mb` and the declared sizes of the services that
    /// run.
    #[default]
    Estimate,
}

/// A card, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: Option<String>,
    pub uuid: Option<String>,
    pub driver_version: Option<String>,
}

/// A process on the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    pub pid: Pid,
    pub name: String,
    /// Command line of the process, if gpuctl may read it.
    pub command: Option<String>,
    /// Memory that the process holds, or `None` if the driver does not tell (WSL, some virtual
    /// GPUs).
    pub memory: Option<Mb>,
    /// Name of the service that the process belongs to.
    pub service: Option<String>,
    /// Whether the process is dead and the driver has not taken its memory back yet.
    pub is_ending: bool,
    /// Whether the process has worked on the card lately; `None` if the driver does not tell, or
    /// was not asked.
    pub works: Option<bool>,
    /// The most memory that the process has held, if the driver keeps account of that.
    pub peak: Option<Mb>,
}

impl fmt::Display for GpuProcess {
    /// Writes the process as `process 7 (Xorg, 800 MB)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.memory.map(|memory| format!(", {memory}")).unwrap_or_default();
        write!(f, "process {} ({}{size})", self.pid, self.name)
    }
}

impl GpuProcess {
    /// Returns the process as JSON, as it stands in the details of a failure.
    pub fn detail(&self) -> Value {
        json!({"pid": self.pid, "name": self.name, "memory_mb": self.memory})
    }
}
