//! Containers: which ones belong to a service, and what their engine says of each.

use super::{Pid, Presence};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The containers that make up one service, and are started and stopped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Containers {
    /// The container of this name or id.
    Named(String),
    /// The containers that compose has made for a project, or for one service of it.
    Compose(Compose),
}

/// A compose project, or one service of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compose {
    pub project: String,
    /// Name of the service in the project, or `None` for all services of the project.
    pub service: Option<String>,
    /// The project's files, as configured; if there are none, the labels of the project's
    /// containers name them.
    pub files: Vec<PathBuf>,
}

impl Compose {
    /// Describes the project, or its service, for people: `service tts of the compose project mcn`,
    /// or `the compose project mcn`.
    pub fn told(&self) -> String {
        match &self.service {
            Some(service) => format!("service {service} of the compose project {}", self.project),
            None => format!("the compose project {}", self.project),
        }
    }

    /// Reports whether a container with these labels belongs to the project, or to its service; one
    /// that `compose run` has made does not.
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
    /// Folder that paths in the files are relative to, or `None` for the folder of the first file.
    pub folder: Option<PathBuf>,
    /// Files that give values to the variables in the project's files; if there are none, compose
    /// takes `.env`.
    pub env_files: Vec<PathBuf>,
}

/// A container as its engine describes it.
#[derive(Clone, Debug)]
pub struct Container {
    /// The full ID of the container, as control groups name it.
    pub id: String,
    pub name: String,
    pub presence: Presence,
    /// Exit code of the container, if it has ended.
    pub exit_code: Option<i64>,
    /// Addresses at which the container can be reached in its own network while it runs.
    pub addresses: Vec<IpAddr>,
    pub setup: Setup,
}

impl Container {
    /// Returns the container's main process while it runs, otherwise `None`.
    pub fn main(&self) -> Option<Pid> {
        match &self.presence {
            Presence::Up(running) => running.pids.first().copied(),
            _ => None,
        }
    }

    /// Returns advice on how to keep the engine from restarting the container more often than
    /// `policy` says.
    pub fn without_restart(&self, client: &str, policy: &str) -> String {
        match &self.setup.compose {
            Some(labels) => {
                format!(
                    "set `restart: \"{policy}\"` for {} in compose.yaml, then `{client} compose up --detach`",
                    labels.service
                )
            }
            // `podman update` cannot change the policy before podman 5.
            None if is_podman(client) => format!("recreate it with --restart={policy}"),
            None => format!("{client} update --restart={policy} {}", self.name),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.presence, Presence::Up(_))
    }
}

/// Reports whether an engine's client is podman, judged by its name; podman does not have all
/// options of Docker.
pub fn is_podman(client: &str) -> bool {
    client.rsplit('/').next().is_some_and(|name| name.starts_with("podman"))
}

/// How a container was made.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Image that the container was made from, as it was named: `ollama/ollama:0.9`.
    pub image: String,
    /// Whether the container was made by podman, which has no engine that runs beside its
    /// containers.
    pub is_podmans: bool,
    /// The container's restart policy: `no`, `always`, …
    pub restart: String,
    /// Whether the engine removes the container when it ends (`--rm`).
    pub is_removed_at_its_end: bool,
    /// Time that the container is given to end, if it sets that time itself; podman's default does
    /// not count.
    pub stop_timeout: Option<Duration>,
    pub has_healthcheck: bool,
    pub gpu: GpuAccess,
    pub network: ContainerNetwork,
    pub bindings: Vec<PortBinding>,
    pub compose: Option<ComposeLabels>,
    /// The systemd unit that runs the container, if such a unit has called podman.
    pub unit: Option<String>,
}

/// The network that a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContainerNetwork {
    #[default]
    Own,
    /// The network of this machine.
    Host,
    /// The network of another container, given by its name or ID.
    Of(String),
}

/// A port of this machine that is forwarded to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortBinding {
    /// Address of this machine that is forwarded, or `None` for all of them.
    pub address: Option<IpAddr>,
    /// Port of this machine, or `None` if the engine chooses one at each start.
    pub port: Option<u16>,
    /// The container's own port.
    pub own: u16,
}

impl PortBinding {
    /// Reports whether connections to localhost are forwarded.
    pub fn is_on_loopback(&self) -> bool {
        self.address.is_none_or(|address| address.is_loopback())
    }
}

/// The way in which a container was given the use of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuAccess {
    #[default]
    None,
    /// Docker's `--gpus`, with the indices or UUIDs that it names; none stands for all cards.
    Request(Vec<String>),
    /// `--runtime nvidia`, with the name of that runtime.
    Runtime(String),
    /// `--device /dev/nvidia…`, a name of the Container Device Interface, or podman's `--gpus`,
    /// with the indices or UUIDs in such names.
    Device(Vec<String>),
}

impl GpuAccess {
    /// Returns the options with which an engine's client gives a container all cards.
    pub fn options(client: &str) -> &'static str {
        if is_podman(client) { "--device nvidia.com/gpu=all" } else { "--gpus all" }
    }

    /// Returns the index or UUID in a card's name in the Container Device Interface, such as
    /// `nvidia.com/gpu=0`; `all` stands for all cards. Returns `None` for anything else.
    pub fn by_cdi(device: &str) -> Option<&str> {
        device.strip_prefix("nvidia.com/gpu=")
    }

    /// Reports whether `device` is a card, given as the path of a device or by its name in the
    /// Container Device Interface.
    pub fn is_card(device: &str) -> bool {
        let cards = ["/dev/nvidia", "/dev/dri", "/dev/dxg", "/dev/kfd", "nvidia.com/gpu"];
        cards.iter().any(|card| device.starts_with(card))
    }
}

/// The labels that compose has written on a container that it has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComposeLabels {
    pub project: String,
    pub service: String,
    /// Whether the container was made by `compose run`, and so is no replica of the service.
    pub is_one_off: bool,
    pub files: ComposeFiles,
    pub depends_on: Vec<Dependency>,
}

/// A service of the same project that has to be there before the container's own is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub service: String,
    pub condition: Condition,
}

/// The state that a service has to reach before those that depend on it are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Started,
    Healthy,
    /// The service has done its work and ended with success.
    Completed,
}
