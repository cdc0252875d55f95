//! The environment variables of this process, and the paths that depend on them. No other code
//! reads the environment.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::variable;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The environment variables of this process, as they were when gpuctl started.
pub struct Environment {
    variables: HashMap<String, OsString>,
}

/// Folder in which trials that root runs are recorded unless another folder is configured.
pub const MACHINES_FOLDER: &str = "/var/lib/gpuctl";

/// Complaint about a variable that has to be text and is not valid UTF-8. A path need not be.
const NO_TEXT: &str = "is not UTF-8 text";

impl Environment {
    /// Reads the environment of this process. Variables whose names are not UTF-8 are left out,
    /// since gpuctl uses none of these.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        Environment { variables }
    }

    /// Returns this environment as it applies to a caller in another process or on another machine:
    /// `GPUCTL_LOCK_TOKEN` is set to `token`, or removed if the caller holds no lock.
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

    /// Returns the value of a variable, or `None` if it is unset or empty.
    pub fn raw(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Returns the value of a variable, or `None` if it is unset, empty or not UTF-8. Suits
    /// variables that many programs share, such as `LANG`, since a value that is not text is
    /// ignored.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name)?.to_str()
    }

    /// Returns the value of a variable that decides what gpuctl does, or `None` if it is unset or
    /// empty. Fails if the value is not UTF-8, since such a variable must not be ignored.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let wrong = || {
            Failure::new(Code::Config, format!("the environment variable {name} {NO_TEXT}"))
                .hint("correct it, or unset it")
        };
        self.raw(name).map(|value| value.to_str().ok_or_else(wrong)).transpose()
    }

    /// Reports whether output may contain more than ASCII: yes, unless the locale is one that is
    /// not UTF-8. Service managers and cron set no locale, which does not count against Unicode.
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

    /// Returns `PATH`, the folders in which programs are looked for, or `None` if it is not set.
    pub fn search_path(&self) -> Option<&OsStr> {
        self.variables.get("PATH").map(OsString::as_os_str)
    }

    /// Returns an XDG base folder, by default the folder `below_home`. A relative path in
    /// `variable` is ignored, as the XDG specification demands. `None` if `HOME` is not set either.
    fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.path(variable)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(self.path("HOME")?.join(below_home)))
    }

    /// Returns the path of the user's own configuration: `~/.config/gpuctl/config.toml`, or the
    /// same below `XDG_CONFIG_HOME`.
    pub fn user_config(&self) -> Option<PathBuf> {
        Some(self.xdg("XDG_CONFIG_HOME", ".config")?.join("gpuctl/config.toml"))
    }

    /// Returns the path of the configuration that is named on the command line (`typed`) or else by
    /// `GPUCTL_CONFIG`.
    pub fn named_config(&self, typed: Option<&Path>) -> Option<PathBuf> {
        typed.map(Path::to_owned).or_else(|| self.path("GPUCTL_CONFIG"))
    }

    /// Returns the path of the configuration to read: the one that is named on the command line or
    /// by `GPUCTL_CONFIG`, or else the first that exists of ./gpuctl.toml, the user's and
    /// /etc/gpuctl/config.toml.
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

    /// Returns the folder for the logs of native services and other state, or `None` if no variable
    /// tells where it is.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.path("GPUCTL_STATE_DIR")
            .or_else(|| Some(self.xdg("XDG_STATE_HOME", ".local/state")?.join("gpuctl")))
    }

    /// Returns the folder of the canary's ledger. For root it is `MACHINES_FOLDER` whatever `HOME`
    /// is, unless `GPUCTL_STATE_DIR` is set; for any other user it is the state folder.
    pub fn trials_dir(&self) -> Option<PathBuf> {
        let is_roots =
            rustix::process::geteuid().is_root() && self.raw("GPUCTL_STATE_DIR").is_none();
        if is_roots { Some(PathBuf::from(MACHINES_FOLDER)) } else { self.state_dir() }
    }

    /// Expands `~` and `$VAR` in a text; `$$` stands for a dollar sign. In a file:// or
    /// redis+unix:// URL, `~` may follow the scheme. Fails if a variable is not set or not UTF-8.
    pub fn expand(&self, text: &str) -> std::result::Result<String, String> {
        for scheme in ["file://", "redis+unix://"] {
            if let Some(path) = text.strip_prefix(scheme) {
                return Ok(format!("{scheme}{}", self.expand(path)?));
            }
        }
        let problem = |name: &str, what: &str| format!("the environment variable {name} {what}");
        // `shellexpand` would take such a `HOME` as unset, and leave `~` as it is.
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
