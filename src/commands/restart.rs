//! `gpuctl restart`: stops one service and makes it ready again.

use crate::cli::RestartArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::model::{Evict, Service};
use crate::plan;
use crate::report::Subject;
use crate::session::{Session, act::act};

pub fn run(arguments: &RestartArgs, session: Session) -> Result<Answer> {
    let service = session.config.service(&arguments.service)?.clone();
    let subject = Subject::Service { service: service.name.clone() };
    // The service's own health does not matter: it is stopped in any case.
    let asks = |other: &Service| other.name != service.name && other.evict == Evict::Unload;
    act(session, "restart", subject, &arguments.acting, asks, |config, snapshot| {
        plan::restart(config, snapshot, &service, arguments.force.force)
    })
}
