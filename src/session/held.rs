//! The lock and the event log around what a command does.

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
    /// Does what a command is for, and leaves in the event log what was done.
    pub fn recorded(
        mut self,
        command: &str,
        subject: &str,
        work: impl FnOnce(Session) -> Result<Answer>,
    ) -> Result<Answer> {
        let recorder = match Recorder::begin(&self.config, command, subject) {
            Ok(recorder) => Arc::new(recorder),
            // What is to be done matters more than that it is written down.
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

    /// Takes the lock for what is to be done; from now on its loss calls the work off.
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
    /// The services that something is done for.
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

/// Returns what the lock shows: the service that it is held for, where it is one.
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
