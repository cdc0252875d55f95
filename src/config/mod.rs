//! The configuration: file, environment and flags become one validated value. Nothing else reads
//! the file or the environment.

mod calls;
mod canary;
mod complaint;
mod environment;
pub mod file;
mod http;
mod import;
mod overlap;
mod phases;
mod place;
mod secrets;
mod span;
mod text;
pub mod trust;
mod validate;
mod window;
mod words;

pub use canary::{Bound, Canary, Mode};
pub use environment::{Environment, MACHINES_FOLDER};
pub use file::DOCKER;
pub use http::HttpToken;
pub use import::imported;
pub use overlap::{Overlap, overlaps};
pub use place::{Place, UrlSource};
pub use secrets::{masked, writes_secrets};
pub use span::Span;
pub use text::is_json;
pub use window::Limits;
#[cfg(any(test, fuzzing))]
pub use window::Window;

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Mb, Service, nearest};
use file::ConfigFile;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Example configuration with comments: the four services of a video pipeline.
pub const PIPELINE: &str = include_str!("template.toml");
/// Example configuration with the least that is required, and the rest as comments.
pub const MINIMAL: &str = include_str!("../../examples/minimal.toml");
/// Example configuration of a machine for language models.
pub const LLM_BOX: &str = include_str!("../../examples/llm-box.toml");
/// Example configuration of a machine with a small card.
pub const SMALL_BOX: &str = include_str!("../../examples/small-box.toml");

/// The validated configuration, which all other parts of gpuctl work with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Absolute path of the file, or `None` if there is no file.
    pub path: Option<PathBuf>,
    /// Content of the file, expanded and with the defaults filled in.
    pub file: ConfigFile,
    /// Client of the container engine: the name or path of a program.
    pub docker: String,
    pub gpu: Gpu,
    pub lock: Lock,
    /// Token that a request over HTTP has to show.
    pub http: HttpToken,
    /// Every phase that has a name or is listed by a service: its number, and its name if it has
    /// one.
    pub phases: BTreeMap<u32, Option<String>>,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    canary: Option<Canary>,
    state_dir: Option<PathBuf>,
}

/// The card that gpuctl manages, and what is configured about it.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub selector: Selector,
    /// Memory that is kept free for the desktop.
    pub reserve: Mb,
    /// Size of the card that is assumed if NVML cannot be read.
    pub total: Option<Mb>,
    /// NVML library to load, or `None` for the system's.
    pub library: Option<PathBuf>,
}

/// The card that is meant, by NVML index or by UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Index(u32),
    Uuid(String),
}

impl Selector {
    /// Parses a number as an index, and takes any other text for a UUID.
    pub fn parse(text: &str) -> Selector {
        match text.parse() {
            Ok(index) => Selector::Index(index),
            Err(_) => Selector::Uuid(text.to_owned()),
        }
    }
}

impl Gpu {
    /// Returns the card to use without a configuration: the one that was typed, or else index 0,
    /// with the default reserve.
    pub fn unconfigured(typed: Option<&str>) -> Gpu {
        let selector = typed.map_or(Selector::Index(0), Selector::parse);
        Gpu { selector, reserve: file::GpuTable::default().reserve_mb, total: None, library: None }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Index(index) => index.fmt(f),
            Selector::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

/// Settings of the GPU lock.
#[derive(Clone, Debug)]
pub struct Lock {
    pub place: Place,
    /// Name of the lock: its key in Redis, and part of the name of the machine's file.
    pub key: String,
    /// Time for which a lock taken by `gpuctl lock acquire` lasts, unless `--ttl` is given.
    pub ttl: Duration,
    /// Time that acting commands wait for the lock, unless `--wait` is given.
    pub wait: Duration,
    /// Token of the lock that the caller holds and under which this command acts, or `None` if the
    /// caller holds none.
    pub token: Option<String>,
}

impl Config {
    /// Finds, reads and validates the configuration. If there is no file, the defaults apply and
    /// there are no services.
    pub fn load(
        named: Option<&Path>,
        gpu: Option<&str>,
        environment: &Environment,
    ) -> Result<Config> {
        let Some(path) = environment.find_config(named) else {
            return validate::validate(None, ConfigFile::default(), gpu, environment);
        };
        let text = trust::read(&path)?;
        // One file gets one name: records of starts contain it, and under two names the file would
        // count as two configurations.
        let path = path.canonicalize().unwrap_or(path);
        let source = text::ConfigText { path: &path, text: &text };
        let file = source.parse()?;
        validate::validate(Some(&source), file, gpu, environment)
    }

    /// Returns the command-line arguments with which another gpuctl has the same configuration and
    /// card.
    pub fn arguments(&self) -> Vec<String> {
        let path = self.path.iter().map(|path| path.to_string_lossy().into_owned());
        let path = path.flat_map(|path| ["--config".to_owned(), path]);
        ["--gpu".to_owned(), self.gpu.selector.to_string()].into_iter().chain(path).collect()
    }

    /// Fails if there is no configuration file, so that a command about services is refused.
    pub fn require_file(&self) -> Result<()> {
        match self.path {
            Some(_) => Ok(()),
            None => Err(Failure::new(Code::Config, "no configuration found")
                .hint("write one with `gpuctl config init`, or name one with --config PATH")),
        }
    }

    /// Returns the service of this name, or a failure that hints at a similar name.
    pub fn service(&self, name: &str) -> Result<&Service> {
        self.require_file()?;
        let found = self.services.iter().find(|service| service.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.services.iter().map(|s| s.name.as_str()).collect();
            let failure =
                Failure::new(Code::NotFound, format!("no service named \"{name}\" is configured"));
            match nearest(name, names.iter().copied()) {
                Some(nearest) => failure.hint(format!("did you mean \"{nearest}\"?")),
                None if names.is_empty() => failure.hint("the configuration has no services"),
                None => failure.hint(format!("configured services: {}", names.join(", "))),
            }
        })
    }

    /// Returns the index of a service in `services`, or `None` if there is no service of this name.
    pub fn place_of(&self, service: &str) -> Option<usize> {
        self.services.iter().position(|other| other.name == service)
    }

    /// Returns the number of a phase that is given by number or name, or a failure that hints at a
    /// similar name.
    pub fn phase(&self, wanted: &str) -> Result<u32> {
        self.require_file()?;
        let found = self
            .phases
            .iter()
            .find(|(number, name)| number.to_string() == wanted || name.as_deref() == Some(wanted));
        if let Some((number, _)) = found {
            return Ok(*number);
        }
        let failure = Failure::new(Code::NotFound, format!("no phase \"{wanted}\" is configured"));
        let names = self.phases.values().flatten().map(String::as_str);
        if let Some(nearest) = nearest(wanted, names) {
            return Err(failure.hint(format!("did you mean \"{nearest}\"?")));
        }
        let known: Vec<String> = self
            .phases
            .iter()
            .map(|(number, name)| match name {
                Some(name) => format!("{number} ({name})"),
                None => number.to_string(),
            })
            .collect();
        Err(failure.hint(match known.is_empty() {
            true => "the configuration has no phases".to_owned(),
            false => format!("configured phases: {}", known.join(", ")),
        }))
    }

    /// Returns the settings of the canary, or fails if the configuration has no `[canary]` section.
    pub fn canary(&self) -> Result<&Canary> {
        self.require_file()?;
        self.canary.as_ref().ok_or_else(|| {
            Failure::new(Code::Config, "the configuration has no [canary] section")
                .hint("name at least the production service: canary.service = \"vllm\"")
        })
    }

    /// Returns the folder for the logs of native services and other state, or fails if no variable
    /// tells where it is.
    pub fn state_dir(&self) -> Result<&Path> {
        self.state_dir.as_deref().ok_or_else(|| {
            Failure::new(
                Code::Config,
                "no folder for state: neither HOME nor XDG_STATE_HOME is set",
            )
            .hint("set GPUCTL_STATE_DIR")
        })
    }
}

#[cfg(any(test, fuzzing))]
impl Config {
    /// Parses and validates a configuration in TOML, in an environment without variables.
    pub fn of_text(text: &str) -> Result<Config> {
        Config::of_file("test.toml", text)
    }

    /// Parses and validates the text of a file of this name, in an environment without variables.
    pub fn of_file(name: &str, text: &str) -> Result<Config> {
        let source = text::ConfigText { path: Path::new(name), text };
        validate::validate(Some(&source), source.parse()?, None, &Environment::empty())
    }
}
