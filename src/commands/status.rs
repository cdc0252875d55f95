//! `gpuctl status`.

use super::Session;
use crate::cli::Status;
use crate::exit::Answer;
use crate::model::State;
use crate::observe::observe;
use crate::report::{StatusReport, print};
use anyhow::Result;

pub fn run(arguments: &Status, mut session: Session) -> Result<Answer> {
    for name in &arguments.check {
        session.config.service(name)?;
    }
    let snapshot = observe(&session.config, &mut session.reader, &session.stop, |_| true)?;
    print(&StatusReport::new(&session.config, &snapshot), session.json)?;
    let all_ready = arguments.check.iter().all(|name| snapshot.service(name).state == State::Ready);
    Ok(Answer::from(all_ready))
}
