//! `gpuctl start`.

use super::{Session, act::act};
use crate::cli::Start;
use crate::exit::Answer;
use crate::plan;
use crate::report::Subject;
use anyhow::Result;

pub fn run(arguments: &Start, session: Session) -> Result<Answer> {
    let service = session.config.service(&arguments.service)?.clone();
    let subject = Subject::Service { service: service.name.clone() };
    act(session, subject, &arguments.dry_run, |config, snapshot| {
        plan::start(config, snapshot, &service, !arguments.no_preempt)
    })
}
