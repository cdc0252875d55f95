//! Starting a native service and judging what became of its start command.

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

/// How long a start script that has exited with code 0 may take to show a process of the service: a
/// process that is just being replaced by its program has no environment for a moment.
const SURVIVOR_GRACE: Duration = Duration::from_secs(1);

/// A start command that is running or has ended.
pub struct Started {
    child: Child,
    ended: Option<Handle>,
    left_since: Option<Instant>,
    state_dir: PathBuf,
    record: StartRecord,
}

/// Checks that a start could open its log and enter its working directory, and fails as the start
/// would. Only if `may_make` allows creating folders is the result certain for the log.
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

/// Records a start and runs the service's start command; the caller watches what becomes of it.
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
    // Written before there is a process, so that its output and its scope are known whenever gpuctl
    // is killed.
    record.write(state_dir)?;
    let mut env = native.env.clone();
    env.insert(variable::SERVICE.to_owned(), service.name.clone());
    if let Some(config) = config {
        env.insert(variable::CONFIG.to_owned(), config.to_string_lossy().into_owned());
    }
    // A server that sets its title would overwrite its environment, and the mark with it.
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
    /// Returns a handle that wakes a waiter when the start command ends; `None` once `check` has
    /// seen that end.
    pub fn ended(&self) -> Option<&Handle> {
        self.ended.as_ref()
    }

    /// Returns when the start began, in clock ticks since boot.
    pub fn since(&self) -> u64 {
        self.record.since
    }

    /// Records further processes that turn out to come from this start.
    pub fn record_more(&mut self, processes: impl IntoIterator<Item = Id>) -> Result<()> {
        match self.record.add(processes) {
            true => self.record.write(&self.state_dir),
            false => Ok(()),
        }
    }

    /// Records that the service has become ready.
    pub fn record_ready(&mut self) -> Result<()> {
        self.record.was_ready = true;
        self.record.write(&self.state_dir)
    }

    /// Reports whether the start command has ended, with whatever exit status.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Reports whether the start command has exited with code 0.
    pub fn has_succeeded(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some_and(|status| status.success()))
    }

    /// Fails if the start command has failed, or has succeeded but left no process behind for
    /// `SURVIVOR_GRACE`. `alive` says whether a process of the service exists, or may still come
    /// from one that does.
    pub fn check(&mut self, service: &Service, alive: bool) -> Result<()> {
        let status = self.child.try_wait().map_err(|e| {
            Failure::new(Code::Internal, format!("cannot check on the start command: {e}"))
        })?;
        let Some(status) = status else { return Ok(()) };
        self.ended = None;
        if !status.success() {
            // A shell reports its child's death by a signal as an exit code above 128.
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

    /// Adds to a failure what has been written to the service's log since the start.
    pub fn explain(&self, failure: Failure) -> Failure {
        logs::attach_file(failure, &self.log(), self.record.log_from)
    }

    /// Reports whether the start command, or the service, has written `word` to the log since the
    /// start.
    pub fn has_said(&self, word: &str) -> bool {
        logs::lines_from(&self.log(), self.record.log_from).iter().any(|line| line.contains(word))
    }

    fn log(&self) -> PathBuf {
        logs::path_of(&self.state_dir, &self.record.service)
    }
}
