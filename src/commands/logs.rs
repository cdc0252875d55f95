//! `gpuctl logs`: hands over to the program that shows a service's log where its manager keeps it.

use crate::cli::LogsArgs;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::{Manager, Presence};
use crate::observe::{containers, members};
use crate::report::{Form, LogReport, print};
use crate::session::Session;
use crate::world::docker::Docker;
use crate::world::logs::{self, LogPart};
use crate::world::systemd;
use std::collections::HashSet;

pub fn run(arguments: &LogsArgs, session: Session) -> Result<Answer> {
    let Session { config, stop, form, .. } = session;
    let service = config.service(&arguments.service)?;
    let part = LogPart { lines: arguments.lines, follow: arguments.follow };
    let viewer = match &service.manager {
        Manager::Native(_) => {
            // The gpuctl that started the service, perhaps in a unit, may have used another state
            // folder.
            let living = members(&config, &[], &service.name, &[], &HashSet::new()).proven;
            let home = living.iter().find_map(|id| logs::home_of(id.pid, &service.name));
            logs::viewer(
                home.as_deref().map_or_else(|| config.state_dir(), Ok)?,
                &service.name,
                part,
            )
        }
        Manager::Containers(which) => {
            let (presence, managed) = containers(which, &config, &stop);
            match presence {
                Presence::Unknown(failure) | Presence::Missing(failure) => Err(failure),
                _ => Ok(Docker::of(&config.docker, &stop).log_viewer(&managed.containers, part)),
            }
        }
        Manager::Systemd { unit, user } => systemd::log_viewer(unit, *user, part, &stop),
    };
    let viewer = viewer.map_err(|failure| Failure {
        message: format!("{}: {}", service.name, failure.message),
        ..failure
    })?;
    match form {
        Form::Json | Form::Http(_) if arguments.follow => {
            Err(Failure::new(Code::Usage, "--follow and --json cannot be used together")
                .hint("without --follow, --json prints the last lines as one document"))
        }
        Form::Json | Form::Http(_) => {
            let lines = viewer.read(&stop)?;
            print(&LogReport { service: service.name.clone(), lines }, &form)?;
            Ok(Answer::Yes)
        }
        Form::Text(_) => Err(viewer.take_over()),
    }
}
