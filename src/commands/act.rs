//! What all acting commands have in common: observe, plan, carry out or only show, report.

use super::Session;
use crate::cli::DryRun;
use crate::config::Config;
use crate::execute::{Context, execute};
use crate::exit::Answer;
use crate::model::{Service, Snapshot};
use crate::observe::observe;
use crate::plan::{Plan, Refusal, reading_required};
use crate::report::{ActReport, Subject, print};
use anyhow::{Result, bail};
use std::sync::Mutex;

/// Observes (the health only of services that `asks` for), plans, carries out.
pub fn act(
    mut session: Session,
    subject: Subject,
    dry_run: &DryRun,
    asks: impl Fn(&Service) -> bool,
    plan: impl FnOnce(&Config, &Snapshot) -> std::result::Result<Plan, Refusal>,
) -> Result<Answer> {
    let before = observe(&session.config, &mut session.reader, &session.stop, asks)?;
    if before.vram.no_such_gpu {
        bail!(reading_required(&before.vram));
    }
    let plan = plan(&session.config, &before)?;
    for warning in &plan.warnings {
        session.progress.warning(warning);
    }
    if dry_run.dry_run {
        print(&ActReport::planned(subject, &plan, &session.config, &before), session.json)?;
        return Ok(Answer::Yes);
    }
    let reader = Mutex::new(session.reader);
    let context = Context {
        config: &session.config,
        stop: &session.stop,
        reader: &reader,
        progress: &session.progress,
    };
    let mut outcome = execute(&plan, &before, &context);
    match outcome.failure.take() {
        None => {
            print(&ActReport::done(subject, &plan, &outcome), session.json)?;
            Ok(Answer::Yes)
        }
        // What was done before it failed belongs to the failure.
        Some(failure) => bail!(
            failure
                .detail("stopped", outcome.stopped)
                .detail("unloaded", outcome.unloaded)
                .detail("started", outcome.started)
                .detail("elapsed_ms", outcome.elapsed.as_millis() as u64)
        ),
    }
}
