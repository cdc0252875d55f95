//! Starting a native service, and what its start command has come to.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Native, Pid, Service, variable};
use crate::world::command::{self, Detached, describe};
use crate::world::logs;
use crate::world::process::Id;
use crate::world::scope::Scope;
use crate::world::starts::{self, StartRecord};
use crate::world::wait::{Handle, Stop};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// A start script that has ended well may take this long to show a process: one that is just
/// being replaced by its program has no environment for a moment.
const SURVIVOR_GRACE: Duration = Duration::from_secs(1);

/// A start command that is under way or has ended.
pub struct Started {
    child: Child,
    ended: Option<Handle>,
    left_since: Option<Instant>,
    state_dir: PathBuf,
    record: StartRecord,
}

/// Fails as the start would for want of a place for the log or of the folder to run in. Only where
/// folders may be made is the place for the log known for certain.
pub fn could_start(
    service: &Service,
    native: &Native,
    state_dir: &Path,
    may_make: bool,
) -> Result<()> {
    match may_make {
        true => logs::open(state_dir, &service.name).map(drop)?,
        false => logs::could_open(state_dir, &service.name)?,
    }
    match &native.cwd {
        Some(cwd) if !cwd.is_dir() => {
            let failure = command::absent(cwd);
            let message = format!("{}: {}", service.name, failure.message);
            Err(Failure { message, ..failure })
        }
        _ => Ok(()),
    }
}

/// Runs a service's start command; the caller watches what comes of it.
pub fn start(
    service: &Service,
    native: &Native,
    config: Option<&Path>,
    state_dir: &Path,
    stop: &Stop,
) -> Result<Started> {
    let (log, log_from) = logs::open(state_dir, &service.name)?;
    let mut record = StartRecord::new(service, native, config);
    record.log = starts::identity(&log);
    record.log_from = log_from;
    let scope = Scope::offered(&service.name)?;
    record.scope = scope.as_ref().map(|scope| scope.name.clone());
    // Before there is a process: whenever gpuctl is killed, its output and its scope are known
    // by then.
    record.write(state_dir)?;
    let mut env = native.env.clone();
    env.insert(variable::SERVICE.to_owned(), service.name.clone());
    if let Some(config) = config {
        env.insert(variable::CONFIG.to_owned(), config.to_string_lossy().into_owned());
    }
    // A server that sets its title would write over its environment, and the mark with it.
    env.entry("SPT_NOENV".to_owned()).or_insert_with(|| "1".to_owned());
    let detached = Detached {
        text: &native.start,
        env: &env,
        without: &[variable::LOCK_TOKEN, variable::FENCE],
        cwd: native.cwd.as_deref(),
        log: &log,
    };
    let in_scope = scope.map(|scope| detached.start_in(&scope, stop)).transpose()?.flatten();
    let child = match in_scope {
        Some(child) => child,
        None => {
            record.scope = None;
            detached.start()?
        }
    };
    let mut started = Started {
        ended: Handle::open(child.id() as Pid),
        left_since: None,
        state_dir: state_dir.to_owned(),
        record,
        child,
    };
    let first = Id::of(started.child.id() as Pid);
    started.record_more(first)?;
    Ok(started)
}

impl Started {
    /// Wakes a waiter when the start command ends; `None` when that has been seen.
    pub fn ended(&self) -> Option<&Handle> {
        self.ended.as_ref()
    }

    /// Returns when it began, in clock ticks since boot.
    pub fn since(&self) -> u64 {
        self.record.since
    }

    /// Records processes that have turned out to come from this start.
    pub fn record_more(&mut self, processes: impl IntoIterator<Item = Id>) -> Result<()> {
        match self.record.add(processes) {
            true => self.record.write(&self.state_dir),
            false => Ok(()),
        }
    }

    /// Records that the service is ready.
    pub fn record_ready(&mut self) -> Result<()> {
        self.record.was_ready = true;
        self.record.write(&self.state_dir)
    }

    /// Whether the start command has ended, in whatever way.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Whether the start command has ended well.
    pub fn has_succeeded(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some_and(|status| status.success()))
    }

    /// Judges the start command, given whether any process of the service is there, or may come of
    /// what is there.
    pub fn check(&mut self, service: &Service, alive: bool) -> Result<()> {
        let status = self.child.try_wait().map_err(|e| {
            Failure::new(Code::Internal, format!("cannot check on the start command: {e}"))
        })?;
        let Some(status) = status else { return Ok(()) };
        self.ended = None;
        if !status.success() {
            // A shell tells of a child's death by a signal in its own way.
            let signal = status.code().filter(|code| *code > 128);
            let signal = signal.map_or_else(String::new, |code| {
                format!(" (its child was killed by signal {})", code - 128)
            });
            let message =
                format!("{}: its start command {}{signal}", service.name, describe(status));
            return Err(self.explain(Failure::new(Code::StartFailed, message)));
        }
        if alive {
            self.left_since = None;
            return Ok(());
        }
        let left = *self.left_since.get_or_insert_with(Instant::now);
        if left.elapsed() < SURVIVOR_GRACE {
            return Ok(());
        }
        let message = format!(
            "{}: its start command exited with code 0 and left no process behind",
            service.name
        );
        Err(self.explain(Failure::new(Code::StartFailed, message)))
    }

    /// Adds what the service has written since it was started.
    pub fn explain(&self, failure: Failure) -> Failure {
        logs::attach_file(failure, &self.log(), self.record.log_from)
    }

    /// Whether its start command, or the service, has written that word.
    pub fn has_said(&self, word: &str) -> bool {
        logs::lines_from(&self.log(), self.record.log_from).iter().any(|line| line.contains(word))
    }

    fn log(&self) -> PathBuf {
        logs::path_of(&self.state_dir, &self.record.service)
    }
}
