//! The configuration file's shape, key by key, with its defaults. The JSON Schema is made from
//! these types, and `config show` prints them.

use crate::model::{Mb, Preset};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// Configuration of gpuctl: the GPU, the lock, the phases and the services.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    #[serde(deserialize_with = "table")]
    pub gpu: Gpu,
    #[serde(deserialize_with = "table")]
    pub lock: Lock,
    /// Optional names of phases, by number. A phase exists if it is named here or listed by a
    /// service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, String>,
    /// Services by name.
    #[serde(deserialize_with = "tables")]
    pub services: IndexMap<String, Service>,
    #[serde(deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub canary: Option<super::canary::File>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// NVML index of the card; 0 unless `uuid` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// UUID of the card, "GPU-…", instead of its index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Kept free for the desktop, in MB; the default margin of can-fit.
    pub reserve_mb: Mb,
    /// Size of the card in MB, used only when NVML cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mb: Option<Mb>,
    /// NVML library to load [default: the system's libnvidia-ml.so.1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_library: Option<String>,
}

impl Default for Gpu {
    fn default() -> Self {
        Gpu { index: None, uuid: None, reserve_mb: Mb(1024), total_mb: None, nvml_library: None }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lock {
    /// redis://, rediss://, redis+unix:// or file:///path [default: $REDIS_URL, else a file].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Redis key of the lock.
    pub key: String,
    /// Life of a lock taken by `lock acquire`.
    pub ttl: Span,
    /// How long acting commands wait for the lock.
    pub wait: Span,
}

impl Default for Lock {
    fn default() -> Self {
        Lock {
            url: None,
            key: "gpu_mutex_v2".to_owned(),
            ttl: Span::seconds(600),
            wait: Span::seconds(31),
        }
    }
}

/// A service. Which keys it takes depends on `type`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub r#type: Type,
    /// Docker: name or id of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// systemd: the unit's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// systemd: a unit of the calling user (systemctl --user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<bool>,
    /// What it needs at most, in MB.
    pub vram_mb: Mb,
    /// Higher is kept longer.
    #[serde(default)]
    pub priority: i64,
    /// Phases that need it.
    #[serde(default)]
    pub phases: Vec<u32>,
    /// http(s)://… (2xx is healthy) or tcp://host:port. Without it, a container's own HEALTHCHECK
    /// counts, or that the service is alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Native: start command, run by sh -c.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Native: pgrep -f pattern (ERE) that finds its processes.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Native: a command of your own instead of TERM, then KILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Native: environment added for the start and stop commands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Native: folder in which the start and stop commands run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// From start to ready.
    #[serde(default = "start_timeout")]
    pub start_timeout: Span,
    /// From the request to stop until gone; then SIGKILL.
    #[serde(default = "stop_timeout")]
    pub stop_timeout: Span,
    /// How its memory is taken back: by stopping it, or by asking it to unload.
    #[serde(default)]
    pub evict: Evict,
    #[serde(default, deserialize_with = "optional_table", skip_serializing_if = "Option::is_none")]
    pub unload: Option<Unload>,
}

/// serde takes a list for a struct as well, its items for the fields in their order: `gpu = []`
/// would be a table of defaults.
#[derive(Clone, Debug)]
pub struct Table<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

fn table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    Table::deserialize(d).map(|Table(inner)| inner)
}

fn optional_table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    table(d).map(Some)
}

fn tables<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<IndexMap<String, T>, D::Error> {
    let tables: IndexMap<String, Table<T>> = IndexMap::deserialize(d)?;
    Ok(tables.into_iter().map(|(name, Table(inner))| (name, inner)).collect())
}

fn start_timeout() -> Span {
    Span::seconds(120)
}

fn stop_timeout() -> Span {
    Span::seconds(30)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    Native,
    Docker,
    Systemd,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Evict {
    #[default]
    Stop,
    Unload,
}

/// The HTTP call that makes a service give its memory back: a preset, or method and body.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// With a preset the server's base URL, else the URL to call.
    pub url: String,
    /// [default: POST]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// A length of time: `90s`, `10m`, `1h30m`, or a plain number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Longer than anybody waits for a service; keeps clock arithmetic from overflowing.
    pub const MAX: Duration = Duration::from_secs(7 * 24 * 3600);

    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    pub fn parse(text: &str) -> Option<Span> {
        let span = match text.trim().parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Duration::try_from(text.trim().parse::<jiff::SignedDuration>().ok()?).ok()?,
        };
        (span <= Span::MAX).then_some(Span(span))
    }
}

const SPAN_FORM: &str =
    "a duration such as \"90s\", \"10m\", \"1h30m\" or a number of seconds, 7 days at most";

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SPAN_FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                Span::parse(&seconds.to_string())
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(seconds), &self))
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                Span::parse(&seconds.to_string())
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))
            }
        }
        deserializer.deserialize_any(SpanVisitor)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:?}", self.0))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer"], "description": SPAN_FORM })
    }
}

impl JsonSchema for Mb {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mb".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "integer", "minimum": 0, "maximum": Mb::MAX.0,
            "description": "MB of 1,048,576 bytes"
        })
    }
}
