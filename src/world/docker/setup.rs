//! How the engine and its containers are made: what `doctor` has to know before one is started.

use super::{Described, PortBinding, ask, ask_about, ask_version, parse, resolve};
use crate::error::Result;
use crate::world::wait::Stop;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// The engine, as far as containers with a GPU depend on it.
pub struct Engine {
    pub version: String,
    /// The runtimes by name; the NVIDIA container toolkit adds "nvidia".
    pub runtimes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Info {
    runtimes: Option<BTreeMap<String, serde_json::Value>>,
}

pub fn engine(stop: &Stop) -> Result<Engine> {
    let version = ask_version(stop)?;
    let info = ask(&["info", "--format", "{{json .}}"])?.finish(stop)?;
    let info: Info = serde_json::from_slice(&info.stdout).unwrap_or_default();
    let runtimes = info.runtimes.unwrap_or_default().into_keys().collect();
    Ok(Engine { version, runtimes })
}

/// It tells how a container was made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Docker's restart policy: "no", "always", …
    pub restart: String,
    pub gpu: GpuAccess,
    /// The ports of this machine that it is to have; `None`: this machine's network as it is.
    pub published: Option<Vec<u16>>,
}

/// One of these lets a container use a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuAccess {
    None,
    /// `--gpus`, with the indices or UUIDs that it names, none for all.
    Request(Vec<String>),
    /// `--runtime nvidia`, with that runtime's name.
    Runtime(String),
    /// `--device /dev/nvidia…`, or by the name of CDI.
    Device,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
    name: String,
    host_config: HostConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct HostConfig {
    network_mode: String,
    restart_policy: RestartPolicy,
    runtime: String,
    devices: Option<Vec<DeviceMapping>>,
    device_requests: Option<Vec<DeviceRequest>>,
    port_bindings: Option<BTreeMap<String, Option<Vec<PortBinding>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct RestartPolicy {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct DeviceMapping {
    path_in_container: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct DeviceRequest {
    driver: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<Vec<String>>,
}

/// Returns how those containers were made that exist; in one call.
pub fn setups(containers: &[&str], stop: &Stop) -> Result<HashMap<String, Setup>> {
    if containers.is_empty() {
        return Ok(HashMap::new());
    }
    let output = ask_about(containers)?.finish(stop)?;
    let made: Vec<Made> = parse(&output.stdout)?;
    let setup = |container: &&str| {
        Some(((*container).to_owned(), resolve(&made, container)?.host_config.setup()))
    };
    Ok(containers.iter().filter_map(setup).collect())
}

impl Described for Made {
    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl HostConfig {
    fn setup(&self) -> Setup {
        let bindings = self.port_bindings.iter().flat_map(BTreeMap::values).flatten().flatten();
        let has_own_network =
            self.network_mode != "host" && !self.network_mode.starts_with("container:");
        Setup {
            restart: self.restart_policy.name.clone(),
            gpu: self.gpu(),
            published: has_own_network
                .then(|| bindings.filter_map(|at| at.host_port.parse().ok()).collect()),
        }
    }

    fn gpu(&self) -> GpuAccess {
        let requests = self.device_requests.as_deref().unwrap_or_default();
        let is_card = |device: &DeviceMapping| {
            let path = &device.path_in_container;
            ["/dev/nvidia", "/dev/dri", "/dev/dxg"].iter().any(|card| path.starts_with(card))
        };
        match requests {
            [request, ..] if request.driver == "cdi" => GpuAccess::Device,
            [_, ..] => GpuAccess::Request(
                requests.iter().flat_map(|r| r.device_ids.iter().flatten().cloned()).collect(),
            ),
            [] if self.runtime.contains("nvidia") => GpuAccess::Runtime(self.runtime.clone()),
            [] if self.devices.iter().flatten().any(is_card) => GpuAccess::Device,
            [] => GpuAccess::None,
        }
    }
}
