//! The words of the domain: sizes, services, phases, states, and the snapshot of the world.

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

/// Environment variables that gpuctl gives on to what it starts.
pub mod variable {
    /// The service that a process belongs to, or that `run` has made ready for it.
    pub const SERVICE: &str = "GPUCTL_SERVICE";
    /// The configuration that the service's name is from.
    pub const CONFIG: &str = "GPUCTL_CONFIG";
    /// The lock that a command works under, and its number. A process that bears them is no part
    /// of a service, though it names one.
    pub const LOCK_TOKEN: &str = "GPUCTL_LOCK_TOKEN";
    pub const FENCE: &str = "GPUCTL_FENCE";
}

pub type Pid = i32;

/// A service that gpuctl manages, as configured and validated.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub manager: Manager,
    /// Declared need; what the planner counts on, whatever the service holds at the moment.
    pub vram: Mb,
    /// Higher is kept longer.
    pub priority: i64,
    pub phases: BTreeSet<u32>,
    /// The health check; without one, its manager's own counts, or that it is alive.
    pub health: Option<Health>,
    /// It may take this long from its start until it is ready.
    pub start_timeout: Duration,
    /// It may take this long from TERM until it is gone; SIGKILL follows.
    pub stop_timeout: Duration,
    /// The server that it is, where gpuctl knows its kind.
    pub server: Option<ApiServer>,
    pub headers: Headers,
    pub jobs: Option<JobProbe>,
    /// Its jobs may take this long to end before it is stopped or unloaded.
    pub drain: Duration,
    /// After so long without work it may be given back.
    pub idle: Option<Duration>,
    /// It is ready only when this call has been answered.
    pub warm_up: Option<HttpCall>,
    pub evict: Evict,
    pub unload: Option<Unload>,
}

impl Service {
    /// Returns the most that a service may still hold which has unloaded all its models: what its
    /// context on the card keeps, or about as much as it `kept` when it was asked to unload before.
    pub fn residue(&self, kept: Option<Mb>) -> Mb {
        let known = kept.map(|kept| Mb(kept.0 + kept.0 / 4));
        Mb(1536).max(Mb(self.vram.0 / 4)).max(known.unwrap_or_default())
    }

    /// Returns the base URL of a vLLM that its unload puts to sleep, where nobody would wake it: gpuctl is
    /// not told that it is one.
    pub fn sleeps_for_good(&self) -> Option<&str> {
        let Some(Unload::Call(call)) = &self.unload else { return None };
        let path = call.url.split('?').next().unwrap_or_default();
        let base = path.trim_end_matches('/').strip_suffix("/sleep")?;
        (!self.server.as_ref().is_some_and(ApiServer::can_sleep)).then_some(base)
    }

    /// Whether it has unloaded, as far as one can tell from what it holds and `kept` before.
    pub fn holds_residue(&self, held: Mb, kept: Option<Mb>) -> bool {
        held == Mb(0) || (held <= self.residue(kept) && held < self.vram)
    }
}

/// Who starts and stops a service.
#[derive(Clone, Debug)]
pub enum Manager {
    Native(Native),
    Containers(Containers),
    Systemd { unit: String, user: bool },
}

impl Manager {
    /// The configuration's `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Manager::Native(_) => "native",
            Manager::Containers(Containers::Named(_)) => "docker",
            Manager::Containers(Containers::Compose(_)) => "compose",
            Manager::Systemd { .. } => "systemd",
        }
    }

    /// Returns what its manager calls it: the container, the unit, or the project and its service.
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

#[derive(Clone, Debug)]
pub struct Native {
    /// Run by `sh -c`.
    pub start: String,
    /// A `pgrep -f` pattern (ERE) for processes that gpuctl did not start itself.
    pub pattern: Option<String>,
    /// Run by `sh -c` instead of sending TERM.
    pub stop: Option<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Healthy on any 2xx.
    Http(String),
    /// Healthy when it accepts a connection.
    Tcp { host: String, port: u16 },
}

/// A service gives its memory back in one of these ways when another needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evict {
    Stop,
    /// Ask it over HTTP to unload its models; it keeps running.
    Unload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its manager cannot be asked.
    Unknown,
    Stopped,
    /// Alive, not healthy, within its start timeout.
    Starting,
    Ready,
    /// Ready, and the lock is held for it.
    Busy,
    Stopping,
    /// Its process lives and its port accepts, and no answer comes in time: it works, or is stuck.
    Unresponsive,
    /// Put to sleep by an unload, from which a call wakes it.
    Asleep,
    /// Alive and unhealthy for too long, crash-looping, dead, or a stranger answers for it.
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

/// A service's manager says this of it; health is judged apart.
#[derive(Clone, Debug)]
pub enum Presence {
    /// The manager cannot be asked, and why.
    Unknown(Failure),
    /// The manager has no such container or unit; the text says how to create it.
    Missing(Failure),
    /// It does not run; the text tells how it ended, where that is worth telling.
    Down(Option<String>),
    Up(Running),
    /// Neither running nor to be started again, and why (a container that could not be removed).
    Dead(Failure),
    /// Being taken down or removed.
    Stopping(String),
}

/// A service that is alive, in whatever shape.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// The main process, or all processes where they are known.
    pub pids: Vec<Pid>,
    /// Time since it came up.
    pub age: Option<Duration>,
    /// Restarts made by its manager.
    pub restarts: u64,
    pub trouble: Option<Trouble>,
    /// Its manager says this of its health, where it has a check of its own (Docker's
    /// HEALTHCHECK).
    pub own_health: Option<Healthy>,
    /// Ports of this machine that its manager forwards to it (Docker's published ports), and to which
    /// port of its own each is; those that are reached through localhost.
    pub published: BTreeMap<u16, u16>,
}

impl Running {
    /// Why its manager has not come to start it yet; then nobody is there who could answer.
    pub fn not_begun(&self) -> Option<&str> {
        match &self.own_health {
            Some(Healthy::No(why)) if self.pids.is_empty() => Some(why),
            _ => None,
        }
    }
}

/// One of these keeps a living service from answering, as far as its manager can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// `docker pause`.
    Paused,
    /// It is between two attempts; the text tells how the last one ended.
    CrashLoop(String),
    /// Some of its containers do not run; the text tells which.
    Incomplete(String),
    /// Stopped by a signal (SIGSTOP, a debugger).
    Suspended,
    /// It was ready, and nobody listens on its port any more: its server has ended and left
    /// processes behind.
    Orphaned,
}

/// A health check finds one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthy {
    Yes,
    /// It answered, or did not: why it is not healthy.
    No(String),
    /// It took the connection, and gave no answer in time.
    Silent(String),
}

/// The candidate most like a mistyped word, if any is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
