//! `gpuctl adopt`: ties processes that were started by hand to a native service.

use crate::canary::debt;
use crate::cli::AdoptArgs;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::Manager;
use crate::observe::{adoptable, gpu_pids};
use crate::report::{AdoptReport, Subject};
use crate::session::Session;
use crate::world::nvml::Reader;
use crate::world::starts;

pub fn run(arguments: &AdoptArgs, session: Session) -> Result<Answer> {
    let patience = arguments.waiting.patience(&session.config)?;
    let service = session.config.service(&arguments.service)?.clone();
    let Manager::Native(native) = &service.manager else {
        let (name, kind) = (&service.name, service.manager.type_name());
        let message = format!("{name} is of type {kind}: its manager knows its processes");
        return Err(Failure::new(Code::Usage, message)
            .hint("only a native service adopts processes that were started by hand"));
    };
    let mut pids = arguments.pids.clone();
    pids.sort_unstable();
    pids.dedup();
    let listed: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let subject = Subject::Service { service: service.name.clone() };
    debt::tell(&session.config, &session.progress);
    let mut reader = Reader::open(&session.config.gpu);
    let what = format!("{} {}", service.name, listed.join(" "));
    session.recorded("adopt", &what, |mut session| {
        let title = format!("adopt {what}");
        let guard = session.hold_lock(&subject, &title, patience, None)?;
        let config = &session.config;
        let on_card = gpu_pids(&reader.read().unwrap_or_default());
        let ids = adoptable(config, &service.name, &pids, on_card, &session.stop)?;
        starts::adopt(config.state_dir()?, &service, native, config.path.as_deref(), &ids)?;
        guard.release(&session.progress)?;
        session.conclude(&AdoptReport {
            success: true,
            service: service.name.clone(),
            adopted: pids,
        })?;
        Ok(Answer::Yes)
    })
}
