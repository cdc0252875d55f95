//! Containers: which ones are a service's, and what their engine says of one.

use super::{Pid, Presence};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The containers that are one service, and are started and stopped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Containers {
    /// The container of this name or id.
    Named(String),
    /// Those that compose has made for a project.
    Compose(Compose),
}

/// A compose project, or one service of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compose {
    pub project: String,
    /// `None`: all services of the project.
    pub service: Option<String>,
    /// The project's files, as configured; where there are none, its containers' labels name them.
    pub files: Vec<PathBuf>,
}

impl Compose {
    /// "service tts of the compose project mcn", or "the compose project mcn".
    pub fn told(&self) -> String {
        match &self.service {
            Some(service) => format!("service {service} of the compose project {}", self.project),
            None => format!("the compose project {}", self.project),
        }
    }

    /// Whether a container that bears these labels is one of its own.
    pub fn has(&self, labels: &ComposeLabels) -> bool {
        !labels.is_one_off
            && labels.project == self.project
            && self.service.as_ref().is_none_or(|service| *service == labels.service)
    }
}

/// The files that compose makes a project's containers from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComposeFiles {
    pub files: Vec<PathBuf>,
    /// The folder that paths in them are relative to; `None`: that of the first file.
    pub folder: Option<PathBuf>,
    /// The files with the values of variables in them; without any, compose takes `.env`.
    pub env_files: Vec<PathBuf>,
}

/// A container as its engine describes it.
#[derive(Clone, Debug)]
pub struct Container {
    /// The full id, as control groups name it.
    pub id: String,
    pub name: String,
    pub presence: Presence,
    /// Its exit code, where it has ended.
    pub exit_code: Option<i64>,
    /// Where it can be reached in its own network while it runs.
    pub addresses: Vec<IpAddr>,
    pub setup: Setup,
}

impl Container {
    /// Returns its main process, while it runs.
    pub fn main(&self) -> Option<Pid> {
        match &self.presence {
            Presence::Up(running) => running.pids.first().copied(),
            _ => None,
        }
    }

    /// What has the engine start it again no more than `policy` says.
    pub fn without_restart(&self, client: &str, policy: &str) -> String {
        match &self.setup.compose {
            Some(labels) => {
                format!(
                    "set `restart: \"{policy}\"` for {} in compose.yaml, then `{client} compose up --detach`",
                    labels.service
                )
            }
            // Its `update` cannot before podman 5.
            None if is_podman(client) => format!("recreate it with --restart={policy}"),
            None => format!("{client} update --restart={policy} {}", self.name),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.presence, Presence::Up(_))
    }
}

/// Whether an engine's client is podman, by its name: it has not all options of Docker's.
pub fn is_podman(client: &str) -> bool {
    client.rsplit('/').next().is_some_and(|name| name.starts_with("podman"))
}

/// How a container was made.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// What it was made from, as that was named: "ollama/ollama:0.9".
    pub image: String,
    /// Podman has made it, which runs no engine for it.
    pub is_podmans: bool,
    /// The engine's restart policy: "no", "always", …
    pub restart: String,
    /// The engine removes it when it ends (`--rm`).
    pub is_removed_at_its_end: bool,
    /// How long it is given to end, where it says so itself.
    pub stop_timeout: Option<Duration>,
    pub has_healthcheck: bool,
    pub gpu: GpuAccess,
    pub network: ContainerNetwork,
    pub bindings: Vec<PortBinding>,
    pub compose: Option<ComposeLabels>,
    /// The unit that runs it, where podman was called by one.
    pub unit: Option<String>,
}

/// The network that a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContainerNetwork {
    #[default]
    Own,
    /// This machine's.
    Host,
    /// That of another container, by its name or id.
    Of(String),
}

/// A port of this machine that is forwarded to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortBinding {
    /// The address of this machine; `None`: all of them.
    pub address: Option<IpAddr>,
    /// `None`: the engine chooses one at each start.
    pub port: Option<u16>,
    /// The container's own port.
    pub own: u16,
}

impl PortBinding {
    /// Whether who asks localhost is forwarded.
    pub fn is_on_loopback(&self) -> bool {
        self.address.is_none_or(|address| address.is_loopback())
    }
}

/// What lets a container use a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuAccess {
    #[default]
    None,
    /// `--gpus`, with the indices or UUIDs that it names, none for all.
    Request(Vec<String>),
    /// `--runtime nvidia`, with that runtime's name.
    Runtime(String),
    /// `--device /dev/nvidia…`, or by names of the Container Device Interface, with the indices or UUIDs in these.
    Device(Vec<String>),
}

impl GpuAccess {
    /// The options by which a client gives a container all cards.
    pub fn options(client: &str) -> &'static str {
        if is_podman(client) { "--device nvidia.com/gpu=all" } else { "--gpus all" }
    }

    /// The index or UUID in a card's name in the Container Device Interface, "nvidia.com/gpu=0"; "all" for all.
    pub fn by_cdi(device: &str) -> Option<&str> {
        device.strip_prefix("nvidia.com/gpu=")
    }

    /// Whether this is a card: the path of a device, or its name in the Container Device Interface.
    pub fn is_card(device: &str) -> bool {
        let cards = ["/dev/nvidia", "/dev/dri", "/dev/dxg", "/dev/kfd", "nvidia.com/gpu"];
        cards.iter().any(|card| device.starts_with(card))
    }
}

/// What compose has written on a container that it has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComposeLabels {
    pub project: String,
    pub service: String,
    /// It was made by `compose run`, and is no replica of the service.
    pub is_one_off: bool,
    pub files: ComposeFiles,
    pub depends_on: Vec<Dependency>,
}

/// A service of the same project that has to be there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub service: String,
    pub condition: Condition,
}

/// How far a service has to be before those that depend on it are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Started,
    Healthy,
    /// It has done its work and ended with success.
    Completed,
}
