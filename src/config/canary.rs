//! The `[canary]` section, which configures the trial of a changed configuration, the `KLR_*`
//! variables that override it, and the settings that result from both.

use super::Environment;
use super::complaint::Complaint;
use super::span::Span;
use super::window::{Limits, Window};
use crate::model::{Mb, Service};
use crate::pattern::Pattern;
use indexmap::IndexMap;
use jiff::tz::TimeZoneDatabase;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The trial of a changed configuration of one service before it is promoted.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CanaryTable {
    /// Name of the production service, one of [services]. Required.
    pub service: String,
    /// How to judge a candidate: by arithmetic only, or by a real server in the place of
    /// production [$KLR_CANARY_MODE].
    pub mode: Mode,
    /// Command that starts the canary, run by sh -c; {port}, {model} and the candidate's parameters
    /// are filled in.
    pub start: String,
    /// Model to load, for {model} and the test request.
    pub model: String,
    /// Port of the canary [$KLR_CANARY_PORT].
    pub port: u16,
    /// How long one test may take, the canary's start included [$KLR_CANARY_TIMEOUT].
    pub timeout: Span,
    /// How long production may take to come back.
    pub restore_sla: Span,
    /// How long the test completion may take.
    pub max_latency: Span,
    /// How long production may be away in one night [$KLR_GPU_MAINTENANCE_MAX_DOWNTIME].
    pub max_downtime: Span,
    /// Time of day in which trials may take place: HH:MM-HH:MM, both ends included. It may cross
    /// midnight and carry a time zone [$KLR_GPU_MAINTENANCE_WINDOW].
    pub window: String,
    /// IANA name of the window's time zone.
    pub time_zone: String,
    /// Least time between two runs [$KLR_CANARY_COOLDOWN_HOURS].
    pub cooldown: Span,
    /// Most runs in any 24 hours.
    pub max_runs_per_day: u32,
    /// Whether a candidate may be tried on another card, beside production [$KLR_ALLOW_SPARE_GPU].
    pub allow_spare_gpu: bool,
    /// NVML index of that card [$KLR_SPARE_GPU_ID].
    pub spare_gpu: u32,
    /// The memory that the model's weights take.
    pub model_mb: Mb,
    /// The least memory that the cache must have.
    pub kv_cache_min_mb: Mb,
    /// File of the form HOLDER:PID:TIMESTAMP, for programs that look for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance_lock: Option<String>,
    /// Folder of the budget, the audit and the promotions. By default the state folder, or for root
    /// /var/lib/gpuctl unless GPUCTL_STATE_DIR is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    /// Extended regular expression that finds an out-of-memory error in the canary's log.
    pub oom_pattern: String,
    /// What a candidate may set, and within which bounds: { min = 0.6, max = 0.9 }, or
    /// { one_of = ["tiny", "base"] }.
    pub bounds: IndexMap<String, Bound>,
    /// Memory in MB that a choice adds to the need, by parameter and value: { whisper_model_size =
    /// { small = 1000 } }.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_mb: BTreeMap<String, BTreeMap<String, Mb>>,
}

/// Regular expressions for what CUDA, PyTorch, Triton, NCCL and vLLM print when the card's memory
/// does not suffice.
const OUT_OF_MEMORY: [&str; 10] = [
    "CUDA out of memory",
    "OutOfMemoryError",
    r"(CUDA( driver)? [eE]rror|Triton Error \[CUDA\]): out of memory",
    "Cuda failure [0-9]* *'out of memory'",
    "CUBLAS_STATUS_ALLOC_FAILED when calling",
    "No available memory for the cache blocks",
    "larger than the available KV [cC]ache memory",
    "larger than the maximum number of tokens that can be stored in KV cache",
    "exceeds available Mamba cache blocks",
    "is less than desired GPU memory utilization",
];

impl Default for CanaryTable {
    fn default() -> Self {
        let range = |min: f64, max: f64| Bound::Range { min, max };
        let sizes = ["tiny", "base", "small"].map(str::to_owned).to_vec();
        CanaryTable {
            service: String::new(),
            mode: Mode::Predictive,
            start: "python3 -m vllm.entrypoints.openai.api_server --port {port} --model {model} \
                    --gpu-memory-utilization {vllm_memory_util}"
                .to_owned(),
            model: "~/models/llm/current".to_owned(),
            port: 9011,
            timeout: Span::seconds(30),
            restore_sla: Span::seconds(15),
            max_latency: Span::seconds(2),
            max_downtime: Span::seconds(60),
            window: "03:00-07:00".to_owned(),
            time_zone: "America/New_York".to_owned(),
            cooldown: Span::seconds(6 * 3600),
            max_runs_per_day: 3,
            allow_spare_gpu: false,
            spare_gpu: 1,
            model_mb: Mb(5700),
            kv_cache_min_mb: Mb(370),
            maintenance_lock: None,
            state_dir: None,
            oom_pattern: OUT_OF_MEMORY.join("|"),
            bounds: IndexMap::from([
                ("vllm_memory_util".to_owned(), range(0.60, 0.90)),
                ("max_model_len".to_owned(), range(4096.0, 16384.0)),
                ("whisper_model_size".to_owned(), Bound::OneOf { one_of: sizes }),
            ]),
            extra_mb: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Predictive,
    Canary,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Predictive => "predictive",
            Mode::Canary => "canary",
        }
    }
}

/// The values that a parameter of a candidate may have.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Bound {
    Range { min: f64, max: f64 },
    OneOf { one_of: Vec<String> },
}

/// Validated settings of the canary.
#[derive(Clone, Debug)]
pub struct Canary {
    pub service: String,
    pub mode: Mode,
    pub start: String,
    pub model: String,
    pub port: u16,
    pub timeout: Duration,
    /// Time within which production has to be back.
    pub restore_sla: Duration,
    /// Time that the test completion may take.
    pub max_latency: Duration,
    pub limits: Limits,
    /// NVML index of the other card, or `None` if trials may not use one.
    pub spare_gpu: Option<u32>,
    pub model_mb: Mb,
    /// Least memory that the cache must have.
    pub kv_cache_min: Mb,
    pub maintenance_lock: Option<PathBuf>,
    /// Folder of the canary's ledger, or `None` if the section names none and there is no state
    /// folder either.
    pub state_dir: Option<PathBuf>,
    /// Whether `HOME` is set, so that the shell that starts the canary can expand `~`.
    pub has_home: bool,
    /// Pattern that finds an out-of-memory error in the canary's log.
    pub oom: Arc<Pattern>,
    pub bounds: IndexMap<String, Bound>,
    /// Memory that a choice adds to what the candidate needs, by parameter and value.
    pub extra: BTreeMap<String, BTreeMap<String, Mb>>,
}

impl CanaryTable {
    /// Overrides settings of the file by the `KLR_*` variables of the environment. Fails with the
    /// variable that is wrong and the reason.
    pub fn overlay(&mut self, environment: &Environment) -> Result<(), Complaint<&'static str>> {
        let span = |text: &str| Span::parse(text).ok_or("not a duration");
        let some_time = |text: &str| match span(text)? {
            Span(Duration::ZERO) => Err("not longer than zero"),
            span => Ok(span),
        };
        let hours = |text: &str| {
            let hours = text.parse::<f64>().ok().filter(|hours| (0.0..=168.0).contains(hours));
            hours
                .map(|hours| Span(Duration::from_secs_f64(hours * 3600.0)))
                .ok_or("not a number of hours from 0 to 168")
        };
        over(environment, "KLR_CANARY_MODE", &mut self.mode, |text| match text {
            "predictive" => Ok(Mode::Predictive),
            "canary" => Ok(Mode::Canary),
            _ => Err("neither predictive nor canary"),
        })?;
        over(environment, "KLR_CANARY_PORT", &mut self.port, |text| {
            text.parse().ok().filter(|port| *port != 0).ok_or("not a port")
        })?;
        over(environment, "KLR_CANARY_TIMEOUT", &mut self.timeout, some_time)?;
        over(environment, "KLR_GPU_MAINTENANCE_MAX_DOWNTIME", &mut self.max_downtime, span)?;
        let (zone, zones) = (&self.time_zone, TimeZoneDatabase::bundled());
        over(environment, "KLR_GPU_MAINTENANCE_WINDOW", &mut self.window, |text| {
            match Window::parse(text, zone, &zones) {
                Err(("window", _)) => Err("not a window such as \"03:00-07:00\""),
                // A wrong `time_zone` is in the file, and `resolve` complains about it.
                _ => Ok(text.to_owned()),
            }
        })?;
        over(environment, "KLR_CANARY_COOLDOWN_HOURS", &mut self.cooldown, hours)?;
        over(environment, "KLR_ALLOW_SPARE_GPU", &mut self.allow_spare_gpu, |text| {
            match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err("neither true nor false"),
            }
        })?;
        over(environment, "KLR_SPARE_GPU_ID", &mut self.spare_gpu, |text| {
            text.parse().map_err(|_| "not an NVML index")
        })
    }

    /// Validates the section, after `overlay` has applied the environment, and returns the
    /// settings. Fails with the key that is wrong and the reason.
    pub fn resolve(
        &self,
        services: &[Service],
        environment: &Environment,
    ) -> Result<Canary, Complaint<&'static str>> {
        if !services.iter().any(|service| service.name == self.service) {
            return Err(("service", format!("no service \"{}\" is configured", self.service)));
        }
        if self.port == 0 {
            return Err(("port", "0 is not a port".to_owned()));
        }
        for (key, span) in [("timeout", self.timeout), ("restore_sla", self.restore_sla)] {
            if span.0.is_zero() {
                return Err((key, "leaves no time".to_owned()));
            }
        }
        for (name, bound) in &self.bounds {
            let is_empty = match bound {
                Bound::Range { min, max } => !(min.is_finite() && max.is_finite() && min <= max),
                Bound::OneOf { one_of } => one_of.is_empty(),
            };
            if is_empty {
                return Err(("bounds", format!("no value is within the bounds of {name}")));
            }
        }
        let window = Window::parse(&self.window, &self.time_zone, &TimeZoneDatabase::bundled())?;
        let oom = Pattern::new(&self.oom_pattern).map_err(|why| ("oom_pattern", why))?;
        if oom.matches_text("") {
            return Err(("oom_pattern", "matches every line of a log".to_owned()));
        }
        Ok(Canary {
            service: self.service.clone(),
            mode: self.mode,
            start: self.start.clone(),
            model: self.model.clone(),
            port: self.port,
            timeout: self.timeout.0,
            restore_sla: self.restore_sla.0,
            max_latency: self.max_latency.0,
            limits: Limits {
                window,
                cooldown: self.cooldown.0,
                max_runs_per_day: self.max_runs_per_day as usize,
                max_downtime: self.max_downtime.0,
                reserve: self.timeout.0 + self.restore_sla.0,
            },
            spare_gpu: self.allow_spare_gpu.then_some(self.spare_gpu),
            model_mb: self.model_mb,
            kv_cache_min: self.kv_cache_min_mb,
            maintenance_lock: self.maintenance_lock.as_ref().map(PathBuf::from),
            state_dir: self
                .state_dir
                .as_ref()
                .map(PathBuf::from)
                .or_else(|| environment.trials_dir()),
            has_home: environment.raw("HOME").is_some(),
            oom: Arc::new(oom),
            bounds: self.bounds.clone(),
            extra: self.extra_mb.clone(),
        })
    }
}

fn over<T>(
    environment: &Environment,
    variable: &'static str,
    value: &mut T,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<(), Complaint<&'static str>> {
    let text = environment.text(variable).map_err(|failure| (variable, failure.message))?;
    if let Some(text) = text {
        *value =
            parse(text.trim()).map_err(|problem| (variable, format!("\"{text}\" is {problem}")))?;
    }
    Ok(())
}
