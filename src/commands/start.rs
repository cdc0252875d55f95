//! `gpuctl start`: makes one service ready.

use crate::cli::StartArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::model::{Evict, Service};
use crate::plan;
use crate::report::Subject;
use crate::session::{Session, act::act};

pub fn run(arguments: &StartArgs, session: Session) -> Result<Answer> {
    let service = session.config.service(&arguments.service)?.clone();
    let subject = Subject::Service { service: service.name.clone() };
    // Another service's health matters only if it unloads: it has to be healthy to be asked to.
    let asks = |other: &Service| other.name == service.name || other.evict == Evict::Unload;
    act(session, "start", subject, &arguments.acting, asks, |config, snapshot| {
        plan::start(config, snapshot, &service, !arguments.no_preempt)
            .map_err(|refusal| plan::name_phase(refusal, config, snapshot, &service))
    })
}
