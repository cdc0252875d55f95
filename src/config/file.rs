//! The configuration file's shape, key by key, with its defaults. The JSON Schema is made from
//! these types, and `config show` prints them.

use super::phases::{self, PhaseRef};
use super::span::Span;
use crate::model::{Api, Mb};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Configuration of gpuctl: the GPU, the lock, the phases and the services.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The client of the container engine: docker, podman, or the path of one.
    pub docker: DockerClient,
    /// The card.
    #[serde(deserialize_with = "table")]
    pub gpu: GpuTable,
    /// The GPU lock, which keeps callers apart while they act.
    #[serde(deserialize_with = "table")]
    pub lock: LockTable,
    /// Who may ask `gpuctl http`.
    #[serde(deserialize_with = "table", skip_serializing_if = "HttpTable::is_empty")]
    pub http: HttpTable,
    /// Names of phases, by number: `4 = "video"`, or `video = 4`. A phase exists if it is named here
    /// or listed by a service.
    #[schemars(schema_with = "phases::schema")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, PhaseRef>,
    /// The services, by name. Which keys one takes depends on its type: native, docker, compose or
    /// systemd.
    #[serde(deserialize_with = "tables")]
    pub services: IndexMap<String, ServiceTable>,
    /// The trial of a changed configuration of one service before it is promoted. The variables
    /// in brackets take precedence over their keys.
    #[serde(deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub canary: Option<super::canary::CanaryTable>,
}

/// Client of the container engine that is used if the configuration names none.
pub const DOCKER: &str = "docker";

/// The client of the container engine.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct DockerClient(pub String);

impl Default for DockerClient {
    fn default() -> DockerClient {
        DockerClient(DOCKER.to_owned())
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GpuTable {
    /// NVML index of the card; 0 unless `uuid` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// UUID of the card, "GPU-…", instead of its index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Memory kept free for the desktop; the default margin of can-fit.
    pub reserve_mb: Mb,
    /// Size of the card, used only when NVML cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mb: Option<Mb>,
    /// NVML library to load, instead of the system's libnvidia-ml.so.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_library: Option<String>,
}

impl Default for GpuTable {
    fn default() -> Self {
        GpuTable {
            index: None,
            uuid: None,
            reserve_mb: Mb(1024),
            total_mb: None,
            nvml_library: None,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LockTable {
    /// URL of the lock that is kept beside the machine's: redis://, rediss:// or redis+unix://; or
    /// file:///path for another file of the machine's lock. If it is missing, $REDIS_URL counts;
    /// $GPUCTL_LOCK_URL takes precedence over both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Name of the lock: its key in Redis, and part of the name of the machine's file.
    pub key: String,
    /// How long a lock taken by `gpuctl lock acquire` lasts.
    pub ttl: Span,
    /// How long commands wait for the lock while another holds it; the default of --wait.
    pub wait: Span,
}

impl Default for LockTable {
    fn default() -> Self {
        LockTable {
            url: None,
            key: "gpu_mutex_v2".to_owned(),
            ttl: Span::seconds(600),
            wait: Span::seconds(31),
        }
    }
}

/// If there is no token, `gpuctl http` answers only this machine, and no page of another site.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpTable {
    /// The token that a request has to show, as Authorization: Bearer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File that contains the token. It must not be readable or writable for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

impl HttpTable {
    fn is_empty(&self) -> bool {
        self.token.is_none() && self.token_file.is_none()
    }
}

/// A service. Which keys it takes depends on its `type`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceTable {
    /// Who starts and stops it: gpuctl itself, Docker (one container, or what compose has made), or
    /// systemd.
    pub r#type: Type,
    /// Docker: name or ID of the container, which exists already. Required for docker services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// compose: name of the project, whose containers are found by compose's labels. Required for
    /// compose services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// compose: one service of the project, with all its replicas, instead of the whole project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// compose: the project's files, from which missing containers are created. If none are given,
    /// the project's containers say where its files are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// systemd: name of the unit. Required for systemd services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// systemd: a unit of the calling user (systemctl --user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<bool>,
    /// The most memory that the service needs; plans count on this while it runs.
    pub vram_mb: Mb,
    /// When memory is short, the service with the lowest priority is stopped first. No service
    /// causes one of the same or a higher priority to be stopped.
    #[serde(default)]
    pub priority: i64,
    /// Numbers or names of the phases that need the service.
    #[serde(default)]
    pub phases: Vec<PhaseRef>,
    /// URL that shows whether the service is ready: http:// or https:// (any 2xx answer), or
    /// tcp://host:port (it accepts a connection). If it is missing, a container's HEALTHCHECK
    /// counts, or else that the service is alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Native: start command, run by sh -c. It may stay in the foreground, or leave the server in
    /// the background and exit 0. Required for native services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Native: extended regular expression, as for pgrep -f, that finds the service's processes if
    /// gpuctl did not start them.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Native: command that stops the service, run by sh -c instead of sending TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Native: variables added to the environment of the start and stop commands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Native: folder in which the start and stop commands run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// How long the service may take from its start until it is ready.
    #[serde(default = "start_timeout")]
    pub start_timeout: Span,
    /// How long the service may take to end before it is killed.
    #[serde(default = "stop_timeout")]
    pub stop_timeout: Span,
    /// Kind of server. Together with `url` it provides health, busy and unload, each of which a key
    /// of its own overrides, and the call that wakes the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// Base URL of the server that `api` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// HTTP headers sent with every call to the service. Their values are never shown, and no
    /// redirect is followed if there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// How to ask the service for the number of its jobs: a URL with a JSON pointer or the name of
    /// a metric, or a command.
    #[serde(default, deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub busy: Option<BusyTable>,
    /// How long the service's jobs may take to end before it is stopped or unloaded; the default of
    /// --drain.
    #[serde(default = "drain")]
    pub drain: Span,
    /// How long the service must have been idle before `release-idle` gives its memory back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// A call that makes the service load its model: the service is ready once it is answered.
    #[serde(default, deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<CallTable>,
    /// How the service's memory is taken back when another one needs it: by stopping the service,
    /// or by asking it to unload its models, after which it keeps running.
    #[serde(default)]
    pub evict: EvictKey,
    /// The HTTP call that makes the service unload, instead of the one of its `api`.
    #[serde(default, deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub unload: Option<CallTable>,
}

/// A table that is read from a map only. Plain serde also accepts a list for a struct and takes its
/// items for the fields in their order, so `gpu = []` would be a table of defaults.
#[derive(Clone, Debug)]
pub struct StrictTable<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for StrictTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = StrictTable<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StrictTable<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(StrictTable)
            }
        }
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

fn table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    StrictTable::deserialize(d).map(|StrictTable(inner)| inner)
}

fn optional_table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    table(d).map(Some)
}

fn tables<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<IndexMap<String, T>, D::Error> {
    let tables: IndexMap<String, StrictTable<T>> = IndexMap::deserialize(d)?;
    Ok(tables.into_iter().map(|(name, StrictTable(inner))| (name, inner)).collect())
}

fn start_timeout() -> Span {
    Span::seconds(120)
}

fn stop_timeout() -> Span {
    Span::seconds(30)
}

fn drain() -> Span {
    Span::seconds(600)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    Native,
    Docker,
    Compose,
    Systemd,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EvictKey {
    #[default]
    Stop,
    Unload,
}

/// How to ask a service for the number of its jobs.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BusyTable {
    /// URL to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// JSON pointer (RFC 6901) into the answer: a number, true or false, or a list of jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<String>,
    /// Name of a metric, if the answer is a Prometheus page; its samples are added up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Command that prints the number, run by sh -c, instead of a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// An HTTP call to a service.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CallTable {
    /// URL to call.
    pub url: String,
    /// HTTP method; POST unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Body to send, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}
