//! The process's environment and the places that follow from it: the only reader of variables.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::variable;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The environment as it was at the start.
pub struct Environment {
    variables: HashMap<String, OsString>,
}

/// Root's trials are written down here.
pub const MACHINES_FOLDER: &str = "/var/lib/gpuctl";

/// This is wrong with a variable that a path may be, and a text may not.
const NO_TEXT: &str = "is not UTF-8 text";

impl Environment {
    /// A name that is not UTF-8 is none of ours.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        Environment { variables }
    }

    /// Returns it as it is for a caller of another machine or process, who holds this lock or none.
    pub fn under(&self, token: Option<String>) -> Environment {
        let mut variables = self.variables.clone();
        variables.remove(variable::LOCK_TOKEN);
        let token = token.map(|token| (variable::LOCK_TOKEN.to_owned(), OsString::from(token)));
        variables.extend(token);
        Environment { variables }
    }

    #[cfg(any(test, fuzzing))]
    pub fn empty() -> Self {
        Environment { variables: HashMap::new() }
    }

    /// A variable that is set and not empty.
    pub fn raw(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// One that others set for many programs: what is no text says nothing to us.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name)?.to_str()
    }

    /// One that decides what is done, and is not to be passed over.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let wrong = || {
            Failure::new(Code::Config, format!("the environment variable {name} {NO_TEXT}"))
                .hint("correct it, or unset it")
        };
        self.raw(name).map(|value| value.to_str().ok_or_else(wrong)).transpose()
    }

    /// Whether text may hold more than ASCII: unless a locale is named that is not UTF-8. None is
    /// named where services and cron start us, which is no reason to think so.
    pub fn has_unicode(&self) -> bool {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| self.get(name));
        let is_utf8 = |locale: &str| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        };
        locale.is_none_or(is_utf8)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).map(PathBuf::from)
    }

    /// The folders in which programs are looked for.
    pub fn search_path(&self) -> Option<&OsStr> {
        self.variables.get("PATH").map(OsString::as_os_str)
    }

    /// An XDG base folder; a relative one is ignored, as the XDG specification asks.
    fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.path(variable)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(self.path("HOME")?.join(below_home)))
    }

    /// `~/.config/gpuctl/config.toml`, wherever XDG puts it.
    pub fn user_config(&self) -> Option<PathBuf> {
        Some(self.xdg("XDG_CONFIG_HOME", ".config")?.join("gpuctl/config.toml"))
    }

    /// The configuration that was named on the command line or in the environment.
    pub fn named_config(&self, typed: Option<&Path>) -> Option<PathBuf> {
        typed.map(Path::to_owned).or_else(|| self.path("GPUCTL_CONFIG"))
    }

    /// The configuration to read: named on the command line, in the environment, or found.
    pub fn find_config(&self, named: Option<&Path>) -> Option<PathBuf> {
        if let Some(path) = self.named_config(named) {
            return Some(path);
        }
        [
            Some(PathBuf::from("gpuctl.toml")),
            self.user_config(),
            Some(PathBuf::from("/etc/gpuctl/config.toml")),
        ]
        .into_iter()
        .flatten()
        .find(|path| path.symlink_metadata().is_ok())
    }

    /// Returns where logs of native services and other state are kept.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.path("GPUCTL_STATE_DIR")
            .or_else(|| Some(self.xdg("XDG_STATE_HOME", ".local/state")?.join("gpuctl")))
    }

    /// Returns where the canary's ledger is kept: for root in one place, whoever calls.
    pub fn trials_dir(&self) -> Option<PathBuf> {
        let is_roots =
            rustix::process::geteuid().is_root() && self.raw("GPUCTL_STATE_DIR").is_none();
        if is_roots { Some(PathBuf::from(MACHINES_FOLDER)) } else { self.state_dir() }
    }

    /// `~` and `$VAR` replaced; `$$` stands for a dollar sign. A URL that is a path may begin with
    /// `~` behind its scheme.
    pub fn expand(&self, text: &str) -> std::result::Result<String, String> {
        for scheme in ["file://", "redis+unix://"] {
            if let Some(path) = text.strip_prefix(scheme) {
                return Ok(format!("{scheme}{}", self.expand(path)?));
            }
        }
        let problem = |name: &str, what: &str| format!("the environment variable {name} {what}");
        // Taken as unset it would be left alone.
        let names_home = text.split('/').next() == Some("~");
        if names_home && self.raw("HOME").is_some_and(|home| home.to_str().is_none()) {
            return Err(problem("HOME", NO_TEXT));
        }
        shellexpand::full_with_context(
            text,
            || self.get("HOME"),
            |name| match self.variables.get(name).map(|value| value.to_str()) {
                Some(Some(value)) => Ok(Some(value)),
                Some(None) => Err(NO_TEXT),
                None => Err("is not set (write $$ for a dollar sign)"),
            },
        )
        .map(|expanded| expanded.into_owned())
        .map_err(|unset| problem(&unset.var_name, unset.cause))
    }
}
