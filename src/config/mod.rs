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

/// A commented configuration to start from: the four services of a video pipeline.
pub const PIPELINE: &str = include_str!("template.toml");
/// The least that a configuration may say, with the rest as comments.
pub const MINIMAL: &str = include_str!("../../examples/minimal.toml");
/// A machine for language models.
pub const LLM_BOX: &str = include_str!("../../examples/llm-box.toml");
/// A small card.
pub const SMALL_BOX: &str = include_str!("../../examples/small-box.toml");

/// The other parts work with this: the configuration, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Absolute; `None` when there is no file.
    pub path: Option<PathBuf>,
    /// The file's content, expanded, defaults filled in.
    pub file: ConfigFile,
    /// The client of the container engine.
    pub docker: String,
    pub gpu: Gpu,
    pub lock: Lock,
    /// What a request over HTTP has to show.
    pub http: HttpToken,
    /// Every phase that is named or listed, with its name.
    pub phases: BTreeMap<u32, Option<String>>,
    /// The services stand in the order of the file.
    pub services: Vec<Service>,
    canary: Option<Canary>,
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Gpu {
    pub selector: Selector,
    /// Kept free for the desktop.
    pub reserve: Mb,
    /// Stands in for NVML's figure where NVML cannot be read.
    pub total: Option<Mb>,
    /// `None`: the system's.
    pub library: Option<PathBuf>,
}

/// Which card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Index(u32),
    Uuid(String),
}

impl Selector {
    pub fn parse(text: &str) -> Selector {
        match text.parse() {
            Ok(index) => Selector::Index(index),
            Err(_) => Selector::Uuid(text.to_owned()),
        }
    }
}

impl Gpu {
    /// The card of a configuration that says nothing of it.
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

/// The GPU lock.
#[derive(Clone, Debug)]
pub struct Lock {
    pub place: Place,
    /// The lock has this key in Redis, and the machine's file is named after it.
    pub key: String,
    /// A lock that is taken by hand lasts this long.
    pub ttl: Duration,
    /// Acting commands wait this long for it.
    pub wait: Duration,
    /// The token of the lock that the caller holds, under which this command acts.
    pub token: Option<String>,
}

impl Config {
    /// Finds, reads and validates. Without a file the defaults hold and there are no services.
    pub fn load(
        named: Option<&Path>,
        gpu: Option<&str>,
        environment: &Environment,
    ) -> Result<Config> {
        let Some(path) = environment.find_config(named) else {
            return validate::validate(None, ConfigFile::default(), gpu, environment);
        };
        let text = trust::read(&path)?;
        // One name for one file: services remember it, and two names would be two configurations.
        let path = path.canonicalize().unwrap_or(path);
        let source = text::ConfigText { path: &path, text: &text };
        let file = source.parse()?;
        validate::validate(Some(&source), file, gpu, environment)
    }

    /// The arguments by which another gpuctl has the same configuration.
    pub fn arguments(&self) -> Vec<String> {
        let path = self.path.iter().map(|path| path.to_string_lossy().into_owned());
        let path = path.flat_map(|path| ["--config".to_owned(), path]);
        ["--gpu".to_owned(), self.gpu.selector.to_string()].into_iter().chain(path).collect()
    }

    /// Refuses a command that is about services where there is no file.
    pub fn require_file(&self) -> Result<()> {
        match self.path {
            Some(_) => Ok(()),
            None => Err(Failure::new(Code::Config, "no configuration found")
                .hint("write one with `gpuctl config init`, or name one with --config PATH")),
        }
    }

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

    /// The place of a service among all of them.
    pub fn place_of(&self, service: &str) -> Option<usize> {
        self.services.iter().position(|other| other.name == service)
    }

    /// A phase by its number or name.
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

    /// Returns the canary's section, and refuses the command where there is none.
    pub fn canary(&self) -> Result<&Canary> {
        self.require_file()?;
        self.canary.as_ref().ok_or_else(|| {
            Failure::new(Code::Config, "the configuration has no [canary] section")
                .hint("name at least the production service: canary.service = \"vllm\"")
        })
    }

    /// Returns where logs of native services are kept.
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
    /// A configuration from its text, in an environment without variables.
    pub fn of_text(text: &str) -> Result<Config> {
        Config::of_file("test.toml", text)
    }

    /// Parses and validates the text of a file of that name.
    pub fn of_file(name: &str, text: &str) -> Result<Config> {
        let source = text::ConfigText { path: Path::new(name), text };
        validate::validate(Some(&source), source.parse()?, None, &Environment::empty())
    }
}
