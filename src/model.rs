//! The types of the domain: sizes, services, phases, states, and the snapshot of the world.

mod address;
mod api;
mod container;
mod size;
mod snapshot;

pub use address::{CONTAINER, NO_ADDRESS};
pub use api::{Api, ApiServer, Headers, HttpCall, JobProbe, Unload};
pub use container::{
    Compose, ComposeFiles, ComposeLabels, Condition, Container, ContainerNetwork, Containers,
    Dependency, GpuAccess, PortBinding, Setup, is_podman,
};
pub use size::Mb;
pub use snapshot::{
    AnsweredBy, Device, GpuProcess, InFlight, Managed, Observed, Proof, Snapshot, Source, Unproven,
    Vram,
};

use crate::error::Failure;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Environment variables that gpuctl passes on to what it starts.
pub mod variable {
    /// Name of the service that a process belongs to, or names of the services that `run` has made
    /// ready for it.
    pub const SERVICE: &str = "GPUCTL_SERVICE";
    /// Path of the configuration that the service's name is from.
    pub const CONFIG: &str = "GPUCTL_CONFIG";
    /// Token of the lock that a command works under. A process that bears it is not part of a
    /// service, even if `GPUCTL_SERVICE` names one.
    pub const LOCK_TOKEN: &str = "GPUCTL_LOCK_TOKEN";
    /// Fence of the lock that a command works under.
    pub const FENCE: &str = "GPUCTL_FENCE";
}

pub type Pid = i32;

/// A service that gpuctl manages, as configured and validated.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub manager: Manager,
    /// Declared need of GPU memory; the planner counts on it, whatever the service holds at the
    /// moment.
    pub vram: Mb,
    /// Priority of the service; services with a higher one are kept longer.
    pub priority: i64,
    pub phases: BTreeSet<u32>,
    /// The configured health check. If there is none, the manager's own check counts, or else that
    /// the service is alive.
    pub health: Option<Health>,
    /// Longest time from the service's start until it is ready.
    pub start_timeout: Duration,
    /// Longest time from TERM until the service has ended; SIGKILL follows.
    pub stop_timeout: Duration,
    /// Kind and address of the service's model server, if gpuctl knows that kind.
    pub server: Option<ApiServer>,
    pub headers: Headers,
    pub jobs: Option<JobProbe>,
    /// Longest time that the service's jobs may take to end before it is stopped or unloaded.
    pub drain: Duration,
    /// Time without work after which the service may be released, if one is configured.
    pub idle: Option<Duration>,
    /// Call that has to be answered before the service counts as ready.
    pub warm_up: Option<HttpCall>,
    pub evict: Evict,
    pub unload: Option<Unload>,
}

impl Service {
    /// Returns the most that a service may still hold once it has unloaded all its models: what its
    /// context on the card takes, or about as much as it `kept` after an earlier request to unload.
    pub fn residue(&self, kept: Option<Mb>) -> Mb {
        let known = kept.map(|kept| Mb(kept.0 + kept.0 / 4));
        Mb(1536).max(Mb(self.vram.0 / 4)).max(known.unwrap_or_default())
    }

    /// Returns the base URL of the service if its unload call puts a vLLM to sleep that nobody
    /// would wake, because gpuctl is not told that the service is a vLLM.
    pub fn sleeps_for_good(&self) -> Option<&str> {
        let Some(Unload::Call(call)) = &self.unload else { return None };
        let path = call.url.split('?').next().unwrap_or_default();
        let base = path.trim_end_matches('/').strip_suffix("/sleep")?;
        (!self.server.as_ref().is_some_and(ApiServer::can_sleep)).then_some(base)
    }

    /// Reports whether the service has unloaded its models, as far as that shows in what it holds
    /// now and what it `kept` before.
    pub fn holds_residue(&self, held: Mb, kept: Option<Mb>) -> bool {
        held == Mb(0) || (held <= self.residue(kept) && held < self.vram)
    }
}

/// The mechanism that starts and stops a service.
#[derive(Clone, Debug)]
pub enum Manager {
    Native(Native),
    Containers(Containers),
    Systemd { unit: String, user: bool },
}

impl Manager {
    /// Returns the name of the manager's `type` in the configuration.
    pub fn type_name(&self) -> &'static str {
        match self {
            Manager::Native(_) => "native",
            Manager::Containers(Containers::Named(_)) => "docker",
            Manager::Containers(Containers::Compose(_)) => "compose",
            Manager::Systemd { .. } => "systemd",
        }
    }

    /// Returns what the manager calls the service: the container, the unit, or the project and its
    /// service. Returns `None` for a native service.
    pub fn place(&self) -> Option<String> {
        match self {
            Manager::Native(_) => None,
            Manager::Containers(Containers::Named(container)) => Some(container.clone()),
            Manager::Containers(Containers::Compose(compose)) => {
                let service = compose.service.iter().map(|service| format!("/{service}"));
                Some(std::iter::once(compose.project.clone()).chain(service).collect())
            }
            Manager::Systemd { unit, .. } => Some(unit.clone()),
        }
    }
}

/// The commands and settings of a service that gpuctl starts as a process of its own.
#[derive(Clone, Debug)]
pub struct Native {
    /// Command that starts the service, run by `sh -c`.
    pub start: String,
    /// A `pgrep -f` pattern (ERE) that finds processes of the service that gpuctl did not start
    /// itself.
    pub pattern: Option<String>,
    /// Command that stops the service, run by `sh -c` instead of sending TERM.
    pub stop: Option<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<PathBuf>,
}

/// A health check of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// URL of the check; the service is healthy if the answer is any 2xx.
    Http(String),
    /// Address of the check; the service is healthy if it accepts a connection there.
    Tcp { host: String, port: u16 },
}

/// The way in which a service gives its memory back when another service needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evict {
    Stop,
    /// The service is asked over HTTP to unload its models, and keeps running.
    Unload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The service's manager cannot be asked.
    Unknown,
    Stopped,
    /// Alive and not yet healthy, within its start timeout.
    Starting,
    Ready,
    /// Ready, and the lock is held for it.
    Busy,
    Stopping,
    /// Its process lives and its port accepts connections, but no answer comes in time: it is
    /// working or stuck.
    Unresponsive,
    /// Put to sleep by an unload; a call wakes it.
    Asleep,
    /// Alive and unhealthy for too long, crash-looping or dead, or a stranger answers for it.
    Error,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Unknown,
        State::Stopped,
        State::Starting,
        State::Ready,
        State::Busy,
        State::Stopping,
        State::Unresponsive,
        State::Asleep,
        State::Error,
    ];

    pub fn name(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Busy => "busy",
            State::Stopping => "stopping",
            State::Unresponsive => "unresponsive",
            State::Asleep => "asleep",
            State::Error => "error",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a service's manager says of the service; its health is judged separately.
#[derive(Clone, Debug)]
pub enum Presence {
    /// The manager cannot be asked; the failure says why.
    Unknown(Failure),
    /// The manager has no such container or unit; the failure says how to create it.
    Missing(Failure),
    /// The service does not run; the text says how it ended, if that is worth telling.
    Down(Option<String>),
    Up(Running),
    /// The service does not run and cannot be started again; the failure says why (a container that
    /// could not be removed).
    Dead(Failure),
    /// The service is being stopped or removed; the text says which.
    Stopping(String),
}

/// A service that is alive, in whatever shape.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// The service's main process, or all its processes if they are known.
    pub pids: Vec<Pid>,
    /// Time since the service came up.
    pub age: Option<Duration>,
    /// Number of restarts that the service's manager has made.
    pub restarts: u64,
    pub trouble: Option<Trouble>,
    /// What the service's manager says of its health, if the manager has a check of its own
    /// (Docker's HEALTHCHECK).
    pub own_health: Option<Healthy>,
    /// Ports of this machine that the service's manager forwards to it (Docker's published ports),
    /// each with the service's own port; only those that are reached through localhost.
    pub published: BTreeMap<u16, u16>,
}

impl Running {
    /// Returns why the service's manager has not started it yet, so that nobody is there who could
    /// answer, or `None` if the manager has.
    pub fn not_begun(&self) -> Option<&str> {
        match &self.own_health {
            Some(Healthy::No(why)) if self.pids.is_empty() => Some(why),
            _ => None,
        }
    }
}

/// What keeps a living service from answering, as far as its manager can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The service's container is paused (`docker pause`).
    Paused,
    /// The service is between two attempts to start; the text says how the last one ended.
    CrashLoop(String),
    /// Some of the service's containers do not run; the text says which.
    Incomplete(String),
    /// The service is stopped by a signal (SIGSTOP, a debugger).
    Suspended,
    /// The service was ready, and nothing listens on its port any more: its server has ended and
    /// left processes behind.
    Orphaned,
}

/// Result of a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthy {
    Yes,
    /// The service is not healthy, whether it answered or not; the text says why.
    No(String),
    /// The service took the connection and gave no answer in time; the text says more.
    Silent(String),
}

/// Returns the candidate that is most like a mistyped word, or `None` if none is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
