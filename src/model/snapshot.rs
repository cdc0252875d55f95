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

/// The world at one moment; all that a plan is made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub vram: Vram,
    /// The services stand in the order of the configuration.
    pub services: Vec<Observed>,
    /// They stand in the same order, and are empty for services that no manager knows of.
    pub managed: Vec<Managed>,
}

impl Snapshot {
    /// Tells of the services that are ready which are in use.
    pub fn mark_busy(&mut self, is_used: impl Fn(&str) -> bool) {
        let ready = self.services.iter_mut().filter(|service| service.state == State::Ready);
        for service in ready.filter(|service| is_used(&service.name)) {
            service.state = State::Busy;
        }
    }

    /// Returns what a service's manager has said of where it is.
    pub fn managed(&self, name: &str) -> &Managed {
        let at = self.services.iter().position(|service| service.name == name);
        &self.managed[at.expect("a snapshot holds every configured service")]
    }

    pub fn service(&self, name: &str) -> &Observed {
        self.services
            .iter()
            .find(|service| service.name == name)
            .expect("a snapshot holds every configured service")
    }
}

/// One service as it was found.
#[derive(Clone, Debug)]
pub struct Observed {
    pub name: String,
    pub presence: Presence,
    pub state: State,
    /// Why it is in that state.
    pub detail: Option<String>,
    /// Its health check took this long, where that found it ready.
    pub health: Option<Duration>,
    /// Who answers its health check instead of it.
    pub answered_by: Option<AnsweredBy>,
    /// Memory held by its processes; `None` where it cannot be told.
    pub used: Option<Mb>,
    /// Its jobs, running or waiting; `None` where they were not asked for or cannot be told.
    pub jobs: Option<u64>,
    /// Why its jobs cannot be told, where they were asked for.
    pub jobs_unknown: Option<String>,
    /// It was asked for its jobs and gave no answer, and its processes work on the card.
    pub works_silently: bool,
    /// The most that its processes have held, as far as gpuctl has seen.
    pub peak: Option<Mb>,
    /// What these same processes still held after gpuctl had asked them to unload for the second time;
    /// `None` where it had no need to, or they are others.
    pub kept: Option<Mb>,
    /// These same processes have unloaded when gpuctl asked them to; not noted where what they held then was
    /// no more than a context.
    pub has_unloaded_before: bool,
    /// The time for which it has not worked; `None` where that cannot be told.
    pub idle: Option<Duration>,
    pub unproven: Vec<Unproven>,
}

impl Observed {
    pub fn is_alive(&self) -> bool {
        matches!(self.presence, Presence::Up(_))
    }

    /// It is being stopped already, and its memory comes back without our doing.
    pub fn is_stopping(&self) -> bool {
        matches!(self.presence, Presence::Stopping(_))
    }

    /// Whether there is anything to stop, or to wait for until it has stopped.
    pub fn can_be_stopped(&self) -> bool {
        self.is_alive() || self.is_stopping()
    }

    /// One whose manager cannot be asked is taken to be running.
    pub fn may_run(&self) -> bool {
        matches!(self.presence, Presence::Up(_) | Presence::Unknown(_))
    }

    pub fn pids(&self) -> &[Pid] {
        match &self.presence {
            Presence::Up(running) => &running.pids,
            _ => &[],
        }
    }

    /// Time since it came up.
    pub fn uptime(&self) -> Option<Duration> {
        match &self.presence {
            Presence::Up(running) => running.age,
            _ => None,
        }
    }
}

/// A service is at work on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// So many jobs, running or waiting, as it tells itself; at least one.
    Jobs(u64),
    /// It gives no answer, and the driver tells that its processes work.
    OnCard,
}

impl InFlight {
    /// Returns the number of its jobs, where that is known.
    pub fn jobs(self) -> Option<u64> {
        match self {
            InFlight::Jobs(jobs) => Some(jobs),
            InFlight::OnCard => None,
        }
    }
}

impl fmt::Display for InFlight {
    /// "1 job", "2 jobs"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InFlight::Jobs(1) => f.write_str("1 job"),
            InFlight::Jobs(jobs) => write!(f, "{jobs} jobs"),
            InFlight::OnCard => f.write_str("does not answer, and works on the card"),
        }
    }
}

/// Who answers a service's health check in its place.
#[derive(Clone, Debug)]
pub struct AnsweredBy {
    /// "process 12 (nginx) answers on port 8099"
    pub who: String,
    /// The configured service that it is, if it is one: two that share a port, one at a time.
    pub service: Option<String>,
    /// The process that it is, where it is nobody's and no container's.
    pub pid: Option<Pid>,
}

impl AnsweredBy {
    /// The failure of a service whose port is taken.
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

/// A process is tied to its service by one of these, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// It is in the control group of the service's unit, container or scope.
    ControlGroup,
    /// It descends from the main process of the service's container.
    Container,
    /// gpuctl has recorded it when the service was started, or its owner has adopted it; or it
    /// descends from such a process, is in its session, or writes to the log of that start.
    Start,
    /// `GPUCTL_SERVICE` in its environment names the service.
    Mark,
    /// The service's `match` finds it, and its family listens on the service's port, or is the only
    /// one that is on the card.
    Match,
}

/// A process that may be a native service's, and that nothing proves to be: its `match` finds it, or
/// it listens on the service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    pub pid: Pid,
    /// Its command line.
    pub command: String,
    /// The service's `match` finds it.
    pub matches: bool,
    pub is_on_card: bool,
    pub age: Duration,
}

impl fmt::Display for Unproven {
    /// "4711 (python3 main.py)"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.command)
    }
}

/// A manager has said where a service's processes are.
#[derive(Clone, Debug, Default)]
pub struct Managed {
    /// Its containers.
    pub containers: Vec<Container>,
    /// The containers that its own depend on and that no service of the configuration has.
    pub dependencies: Vec<Container>,
    /// The services of the configuration whose containers its own depend on, also by way of others.
    pub needs: Vec<String>,
    /// The services of its compose project that have to have a container before it can be started, and have none.
    pub unmade: Vec<Compose>,
    /// The files that compose makes its containers from, where they are known and there.
    pub compose_files: Option<ComposeFiles>,
    /// The paths of its control groups.
    pub control_groups: Vec<String>,
    /// A socket that starts the unit, which has stopped, for whoever connects.
    pub socket: Option<String>,
}

/// The card's memory, measured or estimated. Sizes that are not known are `None`.
#[derive(Clone, Debug, Default)]
pub struct Vram {
    pub source: Source,
    pub device: Option<Device>,
    pub total: Option<Mb>,
    pub used: Option<Mb>,
    /// The driver gives this figure.
    pub free: Option<Mb>,
    /// `None` where the driver does not list them.
    pub processes: Option<Vec<GpuProcess>>,
    pub temperature_c: Option<u32>,
    pub utilization_percent: Option<u32>,
    /// The time of the driver's latest sample of who works, `None` where it tells of none, or was not
    /// asked.
    pub sampled: Option<Timestamp>,
    /// Why it was not measured, or not fully.
    pub error: Option<String>,
    /// The driver is well and knows other cards than the one that was asked for: an estimate would
    /// be one of nothing.
    pub no_such_gpu: bool,
}

impl Vram {
    /// Returns the processes of a service that are listed.
    pub fn of_service(&self, name: &str) -> impl Iterator<Item = &GpuProcess> {
        let processes = self.processes.iter().flatten();
        processes.filter(move |process| process.service.as_deref() == Some(name))
    }

    /// Whether the driver tells that processes of a service have worked lately.
    pub fn shows_at_work(&self, name: &str) -> bool {
        self.of_service(name).any(|process| process.works == Some(true))
    }

    /// Returns what processes hold that are nobody's and have died: memory on its way back.
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
    /// The figures come from `gpu.total_mb` and the declared sizes of what runs.
    #[default]
    Estimate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: Option<String>,
    pub uuid: Option<String>,
    pub driver_version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    pub pid: Pid,
    pub name: String,
    /// Its command line, where we may look.
    pub command: Option<String>,
    /// `None` where the driver does not tell (WSL, some virtual GPUs).
    pub memory: Option<Mb>,
    /// The service it belongs to.
    pub service: Option<String>,
    /// It is dead, and the driver has not taken its memory back yet.
    pub is_ending: bool,
    /// It has worked on the card lately; `None` where the driver does not tell, or was not asked.
    pub works: Option<bool>,
    /// The most that it has held, where the driver keeps account.
    pub peak: Option<Mb>,
}

impl fmt::Display for GpuProcess {
    /// "process 7 (Xorg, 800 MB)"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.memory.map(|memory| format!(", {memory}")).unwrap_or_default();
        write!(f, "process {} ({}{size})", self.pid, self.name)
    }
}

impl GpuProcess {
    /// Describes the process for programs, as a failure's details have it.
    pub fn detail(&self) -> Value {
        json!({"pid": self.pid, "name": self.name, "memory_mb": self.memory})
    }
}
