//! Finds out what a service answers while it comes up: to its health check, by its container's own
//! check, and whether it is the service itself that answers.

use super::Watch;
use crate::error::Result;
use crate::model::{Container, Health, Healthy, NO_ADDRESS, Presence, Running, Service};
use crate::world::docker::Events;
use crate::world::health;
use crate::world::ports::local_port;
use crate::world::wait::{Handle, Woken, wait};
use std::time::{Duration, Instant};

/// Time after which a container is looked at although nothing was heard of it, because not all that
/// happens may be heard.
const UNHEARD: Duration = Duration::from_secs(10);

impl Watch<'_> {
    /// Makes the health check, at each container if containers are asked at their own addresses.
    /// The first bad answer counts; `None` means that no answer came before the deadline.
    pub(super) fn ask(&mut self, deadline: Instant) -> Result<Option<Healthy>> {
        let mut answer = Some(Healthy::No(NO_ADDRESS.to_owned()));
        for check in self.located()?.into_iter().filter_map(|service| service.health) {
            answer = self.ask_at(&check, deadline)?;
            if answer != Some(Healthy::Yes) {
                // The service may have another address when it is started again.
                self.located.clear();
                break;
            }
        }
        Ok(answer)
    }

    /// Returns copies of the service, one for each address that it is reached at.
    pub(super) fn located(&mut self) -> Result<Vec<Service>> {
        if self.located.is_empty() {
            self.located = match self.service.is_by_address() {
                true => self.look_after_it()?.located(self.service),
                false => vec![self.service.clone()],
            };
        }
        Ok(self.located.clone())
    }

    /// Makes one health check, which a death cuts short; `None` if it was abandoned at the
    /// deadline.
    fn ask_at(&mut self, check: &Health, deadline: Instant) -> Result<Option<Healthy>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = left.min(health::TRY_LIMIT);
        let attempt = health::begin(check, &self.service.headers, limit)?;
        loop {
            match self.wait_for(Some(attempt.ended()), deadline)? {
                Woken::TimedOut => return Ok(None),
                _ => {
                    if let Some(healthy) = attempt.take() {
                        // The wait itself may have reached its deadline, which may be noticed here
                        // first.
                        let is_cut =
                            matches!(healthy, Healthy::Silent(_)) && Instant::now() >= deadline;
                        return Ok((!is_cut).then_some(healthy));
                    }
                }
            }
        }
    }

    /// Waits for the result of the only HEALTHCHECK among the service's containers, which the
    /// engine reports when it changes; `None` if there is none, or more than one.
    pub(super) fn hear(&mut self) -> Result<Option<Healthy>> {
        let Some(managed) = &self.managed else { return Ok(None) };
        let checked: Vec<&Container> =
            managed.containers.iter().filter(|one| one.setup.has_healthcheck).collect();
        // If there are several, the engine says which has changed; one look at all is as good.
        let [only] = checked.as_slice() else { return Ok(None) };
        let is_alone = managed.containers.len() == 1;
        let (id, was_up) = (only.id.clone(), only.is_up());
        if self.events.as_ref().is_none_or(Events::are_over) {
            let past = self.begun.elapsed();
            self.events = Some(self.context.engine(self.stop).news(&[&id], past)?);
            // A check that passed before the start is not reported again.
            if was_up {
                return self.own_health();
            }
        }
        if self.deaths.is_empty() && !self.sees_containers() {
            self.look_after_it()?;
        }
        let until = (Instant::now() + UNHEARD).min(self.begun + self.service.start_timeout);
        loop {
            let events = self.events.as_mut().expect("begun above");
            let mut watched = events.fds();
            watched.extend(self.deaths.iter().map(Handle::fd));
            let woken = wait(&watched, self.stop, until);
            let has_died = self.deaths.iter().any(Handle::has_ended);
            let heard = events.read();
            self.stop.check()?;
            if is_alone && says_healthy(&heard) {
                return Ok(Some(Healthy::Yes));
            }
            if has_died || !heard.is_empty() || woken != Woken::Event || events.are_over() {
                return self.own_health();
            }
        }
    }

    /// Asks the engine what the containers' own HEALTHCHECK says now; `None` if there is none.
    fn own_health(&mut self) -> Result<Option<Healthy>> {
        let look = self.look_after_it()?;
        Ok(match look.presence(&self.service.name) {
            Presence::Up(Running { own_health, .. }) => own_health,
            _ => Some(Healthy::No("it is not there".to_owned())),
        })
    }

    /// Reports, after a good answer, whether it was the service that gave it; fails if another did.
    pub(super) fn answers_itself(&mut self) -> Result<bool> {
        // The containers are seen to live, and the last look finds out whose the answer is.
        let is_http = matches!(self.service.health, Some(Health::Http(_)) | None);
        if is_http && self.managed.is_some() && self.service.unload.is_none() {
            let is_watched = !self.deaths.is_empty() || self.sees_containers();
            if is_watched && self.deaths.iter().all(|handle| !handle.has_ended()) {
                return Ok(true);
            }
        }
        let look = self.look_after_it()?;
        let service = self.service;
        let is_up = matches!(look.presence(&service.name), Presence::Up(_));
        match service.health.as_ref().and_then(|check| look.answered_by(service, local_port(check)))
        {
            Some(other) => Err(self.name_container(other.in_the_way_of(service), &look)),
            None => Ok(is_up && look.heard(Healthy::Yes, service) == Healthy::Yes),
        }
    }
}

/// Reports whether the engine has said that a container's HEALTHCHECK passes: docker as the event
/// "health_status: healthy", podman as a status beside the event.
fn says_healthy(events: &str) -> bool {
    events.lines().last().is_some_and(|last| {
        last.contains("health_status") && last.contains("healthy\"") && !last.contains("unhealthy")
    })
}
