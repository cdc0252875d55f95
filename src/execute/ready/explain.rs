//! Explains why a service did not become ready, with the end of its log.

use super::Watch;
use crate::config::Span;
use crate::error::Failure;
use crate::exit::Code;
use crate::model::{ComposeLabels, Container, Manager, Service};
use crate::observe::Look;
use crate::redact::mask;
use crate::world::{logs, starts, systemd};

impl Watch<'_> {
    /// Adds to a failure the container that a native service's start command has started instead of
    /// a process. If several have come up meanwhile, perhaps of other engines, it is the one that
    /// the command has named.
    pub(super) fn name_container(&self, failure: Failure, look: &Look) -> Failure {
        let Some(started) = &self.started else { return failure };
        let ids = look.containers_since(started.since());
        if ids.is_empty() {
            return failure;
        }
        let ids = ids.iter().map(String::as_str).collect();
        let known = self.context.engine(self.stop).inspect(ids, &[])().containers;
        let is_named = |one: &&Container| started.has_said(&one.id) || started.has_said(&one.name);
        let container = match known.as_slice() {
            [only] => Some(only),
            several => several.iter().find(is_named),
        };
        match container {
            Some(container) => of_a_container(failure, self.service, container),
            None => failure,
        }
    }

    pub(super) fn died(&self, how: &str) -> Failure {
        self.explain(Failure::new(Code::StartFailed, format!("{}: {how}", self.service.name)))
    }

    pub(super) fn timed_out(&self, why: &str) -> Failure {
        if let Some(away) = &self.away {
            return Failure {
                message: format!("{}: {}", self.service.name, away.message),
                ..away.clone()
            };
        }
        let limit = self.service.start_timeout;
        let message =
            format!("{}: not ready within {}: {}", self.service.name, Span(limit), mask(why));
        self.explain(Failure::new(Code::Timeout, message)).hint(format!(
            "it was left running; `gpuctl restart {0}` starts it again, `gpuctl stop {0}` stops it, and a larger start_timeout gives it more time",
            self.service.name
        ))
    }

    /// Adds the end of the service's log to a failure, wherever its manager keeps the log.
    fn explain(&self, failure: Failure) -> Failure {
        let name = &self.service.name;
        // The failure of another service ends this service's wait, which is over, but not the
        // explanation.
        let stop = self.context.stop;
        match (&self.service.manager, &self.started) {
            (Manager::Native(_), Some(started)) => started.explain(failure),
            (Manager::Native(_), None) => match self.context.config.state_dir() {
                Ok(state_dir) => {
                    let config = self.context.config.path.as_deref();
                    let from = starts::log_from(state_dir, self.service, config);
                    logs::attach_file(failure, &logs::path_of(state_dir, name), from)
                }
                Err(_) => failure,
            },
            (Manager::Containers(_), _) => {
                let managed = self.managed.as_ref();
                let managed = managed.unwrap_or_else(|| self.context.before.managed(name));
                let engine = self.context.engine(stop);
                let tail = |one: &Container| engine.log_tail(&one.id, self.begun.elapsed());
                let lines: Vec<String> = match managed.containers.as_slice() {
                    [only] => tail(only),
                    several => several
                        .iter()
                        .flat_map(|one| {
                            tail(one).into_iter().map(|line| format!("{} | {line}", one.name))
                        })
                        .collect(),
                };
                logs::attach(failure, lines).hint(format!("its log: gpuctl logs {name}"))
            }
            (Manager::Systemd { unit, user }, _) => {
                let watched = self.begun.elapsed();
                logs::attach(failure, systemd::log_tail(unit, *user, watched, stop))
                    .hint(format!("its log: gpuctl logs {name}"))
            }
        }
    }
}

/// Returns the failure of a start command that has started a container instead of a process of its
/// own.
fn of_a_container(failure: Failure, service: &Service, container: &Container) -> Failure {
    let name = &container.name;
    let labels = container.setup.compose.as_ref();
    let keys = match labels.filter(|labels| !labels.is_one_off) {
        Some(ComposeLabels { project, service, .. }) => {
            format!("type = \"compose\", project = \"{project}\" and service = \"{service}\"")
        }
        None => format!("type = \"docker\" and container = \"{name}\""),
    };
    let message = format!("{}; it started the container {name}", failure.message);
    Failure { message, ..failure }.hint(format!(
        "a container is managed by its engine: in services.{}, set {keys}",
        service.name
    ))
}
