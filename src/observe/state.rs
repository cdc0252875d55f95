//! Derives the state that users are shown from what a service's manager and its health check say.

use crate::config::Span;
use crate::model::{AnsweredBy, Healthy, Presence, Service, State, Trouble, Unproven};

/// Returns the state of a service, and why it is in that state if there is something to say.
pub fn judge(
    service: &Service,
    presence: &Presence,
    healthy: Option<&Healthy>,
    answered_by: Option<&AnsweredBy>,
    unproven: &[Unproven],
) -> (State, Option<String>) {
    match (answered_by, presence) {
        // A service that its manager has given up is dead, whatever answers in its place.
        (_, Presence::Dead(_)) => {}
        // Two services may share a port; that the other one answers is no fault.
        (Some(AnsweredBy { who, service: Some(_), .. }), Presence::Down(_)) => {
            return (State::Stopped, Some(who.clone()));
        }
        (Some(stranger), _) => return (State::Error, Some(stranger.who.clone())),
        (None, _) => {}
    }
    let running = match presence {
        Presence::Unknown(failure) => return (State::Unknown, Some(failure.message.clone())),
        Presence::Dead(failure) => return (State::Error, Some(failure.message.clone())),
        Presence::Missing(failure) => return (State::Stopped, Some(failure.message.clone())),
        Presence::Down(ending) => {
            let matching = unproven.iter().filter(|one| one.matches);
            let listed: Vec<String> = matching.map(Unproven::to_string).collect();
            let named = (!listed.is_empty())
                .then(|| format!("matches, unproven: process {}", listed.join(", ")));
            return (State::Stopped, named.or_else(|| ending.clone()));
        }
        Presence::Stopping(detail) => return (State::Stopping, Some(detail.clone())),
        Presence::Up(running) => running,
    };
    match &running.trouble {
        Some(Trouble::Paused) => return (State::Error, Some("the container is paused".to_owned())),
        Some(Trouble::CrashLoop(how)) => {
            return (State::Error, Some(format!("restarts in a loop: {how}")));
        }
        Some(Trouble::Incomplete(which)) => return (State::Error, Some(which.clone())),
        Some(Trouble::Orphaned) => {
            let told = "its server has ended and left processes behind".to_owned();
            return (State::Error, Some(told));
        }
        Some(Trouble::Suspended) => {
            return (State::Error, Some("suspended by a signal (SIGSTOP)".to_owned()));
        }
        None => {}
    }
    let why = match healthy {
        Some(Healthy::Yes) => return (State::Ready, None),
        Some(Healthy::No(why) | Healthy::Silent(why)) => running.not_begun().unwrap_or(why),
        // Nobody has asked the service, so it is not known to be ready.
        None => return (State::Starting, None),
    };
    match running.age {
        Some(age) if age > service.start_timeout && matches!(healthy, Some(Healthy::Silent(_))) => {
            (
                State::Unresponsive,
                Some(format!("busy, or stuck (then `gpuctl restart {}`): {why}", service.name)),
            )
        }
        Some(age) if age > service.start_timeout => (
            State::Error,
            Some(format!("not healthy {} after its start: {why}", Span::seconds(age.as_secs()))),
        ),
        _ => (State::Starting, Some(why.to_owned())),
    }
}
