//! `gpuctl status`.

use super::Session;
use crate::cli::Status;
use crate::error::{Failure, Result as LockResult};
use crate::exit::{Answer, Code};
use crate::lock::{self, Held};
use crate::model::State;
use crate::observe::observe;
use crate::report::{StatusReport, print};
use crate::world::nvml::Reader;
use crate::world::wait::{Aside, Stop, wait};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Beyond the limits that looking at the lock has itself.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

pub fn run(arguments: &Status, session: Session) -> Result<Answer> {
    let config = &session.config;
    for name in &arguments.check {
        config.service(name)?;
    }
    let mut reader = Reader::open(&config.gpu);
    // Beside everything else: a server that hangs costs no more than a health check that does.
    let backend = lock::open(config);
    let looking = Aside::begin(move || backend?.look())?;
    let mut snapshot = observe(config, &mut reader, &session.stop, |_| true)?;
    let held = found(&looking, &session.stop);
    if let Ok(Some(held)) = &held {
        snapshot.mark_busy(|service| held.is_for(service));
    }
    print(&StatusReport::new(config, &snapshot, &held), &session.form)?;
    let is_ready =
        |name: &String| matches!(snapshot.service(name).state, State::Ready | State::Busy);
    Ok(Answer::from(arguments.check.iter().all(is_ready)))
}

/// Who holds the lock; one that is proved to be over is held by nobody.
fn found(looking: &Aside<LockResult<Option<Held>>>, stop: &Stop) -> LockResult<Option<Held>> {
    wait(&[looking.ended().fd()], stop, Instant::now() + LOCK_LIMIT);
    let silent = || Err(Failure::new(Code::Unavailable, "the lock does not answer"));
    Ok(looking.take().unwrap_or_else(silent)?.filter(|held| !held.is_over()))
}
