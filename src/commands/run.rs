//! `gpuctl run`: the lock, a service or phase made ready, and a command under the lock.

use super::Session;
use super::act::carry_out;
use super::duration;
use crate::canary::debt;
use crate::cli::{RunArgs, Target};
use crate::config::{Config, Environment};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::lock::watchdog::end_command;
use crate::lock::{Guard, check_grace};
use crate::model::{Evict, Pid, Service, Snapshot, variable};
use crate::plan;
use crate::report::{ActReport, Subject};
use crate::step::{Action, Step};
use crate::world::job::{Ending, Job, could_start};
use crate::world::nvml::Reader;
use crate::world::process;
use crate::world::wait::Stop;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

pub fn run(arguments: &RunArgs, session: Session, environment: &Environment) -> Result<Answer> {
    let grace = duration("--grace", &arguments.grace)?;
    if session.config.lock.place.redis.is_some() {
        check_grace(grace)?;
    }
    let patience = arguments.waiting.patience(&session.config)?;
    let subject = subject(&arguments.target, &session.config)?;
    // Before anything is stopped for it.
    could_start(&arguments.command[0], environment.search_path())?;
    debt::tell(&session.config, &session.progress);
    // Its arguments may hold secrets.
    let title = format!("{}: {}", subject.title(), arguments.command[0].to_string_lossy());
    session.recorded("run", &title, |session| {
        under_lock(&arguments.command, &subject, patience, grace, session)
    })
}

fn under_lock(
    command: &[OsString],
    subject: &Subject,
    patience: Duration,
    grace: Duration,
    mut session: Session,
) -> Result<Answer> {
    let needed = subject.services(&session.config);
    let reader = Reader::open(&session.config.gpu);
    // Its arguments may hold secrets.
    let title = format!("run {}", command[0].to_string_lossy());
    let guard = session.hold_lock(subject, &title, patience, grace)?;
    let asks = |service: &Service| needed.contains(&service.name) || service.evict == Evict::Unload;
    let decide = |config: &Config, snapshot: &Snapshot| match subject {
        Subject::Phase { phase, .. } => plan::prepare_phase(config, snapshot, *phase, false),
        _ => plan::start(config, snapshot, config.service(&needed[0])?, true),
    };
    let (plan, outcome) = carry_out(&session, reader, asks, decide)?;
    if !plan.is_empty() {
        session.progress.line(&ActReport::done(subject.clone(), &plan, &outcome).summary());
    }
    let begun = Instant::now();
    let ending = work(command, &needed, &session, &guard, grace);
    session.progress.record(&Step::new(Action::Run, None, Some(begun.elapsed())));
    let ending = ending?;
    guard.release(&session.progress)?;
    Ok(ending.answer())
}

fn subject(target: &Target, config: &Config) -> Result<Subject> {
    Ok(match (&target.service, &target.phase) {
        (Some(name), _) => Subject::Service { service: config.service(name)?.name.clone() },
        (None, phase) => {
            let phase = config.phase(phase.as_deref().unwrap_or_default())?;
            Subject::Phase { phase, name: config.phases[&phase].clone() }
        }
    })
}

/// Runs the command to its end; where the lock is lost, to the end that we make of it.
fn work(
    words: &[OsString],
    services: &[String],
    session: &Session,
    guard: &Guard,
    grace: Duration,
) -> Result<Ending> {
    let (services, fence) = (services.join(","), guard.fence().to_string());
    let mut variables: Vec<(&str, &OsStr)> = vec![
        (variable::SERVICE, services.as_ref()),
        (variable::LOCK_TOKEN, guard.token().as_ref()),
        (variable::FENCE, fence.as_ref()),
    ];
    // For what the command calls gpuctl for: the same services, the same lock.
    let path = session.config.path.as_ref();
    variables.extend(path.map(|path| (variable::CONFIG, path.as_os_str())));

    let until_lost = session.stop.clone().without_signals();
    let mut group = None;
    let started = Job::start(words, &variables, guard.descriptor(), |pid| {
        // A signal that came before signals were the command's.
        session.stop.check()?;
        let named = process::Id::of(pid).ok_or_else(|| vanished(pid))?;
        group = Some(named);
        guard.watch_over(Some(named), guard.token(), grace)
    });
    let mut ending = started.map(|mut job| (job.attend(&until_lost), job));
    if let (Ok((ended @ None, job)), Some(group)) = (&mut ending, group) {
        session.progress.line("the GPU lock is lost; ending the command");
        end_command(Some(group), guard.token(), grace)?;
        *ended = job.attend(&Stop::never());
    }
    guard.forget_command();
    // Where the lock is lost, nothing else that went wrong matters.
    guard.lease().check()?;
    ending?.0.ok_or_else(|| Failure::new(Code::Internal, "the command was left while it ran"))
}

fn vanished(pid: Pid) -> Failure {
    Failure::new(
        Code::Internal,
        format!("process {pid}, just started, is not in the process table"),
    )
}
