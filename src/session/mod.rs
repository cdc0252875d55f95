//! The session with which every command that looks at the world works, and what the acting commands
//! have in common: the lock, a look, a plan, its steps, the last look, the report.

pub mod act;
mod held;
mod sight;
pub mod task;
mod typed;

pub use sight::sight;
pub use typed::{duration, no_duration, size};

use crate::canary::debt;
use crate::cli::Global;
use crate::config::{Config, Environment};
use crate::error::{Failure, Result};
use crate::execute::Executor;
use crate::progress::Progress;
use crate::report::{Form, Report, print};
use crate::screen::Screen;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use crate::world::{caller, client};
use std::sync::Mutex;

/// What every command that looks at the world works with.
pub struct Session {
    pub config: Config,
    pub stop: Stop,
    /// Stops the wait for the lock: on the same occasions as `stop`, and when the HTTP client that
    /// waits for the answer is gone.
    pub patient: Stop,
    pub progress: Progress,
    pub form: Form,
    /// Whether to print only errors, and what was asked for as such.
    pub quiet: bool,
}

impl Session {
    /// Raises the limits of this process, handles signals and loads the configuration.
    pub fn open(global: &Global, environment: &Environment, form: Form) -> Result<Session> {
        caller::lift_limits()?;
        let stop =
            Stop::on_signals().map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
        Ok(Session {
            config: load(global, environment)?,
            patient: match &form {
                Form::Http(_) => client::watch()?.map_or(stop.clone(), |gone| stop.or_gone(&gone)),
                _ => stop.clone(),
            },
            stop,
            progress: Progress::new(
                global.quiet,
                Screen::of(rustix::stdio::stderr(), environment),
                log::max_level() > log::LevelFilter::Off,
            ),
            form,
            quiet: global.quiet,
        })
    }

    /// Settles the debt of an interrupted trial if its production is back, and returns the session.
    pub fn settled(self) -> Session {
        debt::settle_by_itself(&self.config, &self.stop, &self.progress);
        self
    }

    /// Returns the executor that carries out this session's plans.
    pub fn executor<'a>(&'a self, reader: &'a Mutex<Reader>) -> Executor<'a> {
        Executor { config: &self.config, stop: &self.stop, reader, progress: &self.progress }
    }

    /// Prints what was done or found. With `--quiet` text is left out, since only the exit code is
    /// wanted then.
    pub fn conclude(&self, report: &impl Report) -> Result<()> {
        match (self.quiet, &self.form) {
            (true, Form::Text(_)) => Ok(()),
            (_, form) => print(report, form),
        }
    }
}

/// Loads the configuration that the global options or the environment name, or else the one that is
/// found in the usual places.
pub fn load(global: &Global, environment: &Environment) -> Result<Config> {
    Config::load(global.config.as_deref(), global.gpu.as_deref(), environment)
}
