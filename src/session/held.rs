//! The lock and the event log around the work of a command.

use super::Session;
use crate::config::Config;
use crate::error::Result;
use crate::exit::Answer;
use crate::history::Recorder;
use crate::lock::{Guard, Purpose};
use crate::model::Service;
use crate::report::Subject;
use std::sync::Arc;
use std::time::Duration;

impl Session {
    /// Does the work of a command, and records in the event log what was done. If the event log
    /// cannot be written, the user is warned and the work is done all the same.
    pub fn recorded(
        mut self,
        command: &str,
        subject: &str,
        work: impl FnOnce(Session) -> Result<Answer>,
    ) -> Result<Answer> {
        let recorder = match Recorder::begin(&self.config, command, subject) {
            Ok(recorder) => Arc::new(recorder),
            // The work matters more than the record of it.
            Err(failure) => {
                self.progress.warning(&failure.message);
                return work(self);
            }
        };
        self.progress = self.progress.recorded(&recorder);
        let result = work(self);
        recorder.end(&result);
        result
    }

    /// Takes the GPU lock for the work of a command; from now on the loss of the lock stops this
    /// session's work.
    pub fn hold_lock(
        &mut self,
        subject: &Subject,
        command: &str,
        patience: Duration,
        margin: Option<Duration>,
    ) -> Result<Guard> {
        let services = subject.services(&self.config);
        let holder = &holder(subject, &services);
        let purpose = Purpose { holder, command, services: &services, patience, margin };
        let guard = Guard::take(&self.config, &purpose, &self.patient, &self.progress)?;
        self.stop = self.stop.under(guard.lease());
        Ok(guard)
    }
}

impl Subject {
    /// Returns the services that a command acts for; none for room, `release-all` and
    /// `release-idle`.
    pub fn services(&self, config: &Config) -> Vec<String> {
        let is_meant = |service: &&Service| match self {
            Subject::Phase { phase, .. } => service.phases.contains(phase),
            Subject::Service { service: name } => service.name == *name,
            Subject::Services { services } => services.contains(&service.name),
            Subject::Room { .. } | Subject::All {} | Subject::Idle {} => false,
        };
        config.services.iter().filter(is_meant).map(|service| service.name.clone()).collect()
    }
}

/// Returns the name that the lock shows for its holder: that of the service if the lock is held for
/// exactly one, otherwise the phase, the size of the room, the services or the command.
fn holder(subject: &Subject, services: &[String]) -> String {
    match (subject, services) {
        (_, [service]) => service.clone(),
        (Subject::Phase { name: Some(name), .. }, _) => name.clone(),
        (Subject::Phase { phase, .. }, _) => format!("phase {phase}"),
        (Subject::Room { .. }, _) => subject.name(),
        (Subject::Service { .. } | Subject::Services { .. }, services) => services.join(","),
        (Subject::All {}, _) => "release-all".to_owned(),
        (Subject::Idle {}, _) => "release-idle".to_owned(),
    }
}
