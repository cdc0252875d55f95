//! Reads the output of `docker container inspect` into containers.

use super::reason::not_understood;
use crate::error::Result;
use crate::model::{
    ComposeFiles, ComposeLabels, Condition, Container, ContainerNetwork, Dependency, GpuAccess,
    Healthy, PortBinding, Presence, Running, Setup, Trouble,
};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Stop timeout in seconds that podman reports for a container that was given none.
const PODMANS_STOP_TIMEOUT: u64 = 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedContainer {
    id: String,
    name: String,
    #[serde(default)]
    restart_count: u64,
    state: ContainerState,
    #[serde(default)]
    network_settings: NetworkSettings,
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    config: OwnConfig,
    /// Name of the image, which podman alone reports; `None` means that the engine is Docker.
    image_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ContainerState {
    status: String,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: i32,
    exit_code: i64,
    error: String,
    started_at: String,
    /// State of the HEALTHCHECK. If the image has none, Docker leaves this out, and podman reports
    /// one without a status.
    health: Option<ContainerHealth>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ContainerHealth {
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    ports: Option<Ports>,
    networks: Option<BTreeMap<String, Option<NetworkEndpoint>>>,
}

/// Ports of a container, such as "8000/tcp", and where each is published on this machine.
type Ports = BTreeMap<String, Option<Vec<HostPort>>>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct HostPort {
    host_ip: String,
    host_port: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NetworkEndpoint {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
    restart_policy: RestartPolicy,
    auto_remove: bool,
    runtime: String,
    devices: Option<Vec<DeviceMapping>>,
    device_requests: Option<Vec<DeviceRequest>>,
    port_bindings: Option<Ports>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DeviceMapping {
    path_on_host: String,
    path_in_container: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DeviceRequest {
    driver: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OwnConfig {
    image: String,
    /// Seconds that the container is given to end when it is stopped.
    stop_timeout: Option<u64>,
    healthcheck: Option<Healthcheck>,
    /// Command that created the container, which podman alone reports. It is needed because podman
    /// shows a device of the Container Device Interface only once the container has run.
    create_command: Option<Vec<String>>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Healthcheck {
    test: Option<Vec<String>>,
}

fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    d: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// Parses the output of `docker container inspect`, which lists only those containers that exist.
pub fn parse(stdout: &[u8]) -> Result<Vec<Container>> {
    let found: Vec<InspectedContainer> = match stdout.trim_ascii() {
        b"" => Vec::new(),
        text => serde_json::from_slice(text).map_err(|e| not_understood(&e))?,
    };
    Ok(found.into_iter().map(InspectedContainer::told).collect())
}

impl InspectedContainer {
    fn told(self) -> Container {
        let presence = self.presence();
        let state = &self.state;
        let has_ended = matches!(state.status.as_str(), "exited" | "stopped" | "dead");
        Container {
            exit_code: has_ended.then_some(state.exit_code),
            addresses: self.addresses(),
            setup: self.setup(),
            presence,
            name: self.name.trim_start_matches('/').to_owned(),
            id: self.id,
        }
    }

    fn presence(&self) -> Presence {
        let state = &self.state;
        if state.status == "removing" {
            return Presence::Stopping("the container is being removed".to_owned());
        }
        if state.status == "stopping" {
            return Presence::Stopping("the container is being stopped".to_owned());
        }
        if !state.running && !state.restarting && !state.paused {
            return match state.dead || state.status == "dead" {
                true => Presence::Dead(super::dead(self.name.trim_start_matches('/'))),
                false => Presence::Down(self.ending()),
            };
        }
        let trouble = if state.restarting {
            let how = self.ending().unwrap_or_else(|| "ended".to_owned());
            Some(Trouble::CrashLoop(format!("{how}, {} restarts", self.restart_count)))
        } else {
            state.paused.then_some(Trouble::Paused)
        };
        let published = bindings(self.network_settings.ports.as_ref());
        let published = published.iter().filter(|binding| binding.is_on_loopback());
        Presence::Up(Running {
            pids: if state.pid > 0 { vec![state.pid] } else { Vec::new() },
            age: age(&state.started_at),
            restarts: self.restart_count,
            trouble,
            own_health: state.health.as_ref().and_then(|health| match health.status.as_str() {
                "none" | "" => None,
                "healthy" => Some(Healthy::Yes),
                status => Some(Healthy::No(format!("its HEALTHCHECK says {status}"))),
            }),
            published: published.filter_map(|at| Some((at.port?, at.own))).collect(),
        })
    }

    /// Returns how the container ended, or `None` if it never ran or ended with success.
    fn ending(&self) -> Option<String> {
        let state = &self.state;
        if !state.error.is_empty() {
            return Some(state.error.clone());
        }
        if state.oom_killed {
            return Some("was killed for want of memory (host memory, not VRAM)".to_owned());
        }
        match (state.status.as_str(), state.exit_code) {
            ("created", 0) | (_, 0) => None,
            (_, code) => Some(format!("exited with code {code}")),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        if self.host_config.network_mode == "host" {
            return vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];
        }
        let endpoints = self.network_settings.networks.iter().flatten();
        let of = |endpoint: &NetworkEndpoint| {
            [endpoint.ip_address.parse().ok(), endpoint.global_ipv6_address.parse().ok()]
        };
        endpoints.filter_map(|(_, endpoint)| endpoint.as_ref()).flat_map(of).flatten().collect()
    }

    fn setup(&self) -> Setup {
        let host = &self.host_config;
        let test = self.config.healthcheck.as_ref().and_then(|check| check.test.as_deref());
        Setup {
            image: self.config.image.clone(),
            is_podmans: self.image_name.is_some(),
            restart: host.restart_policy.name.clone(),
            is_removed_at_its_end: host.auto_remove,
            stop_timeout: self
                .config
                .stop_timeout
                .filter(|seconds| self.image_name.is_none() || *seconds != PODMANS_STOP_TIMEOUT)
                .map(Duration::from_secs),
            has_healthcheck: test.is_some_and(|test| test.first().is_some_and(|it| it != "NONE")),
            gpu: host.gpu(self.config.create_command.as_deref().unwrap_or_default()),
            network: match host.network_mode.split_once(':') {
                Some(("container", other)) => ContainerNetwork::Of(other.to_owned()),
                _ if host.network_mode == "host" => ContainerNetwork::Host,
                _ => ContainerNetwork::Own,
            },
            bindings: bindings(host.port_bindings.as_ref()),
            compose: compose_labels(&self.config.labels),
            unit: self.config.labels.get("PODMAN_SYSTEMD_UNIT").cloned(),
        }
    }
}

impl HostConfig {
    fn gpu(&self, created_by: &[String]) -> GpuAccess {
        let requests = self.device_requests.as_deref().unwrap_or_default();
        let is_card = |device: &DeviceMapping| {
            let paths = [&device.path_in_container, &device.path_on_host];
            paths.into_iter().any(|path| GpuAccess::is_card(path))
        };
        let words = || created_by.iter().map(|word| word.strip_prefix("--device=").unwrap_or(word));
        let asks_for_card = |word: &str| {
            word == "--gpus" || word.starts_with("--gpus=") || GpuAccess::is_card(word)
        };
        let (by_cdi, asked): (Vec<_>, Vec<_>) =
            requests.iter().partition(|request| request.driver == "cdi");
        let ids = |of: &[&DeviceRequest]| -> Vec<String> {
            of.iter().flat_map(|request| request.device_ids.iter().flatten()).cloned().collect()
        };
        let names = ids(&by_cdi);
        let names = names.iter().map(String::as_str).chain(words());
        if !asked.is_empty() {
            GpuAccess::Request(ids(&asked))
        } else if self.runtime.contains("nvidia") {
            GpuAccess::Runtime(self.runtime.clone())
        } else if self.devices.iter().flatten().any(is_card) || names.clone().any(asks_for_card) {
            GpuAccess::Device(names.filter_map(GpuAccess::by_cdi).map(str::to_owned).collect())
        } else {
            GpuAccess::None
        }
    }
}

fn bindings(ports: Option<&Ports>) -> Vec<PortBinding> {
    let of = |(own, hosts): (&String, &Option<Vec<HostPort>>)| {
        let own = own.split('/').next().and_then(|port| port.parse().ok());
        let hosts = hosts.iter().flatten();
        let binding = |host: &HostPort| {
            let address = host.host_ip.parse().ok();
            Some(PortBinding {
                address: address.filter(|address: &IpAddr| !address.is_unspecified()),
                port: host.host_port.parse().ok().filter(|port| *port != 0),
                own: own?,
            })
        };
        hosts.filter_map(binding).collect::<Vec<_>>()
    };
    ports.into_iter().flatten().flat_map(of).collect()
}

fn compose_labels(labels: &BTreeMap<String, String>) -> Option<ComposeLabels> {
    let label = |name: &str| labels.get(&format!("com.docker.compose.{name}")).cloned();
    let files = |name: &str| -> Vec<PathBuf> {
        let files = label(name).unwrap_or_default();
        files.split(',').filter(|file| !file.is_empty()).map(Into::into).collect()
    };
    let depends_on = label("depends_on").unwrap_or_default();
    Some(ComposeLabels {
        project: label("project")?,
        service: label("service")?,
        is_one_off: label("oneoff").is_some_and(|is| is.eq_ignore_ascii_case("true")),
        files: ComposeFiles {
            files: files("project.config_files"),
            folder: label("project.working_dir").map(Into::into),
            env_files: files("project.environment_file"),
        },
        depends_on: depends_on.split(',').filter_map(dependency).collect(),
    })
}

/// Parses an entry of compose's `depends_on` label, such as "db:service_healthy:false".
fn dependency(text: &str) -> Option<Dependency> {
    let mut parts = text.trim().split(':');
    let service = parts.next().filter(|service| !service.is_empty())?.to_owned();
    let condition = match parts.next() {
        Some("service_healthy") => Condition::Healthy,
        Some("service_completed_successfully") => Condition::Completed,
        _ => Condition::Started,
    };
    Some(Dependency { service, condition })
}

/// Returns the time since an RFC 3339 timestamp of the engine, or `None` if the text is no
/// timestamp.
#[expect(clippy::disallowed_methods, reason = "the engine tells a point in time, not an age")]
fn age(started_at: &str) -> Option<Duration> {
    let started: jiff::Timestamp = started_at.parse().ok()?;
    Some(Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default())
}
