//! `gpuctl stop`: stops the services that are named.

use crate::cli::StopArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::plan;
use crate::report::Subject;
use crate::session::{Session, act::act};

pub fn run(arguments: &StopArgs, session: Session) -> Result<Answer> {
    for name in &arguments.services {
        session.config.service(name)?;
    }
    let subject = match arguments.services.as_slice() {
        [service] => Subject::Service { service: service.clone() },
        services => Subject::Services { services: services.to_vec() },
    };
    act(
        session,
        "stop",
        subject,
        &arguments.acting,
        |_| false,
        |config, snapshot| plan::stop(config, snapshot, &arguments.services, arguments.force.force),
    )
}
