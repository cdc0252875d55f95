//! `gpuctl run`: takes the lock, makes a service, a phase or room ready, and runs a command under
//! the lock.

use crate::canary::debt;
use crate::cli::{RunArgs, Target};
use crate::config::{Config, Environment};
use crate::error::{Failure, Result};
use crate::execute::restore_for_another;
use crate::exit::{Answer, Code};
use crate::lock::check_grace;
use crate::report::Subject;
use crate::session::task::Task;
use crate::session::{Session, duration, size};
use crate::world::job::could_start;
use serde_json::Value;

pub fn run(arguments: &RunArgs, session: Session, environment: &Environment) -> Result<Answer> {
    let grace = duration("--grace", &arguments.grace)?;
    if session.config.lock.place.redis.is_some() {
        check_grace(grace)?;
    }
    if arguments.priority.is_some() && arguments.target.vram.is_none() {
        let failure = Failure::new(Code::Usage, "--priority is for --vram");
        return Err(failure.hint("a service makes room by the priority that it is configured with"));
    }
    let task = Task {
        command: &arguments.command,
        subject: subject(&arguments.target, &session.config)?,
        below: arguments.priority,
        restores: arguments.restore,
        drain: arguments.drain.drain()?,
        patience: arguments.waiting.patience(&session.config)?,
        grace,
    };
    // The program is looked for before anything is stopped for it.
    could_start(&arguments.command[0], environment.search_path())?;
    debt::tell(&session.config, &session.progress);
    // Only the command's name: its arguments may hold secrets.
    let title = format!("{}: {}", task.subject.title(), arguments.command[0].to_string_lossy());
    session.recorded("run", &title, |session| task.run(session))
}

fn subject(target: &Target, config: &Config) -> Result<Subject> {
    Ok(match (&target.service, &target.vram) {
        (Some(name), _) => Subject::Service { service: config.service(name)?.name.clone() },
        (None, Some(room)) => Subject::Room { vram_mb: size(room)? },
        (None, None) => {
            let phase = config.phase(target.phase.as_deref().unwrap_or_default())?;
            Subject::Phase { phase, name: config.phases[&phase].clone() }
        }
    })
}

/// Pays the debt of a gpuctl that is gone by restoring the services that it evicted. `debt` is what
/// that gpuctl sent to its watchdog.
pub fn pay(config: &Config, debt: Value) -> Result<()> {
    let debt = serde_json::from_value(debt)
        .map_err(|e| Failure::new(Code::Internal, format!("received an unknown debt: {e}")))?;
    restore_for_another(config, debt)
}
