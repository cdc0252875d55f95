//! `gpuctl lock`: takes, releases and shows the GPU lock by hand.

use crate::cli::{LockAcquireArgs, LockCommand, LockReleaseArgs};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::lock::{self, Release, Wanted};
use crate::progress::Waiting;
use crate::report::{AcquiredReport, LockStatusReport, ReleasedReport, deliver, print};
use crate::session::{Session, duration};

pub fn run(command: &LockCommand, session: Session) -> Result<Answer> {
    match command {
        LockCommand::Acquire(arguments) => acquire(arguments, &session),
        LockCommand::Release(arguments) => release(arguments, &session),
        LockCommand::Status => status(&session),
    }
}

fn acquire(arguments: &LockAcquireArgs, session: &Session) -> Result<Answer> {
    let config = &session.config;
    let ttl = arguments.ttl.as_deref().map(|text| duration("--ttl", text)).transpose()?;
    let wanted = Wanted::new(&arguments.holder, ttl.unwrap_or(config.lock.ttl), arguments.pid)?;
    let patience = arguments.waiting.patience(config)?;
    if let Some(token) = &config.lock.token {
        let held = lock::joined(config, token)?;
        print(&AcquiredReport::of(&held, token), &session.form)?;
        return Ok(Answer::Yes);
    }
    let mut waiting = Waiting::new(&session.progress, patience);
    let mut tell = |busy: &str| waiting.tell(busy);
    let mut taken = lock::acquire(config, &wanted, patience, &session.patient, &mut tell)?;
    waiting.done();
    match deliver(&AcquiredReport::new(&taken.claim), &session.form) {
        Ok(()) => taken.leave()?,
        Err(failure) => {
            taken.give_back()?;
            return Err(failure);
        }
    }
    Ok(Answer::Yes)
}

fn release(arguments: &LockReleaseArgs, session: &Session) -> Result<Answer> {
    let config = &session.config;
    let token = match (arguments.force, &arguments.token, &config.lock.token) {
        (true, ..) => None,
        (false, Some(token), _) | (false, None, Some(token)) => Some(token.as_str()),
        (false, None, None) => return Err(Failure::new(
            Code::Usage,
            "no token: whose lock is to be released?",
        )
        .hint(
            "--token TOKEN, or GPUCTL_LOCK_TOKEN in the environment, or over HTTP the header Gpuctl-Lock-Token; --force releases anybody's",
        )),
    };
    let released = lock::release(config, token)?;
    print(&ReleasedReport::new(config, &released), &session.form)?;
    // A lock that nobody holds is a success too: that is what the caller wants.
    Ok(Answer::from(!matches!(released, Release::Anothers(_) | Release::Kept(_))))
}

fn status(session: &Session) -> Result<Answer> {
    let held = lock::look(&session.config)?;
    print(&LockStatusReport::new(&session.config, held.as_ref()), &session.form)?;
    Ok(Answer::from(held.is_none()))
}
