//! The command of `gpuctl run`, which works under the lock: what it needs is made ready, it runs to
//! its end, and what was evicted for it is restored if that is wanted.

use super::Session;
use super::act::carry_out;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::execute::drain::Drain;
use crate::execute::{Evicting, Executor, NeedWatch};
use crate::exit::{Answer, Code};
use crate::lock::{Guard, end_command};
use crate::model::{Evict, Pid, Service, Snapshot, variable};
use crate::notes::Notes;
use crate::plan::{self, Debt, Plan};
use crate::report::{ActReport, Subject};
use crate::step::{Action, Step};
use crate::world::job::{Ending, Job};
use crate::world::nvml::Reader;
use crate::world::wait::{Event, Stop};
use crate::world::{group, process};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A call of `gpuctl run`.
pub struct Task<'a> {
    pub command: &'a [OsString],
    pub subject: Subject,
    /// Priority below which services make room for `--vram`, or `None` if any service may.
    pub below: Option<i64>,
    /// Whether what was evicted is made ready again afterwards.
    pub restores: bool,
    pub drain: Drain,
    /// How long to wait for the lock.
    pub patience: Duration,
    /// How long the command has until it is killed, when it has to be ended.
    pub grace: Duration,
}

impl Task<'_> {
    pub fn run(&self, mut session: Session) -> Result<Answer> {
        let reader = Mutex::new(Reader::open(&session.config.gpu));
        // The command's arguments are left out, since they may hold secrets.
        let title = format!("run {}", self.command[0].to_string_lossy());
        let guard = session.hold_lock(&self.subject, &title, self.patience, Some(self.grace))?;
        if self.restores {
            guard.stand_by()?;
        }
        let debt = Mutex::default();
        let made = self.make_ready(&session, &guard, &reader, &debt);
        let ending = made.and_then(|()| self.work(&session, &guard, &reader));
        let guard = match guard.lease().check() {
            Err(lost) if self.restores && !lock(&debt).evicted.is_empty() => {
                guard.forget_command();
                drop(guard);
                self.hold_again(&mut session, &title, &lock(&debt)).ok_or(lost)?
            }
            _ => guard,
        };
        let restored = self.restore(&session, &guard, &reader, &mut lock(&debt));
        guard.forget_command();
        if let (Err(failure), false) = (&restored, matches!(ending, Ok(Ending::Exited(0)))) {
            // What went wrong before is what the call fails with.
            session.progress.warning(&failure.message);
        }
        // If the lock is lost, nothing else that went wrong matters.
        let ending = ending?;
        let token = guard.token().to_owned();
        if let Err(lost) = guard.release(&session.progress) {
            // Processes that the command has left behind must not work on beside the next holder's.
            end_command(None, &token, self.grace)?;
            return Err(lost);
        }
        match ending {
            Ending::Exited(0) => restored.map(|()| ending.answer()),
            _ => Ok(ending.answer()),
        }
    }

    /// Takes the lock again after it was lost, for the debt that is owed: the card may be another
    /// holder's by now. If that fails, returns `None` after a warning of what is not restored.
    fn hold_again(&self, session: &mut Session, title: &str, debt: &Debt) -> Option<Guard> {
        session.stop = Stop::never();
        let patience = session.config.lock.wait;
        let held = session.hold_lock(&self.subject, title, patience, None).and_then(|guard| {
            guard.stand_by()?;
            guard.owe(&json!(debt));
            Ok(guard)
        });
        let owed = debt.services(&session.config);
        let owed: Vec<&str> = owed.iter().map(|service| service.name.as_str()).collect();
        let told = |failure: &Failure| {
            let why = &failure.message;
            session.progress.warning(&format!("not restored: {} ({why})", owed.join(", ")));
        };
        held.inspect_err(told).ok()
    }

    fn make_ready(
        &self,
        session: &Session,
        guard: &Guard,
        reader: &Mutex<Reader>,
        debt: &Mutex<Debt>,
    ) -> Result<()> {
        let needed = self.subject.services(&session.config);
        let asks =
            |service: &Service| needed.contains(&service.name) || service.evict == Evict::Unload;
        let decide = |config: &Config, snapshot: &Snapshot| {
            *lock(debt) = Debt::new(config, snapshot);
            self.plan(config, snapshot, &needed)
        };
        let witness = |moment: Evicting| {
            let mut debt = lock(debt);
            match moment {
                Evicting::Begins(eviction) => debt.begin(eviction),
                Evicting::Ended(eviction) => debt.end(eviction),
            }
            if self.restores {
                guard.owe(&json!(*debt));
            }
        };
        let (plan, outcome) = carry_out(session, reader, self.drain, asks, decide, &witness)?;
        if !plan.is_empty() {
            let report = ActReport::done(self.subject.clone(), &plan, &outcome);
            session.progress.line(&report.summary());
        }
        Ok(())
    }

    fn plan(&self, config: &Config, snapshot: &Snapshot, needed: &[String]) -> Result<Plan> {
        match &self.subject {
            Subject::Phase { phase, .. } => plan::prepare_phase(config, snapshot, *phase, false),
            Subject::Room { vram_mb } => plan::clear(config, snapshot, *vram_mb, self.below),
            _ => {
                let service = config.service(&needed[0])?;
                plan::start(config, snapshot, service, true)
                    .map_err(|refusal| plan::name_phase(refusal, config, snapshot, service))
            }
        }
    }

    /// Restores what was evicted, if that is wanted and for as long as the lock is held.
    fn restore(
        &self,
        session: &Session,
        guard: &Guard,
        reader: &Mutex<Reader>,
        debt: &mut Debt,
    ) -> Result<()> {
        if !self.restores {
            return Ok(());
        }
        let stop = &Stop::never().under(guard.lease());
        let executor = Executor { stop, ..session.executor(reader) };
        executor.restore(debt, &|debt| guard.owe(&json!(debt)))
    }

    /// Runs the command to its end. If the lock is lost, the command is ended, and the call fails.
    fn work(&self, session: &Session, guard: &Guard, reader: &Mutex<Reader>) -> Result<Ending> {
        let begun = Instant::now();
        let needed = self.subject.services(&session.config);
        let services = needed.join(",");
        let fence = guard.fence().to_string();
        let mut variables: Vec<(&str, &OsStr)> = vec![
            (variable::SERVICE, services.as_ref()),
            (variable::LOCK_TOKEN, guard.token().as_ref()),
            (variable::FENCE, fence.as_ref()),
        ];
        // A gpuctl that the command calls is to find the same services and the same lock.
        let path = session.config.path.as_ref();
        variables.extend(path.map(|path| (variable::CONFIG, path.as_os_str())));

        let until_lost = session.stop.clone().without_signals();
        let mut group = None;
        let started = Job::start(self.command, &variables, guard.descriptor(), |pid| {
            // A signal that came before signals were passed on to the command stops gpuctl instead.
            session.stop.check()?;
            let named = process::Id::of(pid).ok_or_else(|| vanished(pid))?;
            group = Some(named);
            guard.watch_over(Some(named), guard.token(), self.grace)
        });
        let (over, token) = (Event::new()?, guard.token());
        let command = || group::members(group, token);
        let watch = NeedWatch { executor: session.executor(reader), command: &command };
        let (mut ending, seen) = thread::scope(|scope| {
            let watching = started.is_ok().then(|| scope.spawn(|| watch.watch(&over)));
            let ending = started.map(|mut job| (job.attend(&until_lost), job));
            over.set();
            (ending, watching.and_then(|watching| watching.join().ok()).unwrap_or_default())
        });
        // If the command has ended by itself, this ends what it has left in the background.
        if let (Ok((ended, job)), Some(group), Err(_)) = (&mut ending, group, guard.lease().check())
        {
            session.progress.line("the GPU lock is lost; ending the command");
            end_command(Some(group), guard.token(), self.grace)?;
            if ended.is_none() {
                *ended = job.attend(&Stop::never());
            }
        }
        guard.command_ended();
        Notes::keep_run(&session.config, &needed, &seen);
        session.progress.record(&Step {
            peak_mb: seen.command,
            service_peaks_mb: seen.peaks,
            ..Step::new(Action::Run, None, Some(begun.elapsed()))
        });
        // If the lock is lost, nothing else that went wrong matters.
        guard.lease().check()?;
        ending?.0.ok_or_else(|| Failure::new(Code::Internal, "the command was left while it ran"))
    }
}

fn vanished(pid: Pid) -> Failure {
    Failure::new(
        Code::Internal,
        format!("process {pid}, just started, is not in the process table"),
    )
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
