//! `gpuctl lock`: the GPU lock by hand.

use super::{Session, duration};
use crate::cli::{Lock, LockAcquire, LockRelease};
use crate::error::Failure;
use crate::exit::{Answer, Code};
use crate::lock::{self, Claim};
use crate::progress::Waiting;
use crate::report::{AcquiredReport, LockStatusReport, ReleasedReport, deliver, print};
use anyhow::{Result, bail};

pub fn run(command: &Lock, session: Session) -> Result<Answer> {
    match command {
        Lock::Acquire(arguments) => acquire(arguments, &session),
        Lock::Release(arguments) => release(arguments, &session),
        Lock::Status => status(&session),
    }
}

fn acquire(arguments: &LockAcquire, session: &Session) -> Result<Answer> {
    let config = &session.config;
    let holder = &arguments.holder;
    if holder.is_empty() || *holder != lock::holder_name(holder) {
        bail!(
            Failure::new(Code::Usage, format!("\"{holder}\" cannot be shown as a holder"))
                .hint("a name without |, quotes and control characters")
        );
    }
    let ttl = match &arguments.ttl {
        Some(text) => duration("--ttl", text)?,
        None => config.lock.ttl,
    };
    if ttl.is_zero() {
        bail!(Failure::new(Code::Usage, "--ttl: a lock without time is no lock"));
    }
    let patience = arguments.waiting.patience(config)?;
    let mut backend = lock::open(config)?;
    if let Some(token) = &config.lock.token {
        let held = lock::joined(backend.as_mut(), token)?;
        print(&AcquiredReport::of(&held, token), &session.form)?;
        return Ok(Answer::Yes);
    }
    let mut claim = Claim::new(config, holder, &[], arguments.pid, ttl)?;
    let mut waiting = Waiting::new(&session.progress, patience);
    let warning = claim
        .acquire_to_keep(backend.as_mut(), patience, &session.stop, |busy| waiting.tell(busy))?;
    waiting.done();
    if let Some(warning) = warning {
        session.progress.warning(&warning);
    }
    let printed = deliver(&AcquiredReport::new(&claim), &session.form);
    if printed.is_err() {
        // Nobody knows the token, so nobody could release it.
        backend.release(Some(&claim.record.token))?;
    }
    printed.map(|()| Answer::Yes)
}

fn release(arguments: &LockRelease, session: &Session) -> Result<Answer> {
    let config = &session.config;
    let token = match (arguments.force, &arguments.token, &config.lock.token) {
        (true, ..) => None,
        (false, Some(token), _) | (false, None, Some(token)) => Some(token.as_str()),
        (false, None, None) => {
            bail!(Failure::new(Code::Usage, "no token: whose lock is to be released?").hint(
                "--token TOKEN, or GPUCTL_LOCK_TOKEN in the environment; --force releases anybody's"
            ))
        }
    };
    let mut backend = lock::open(config)?;
    // Given away, the command would work on beside the next one's.
    if let Some(token) = token
        && let Some(held) = backend.look()?
        && held.is_of(token)
        && held.is_of_a_command()
    {
        print(&ReleasedReport::left_to_run(&held), &session.form)?;
        return Ok(Answer::Yes);
    }
    let released = backend.release(token)?;
    let holder = if released { None } else { backend.look()? };
    print(&ReleasedReport::new(released, holder.as_ref()), &session.form)?;
    // That nobody holds it is what was asked for.
    Ok(Answer::from(released || holder.is_none()))
}

fn status(session: &Session) -> Result<Answer> {
    let held = lock::open(&session.config)?.look()?;
    print(&LockStatusReport::new(&session.config, held.as_ref()), &session.form)?;
    Ok(Answer::from(held.is_none()))
}
