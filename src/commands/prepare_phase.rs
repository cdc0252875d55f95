//! `gpuctl prepare-phase`: makes the services of a phase ready.

use crate::cli::PreparePhaseArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::model::{Evict, Service};
use crate::plan;
use crate::report::Subject;
use crate::session::{Session, act::act};

pub fn run(arguments: &PreparePhaseArgs, session: Session) -> Result<Answer> {
    let phase = session.config.phase(&arguments.phase)?;
    let subject = Subject::Phase { phase, name: session.config.phases[&phase].clone() };
    // Another service's health matters only if it unloads: it has to be healthy to be asked to.
    let asks =
        |service: &Service| service.phases.contains(&phase) || service.evict == Evict::Unload;
    act(session, "prepare-phase", subject, &arguments.acting, asks, |config, snapshot| {
        plan::prepare_phase(config, snapshot, phase, arguments.lazy)
    })
}
