//! `gpuctl prepare-phase`.

use super::{Session, act::act};
use crate::cli::PreparePhase;
use crate::exit::Answer;
use crate::plan;
use crate::report::Subject;
use anyhow::Result;

pub fn run(arguments: &PreparePhase, session: Session) -> Result<Answer> {
    let phase = session.config.phase(&arguments.phase)?;
    let subject = Subject::Phase { phase, name: session.config.phases[&phase].clone() };
    act(session, subject, &arguments.dry_run, |config, snapshot| {
        plan::prepare_phase(config, snapshot, phase, arguments.lazy)
    })
}
