//! Writes a first configuration from a compose project. What the project says is taken over; the
//! rest is guessed and marked as a guess.

use super::file::{ConfigFile, DOCKER};
use super::span::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{GpuAccess, nearest};
use indexmap::IndexMap;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use toml::Value;

/// Keys of a service that a label `gpuctl.KEY` may set.
const LABELS: [&str; 11] = [
    "vram_mb",
    "priority",
    "phases",
    "health",
    "api",
    "url",
    "start_timeout",
    "stop_timeout",
    "drain",
    "idle",
    "evict",
];

/// Memory in MB that is written for a service if no label says how much it needs.
const GUESS_MB: i64 = 8000;

/// The output of `docker compose config --format json`, as far as gpuctl uses it.
#[derive(Deserialize)]
struct ComposeProject {
    name: String,
    #[serde(default)]
    services: IndexMap<String, ComposeService>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ComposeService {
    labels: BTreeMap<String, String>,
    deploy: Option<Deploy>,
    gpus: Option<serde_json::Value>,
    /// Devices of the service, each a text such as "nvidia.com/gpu=all" or
    /// "/dev/nvidia0:/dev/nvidia0", or an object with a `source`.
    devices: Vec<serde_json::Value>,
    runtime: Option<String>,
    ports: Vec<PublishedPort>,
    stop_grace_period: Option<String>,
    healthcheck: Option<ComposeHealthcheck>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Deploy {
    resources: DeployResources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeployResources {
    reservations: Reservations,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reservations {
    devices: Vec<ReservedDevice>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReservedDevice {
    capabilities: Vec<String>,
    driver: String,
    device_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PublishedPort {
    host_ip: Option<String>,
    published: Option<String>,
    target: u16,
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ComposeHealthcheck {
    start_period: Option<String>,
    disable: bool,
}

impl ComposeService {
    fn has_gpu(&self) -> bool {
        let devices = self.deploy.iter().flat_map(|deploy| &deploy.resources.reservations.devices);
        let is_card = |device: &ReservedDevice| {
            device.driver == "nvidia"
                || device.capabilities.iter().any(|it| it == "gpu" || it == "nvidia")
                || device.device_ids.iter().any(|id| GpuAccess::is_card(id))
        };
        let is_given = |device: &serde_json::Value| {
            let named = device.as_str().or_else(|| device.get("source")?.as_str());
            named.is_some_and(GpuAccess::is_card)
        };
        self.gpus.is_some()
            || self.runtime.as_deref().is_some_and(|runtime| runtime.contains("nvidia"))
            || devices.into_iter().any(is_card)
            || self.devices.iter().any(is_given)
    }

    fn own_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.labels.iter();
        labels.filter_map(|(name, value)| Some((name.strip_prefix("gpuctl.")?, value.as_str())))
    }
}

/// Returns a configuration for those services of a compose project that use a card or have a label
/// `gpuctl.KEY`. `project` is the project as compose prints it in JSON, `file` the absolute path
/// that it comes from, and `docker` the engine's client.
pub fn imported(project: &[u8], file: &Path, docker: &str) -> Result<String> {
    let shown = file.display();
    let project: ComposeProject = serde_json::from_slice(project).map_err(|e| {
        Failure::new(Code::Config, format!("{shown} is not a compose project: {e}"))
    })?;
    let mut text = format!(
        "# The services of {shown} that use the card, for gpuctl. `gpuctl config check` validates this file, and\n\
        # `gpuctl config schema` has all keys. What compose.yaml says is read from there where it can be.\n"
    );
    if docker != DOCKER {
        text.push_str(&format!("docker = {}\n", Value::from(docker.replace('$', "$$"))));
    }
    let is_wanted =
        |service: &ComposeService| service.has_gpu() || service.own_labels().next().is_some();
    let wanted: Vec<(&String, &ComposeService)> =
        project.services.iter().filter(|(_, service)| is_wanted(service)).collect();
    write_phases(&mut text, wanted.iter().map(|(_, service)| *service));
    for (name, service) in &wanted {
        write_service(&mut text, &project.name, name, service, file)?;
    }
    if wanted.is_empty() {
        let message = format!("no service of {shown} reserves a GPU or has a label gpuctl.*");
        return Err(Failure::new(Code::Config, message).hint(
            "give those that use the card a reservation (deploy.resources.reservations.devices) or a label, such as gpuctl.vram_mb: \"8000\"",
        ));
    }
    // A label can contain anything, so the result may be no valid configuration.
    toml::from_str::<ConfigFile>(&text).map_err(|e| {
        let problem = e.message().to_owned();
        Failure::new(
            Code::Config,
            format!("the labels of {shown} make no configuration: {problem}"),
        )
    })?;
    Ok(text)
}

/// Writes a `[phases]` table that gives each phase named by a label a number that no label uses,
/// since labels cannot number phases.
fn write_phases<'a>(text: &mut String, services: impl Iterator<Item = &'a ComposeService>) {
    let labels = services.flat_map(ComposeService::own_labels);
    let listed = labels.filter(|(key, _)| *key == "phases").flat_map(|(_, list)| phases(list));
    let (numbers, names): (Vec<Value>, Vec<Value>) = listed.partition(Value::is_integer);
    let mut free = (1..).map(Value::from).filter(|number| !numbers.contains(number));
    let mut told: Vec<&Value> = Vec::new();
    for name in &names {
        if !told.contains(&name) {
            text.push_str(if told.is_empty() { "\n[phases]\n" } else { "" });
            let number = free.next().expect("there are more numbers than names");
            text.push_str(&format!("{number} = {name}   # a guess, the number\n"));
            told.push(name);
        }
    }
}

fn write_service(
    text: &mut String,
    project: &str,
    name: &str,
    service: &ComposeService,
    file: &Path,
) -> Result<()> {
    let mut keys: Vec<(&str, Value, &str)> = vec![
        ("type", "compose".into(), ""),
        ("project", project.into(), ""),
        ("service", name.into(), ""),
        ("files", vec![Value::from(file.to_string_lossy().as_ref())].into(), ""),
    ];
    let labels: BTreeMap<&str, &str> = service.own_labels().collect();
    for (key, value) in &labels {
        let Some(known) = LABELS.iter().find(|known| *known == key) else {
            let message =
                format!("{}: service {name} has an unknown label gpuctl.{key}", file.display());
            let failure = Failure::new(Code::Config, message);
            return Err(match nearest(key, LABELS) {
                Some(nearest) => failure.hint(format!("did you mean gpuctl.{nearest}?")),
                None => {
                    failure.hint(format!("those known are gpuctl.{}", LABELS.join(", gpuctl.")))
                }
            });
        };
        keys.push((known, of_label(known, value), "its label"));
    }
    let is_told = |key: &str| labels.contains_key(key);
    if !is_told("vram_mb") {
        keys.push(("vram_mb", GUESS_MB.into(), "a guess; correct it to what it needs at most"));
    }
    if let Some(grace) =
        span(service.stop_grace_period.as_deref()).filter(|_| !is_told("stop_timeout"))
    {
        keys.push(("stop_timeout", grace.into(), "its stop_grace_period"));
    }
    let check = service.healthcheck.as_ref().filter(|check| !check.disable);
    let period = check.and_then(|check| span(check.start_period.as_deref()));
    if let Some(period) = period.filter(|_| !is_told("start_timeout")) {
        keys.push(("start_timeout", period.into(), "its start_period"));
    }
    let port = service.ports.iter().find_map(PublishedPort::url);
    match (port, labels.get("api")) {
        (Some(url), Some(_)) if !is_told("url") => {
            keys.push(("url", url.into(), "the port that it publishes"));
        }
        // If the service has a healthcheck of its own, that one counts.
        (Some(url), None) if !is_told("health") && check.is_none() => {
            keys.push((
                "health",
                format!("{url}/").into(),
                "a guess, at the port that it publishes",
            ));
        }
        _ => {}
    }
    text.push_str(&format!("\n[services.{}]\n", toml_key(name)));
    for (key, value, remark) in keys {
        let remark = if remark.is_empty() { String::new() } else { format!("   # {remark}") };
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{key} = {value}{remark}");
    }
    Ok(())
}

fn toml_key(name: &str) -> String {
    let is_bare = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if is_bare { name.to_owned() } else { format!("{name:?}") }
}

/// Converts the text of a label into the value that its key expects.
fn of_label(key: &str, text: &str) -> Value {
    match key {
        "phases" => Value::Array(phases(text).collect()),
        _ => number_or_text(text),
    }
}

/// Parses the phases in a label, such as "2,3" or "speech, video".
fn phases(text: &str) -> impl Iterator<Item = Value> {
    text.split(',').map(str::trim).filter(|phase| !phase.is_empty()).map(number_or_text)
}

fn number_or_text(text: &str) -> Value {
    text.trim().parse::<i64>().map_or_else(|_| text.into(), Value::from)
}

/// Converts a length of time from compose into the configuration's form. `None` if it is missing,
/// zero, or not valid.
fn span(text: Option<&str>) -> Option<String> {
    let span = Span::parse(text?)?;
    Some(span.to_string().replace(' ', "")).filter(|_| !span.0.is_zero())
}

impl PublishedPort {
    /// Returns the URL at which this machine reaches the port, or `None` if it is not a single
    /// published TCP port.
    fn url(&self) -> Option<String> {
        let is_tcp = self.protocol.as_deref().is_none_or(|protocol| protocol == "tcp");
        let port: u16 = self.published.as_deref()?.parse().ok().filter(|port| *port != 0)?;
        let host = match self.host_ip.as_deref() {
            None | Some("" | "0.0.0.0" | "::" | "127.0.0.1") => "localhost",
            Some(other) => other,
        };
        (is_tcp && self.target != 0).then(|| format!("http://{host}:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compose_says_is_taken_over_and_what_it_does_not_say_is_a_guess() {
        let project = br#"{"name": "mcn", "services": {
            "tts": {"labels": {"gpuctl.vram_mb": "4000", "gpuctl.phases": "2,3", "other": "x"},
                    "ports": [{"target": 8000, "published": "50000", "protocol": "tcp"}],
                    "stop_grace_period": "45s"},
            "llm": {"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["gpu"]}]}}},
                    "healthcheck": {"test": ["CMD", "true"], "start_period": "5m0s"}},
            "web": {"ports": [{"target": 80, "published": "80"}]}}}"#;
        let text =
            imported(project, Path::new("/srv/compose.yaml"), DOCKER).expect("a configuration");
        let told: toml::Table = text.parse().expect("TOML");
        let tts = &told["services"]["tts"];
        assert_eq!(tts["vram_mb"].as_integer(), Some(4000));
        assert_eq!(tts["phases"], Value::from(vec![2, 3]));
        assert_eq!(tts["health"].as_str(), Some("http://localhost:50000/"));
        assert_eq!(tts["stop_timeout"].as_str(), Some("45s"));
        let llm = &told["services"]["llm"];
        assert_eq!((llm.get("health"), llm["start_timeout"].as_str()), (None, Some("5m")));
        assert!(text.contains("vram_mb = 8000   # a guess"), "{text}");
        assert!(told["services"].get("web").is_none(), "{text}");
    }
}
