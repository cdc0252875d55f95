//! Takes the last look: what was done is reported as done only when it is seen. Every needed
//! service has to be ready, and everything that was stopped has to be gone.

use super::{Context, LONGEST, SHORTEST, contained, ready, reclaim};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Container, Manager, Mb, Observed, Pid, Presence, Service, Snapshot, State};
use crate::notes::Notes;
use crate::observe::{Ask, started_by, supervisor_of_containers};
use crate::plan::{Plan, StartHow};
use crate::world::systemd;
use crate::world::wait::wait;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Time for which a process that only mentions a stopped service may be there, such as somebody's
/// `ps` or `pgrep`.
const PASSING: Duration = Duration::from_secs(2);

/// Looks until all needed services are ready at once and all stopped ones are gone, as long as the
/// slowest of them may take. Returns what was seen then.
pub fn look(plan: &Plan, stopped: &[String], context: &Context) -> Result<Snapshot> {
    let needed: Vec<&Service> = plan.needed.iter().map(|name| context.service(name)).collect();
    let gone: Vec<&Service> = stopped
        .iter()
        .filter(|name| !plan.needed.contains(name))
        .map(|name| context.service(name))
        .collect();
    let starts = needed.iter().map(|service| service.start_timeout);
    let stops = gone.iter().map(|service| service.stop_timeout);
    let begun = Instant::now();
    let deadline = begun + starts.chain(stops).max().unwrap_or(Duration::ZERO);
    // Services whose containers were made anew and were stopped once more.
    let mut made_anew: HashSet<&str> = HashSet::new();
    loop {
        let after = see(plan, context)?;
        let mut concerned = needed.iter().chain(&gone);
        if concerned.any(|service| is_away(service, &after)) && Instant::now() < deadline {
            let pause = (begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
            wait(&[], context.stop, Instant::now() + pause);
            context.stop.check()?;
            continue;
        }
        let hopes = gone.iter().map(|it| (it, "gone")).chain(needed.iter().map(|it| (it, "ready")));
        for (Service { name, .. }, hope) in hopes {
            if let Presence::Unknown(failure) = &after.service(name).presence {
                let why = &failure.message;
                let message = format!("{name}: whether it is {hope} cannot be seen: {why}");
                return Err(Failure { message, ..failure.clone() });
            }
        }
        if let Some(back) = came_back(plan, stopped, context.before, &after) {
            if !back.is_alive() && begun.elapsed() < PASSING {
                wait(&[], context.stop, Instant::now() + SHORTEST);
                context.stop.check()?;
                continue;
            }
            let service = context.service(&back.name);
            if made_anew.insert(&service.name) && contained::stop_made_anew(service, context)? {
                continue;
            }
            return Err(told_of_return(context.service(&back.name), back, context));
        }
        let Some((service, observed)) = needed
            .iter()
            .map(|service| (service, after.service(&service.name)))
            .find(|(_, observed)| !matches!(observed.state, State::Ready | State::Busy))
        else {
            return Ok(after);
        };
        // The service is there and does not answer now, or its manager is bringing it back.
        let is_coming = matches!(observed.state, State::Starting | State::Unresponsive);
        if !is_coming || Instant::now() >= deadline {
            return Err(ready::lost(service, observed, context));
        }
        ready::make_ready(service, StartHow::Await, None, context.stop, context)?;
    }
}

/// Reports whether a service's engine cannot be reached, which says nothing about its containers
/// and may be over in a moment.
fn is_away(service: &Service, after: &Snapshot) -> bool {
    matches!(service.manager, Manager::Containers(_))
        && matches!(&after.service(&service.name).presence,
            Presence::Unknown(failure) if failure.code == Code::Unavailable)
}

/// Returns the services that have unloaded, and by now hold more than they kept then.
pub fn loaded_again<'a>(
    keeps: &HashMap<String, Mb>,
    after: &Snapshot,
    context: &'a Context,
) -> Vec<&'a Service> {
    let has_loaded = |service: &&Service| {
        let most = keeps.get(&service.name).map(|kept| service.residue(Some(*kept)));
        let held = after.service(&service.name).used;
        most.zip(held).is_some_and(|(most, held)| held > most)
    };
    context.config.services.iter().filter(has_loaded).collect()
}

/// Fails if room that was made for something other than a service is not there any more.
pub fn has_room(plan: &Plan, after: &Snapshot, context: &Context) -> Result<()> {
    let vram = &after.vram;
    match vram.free.map(|free| free.saturating_sub(context.config.gpu.reserve)) {
        Some(room) if plan.start.is_empty() && room < plan.required => {
            Err(reclaim::no_room(plan, vram, room))
        }
        _ => Ok(()),
    }
}

/// Looks at all services and the card as they are now, and at the health of the needed services.
pub fn see(plan: &Plan, context: &Context) -> Result<Snapshot> {
    let seen = context.look(&|service| Ask::state_if(plan.needed.contains(&service.name)))?;
    Notes::keep(context.config, &seen);
    Ok(seen)
}

/// Returns a service that was stopped and not started since, and is there again, or may be.
fn came_back<'a>(
    plan: &Plan,
    stopped: &[String],
    before: &Snapshot,
    after: &'a Snapshot,
) -> Option<&'a Observed> {
    let is_wanted = |name: &String| plan.needed.contains(name);
    stopped.iter().filter(|name| !is_wanted(name)).map(|name| after.service(name)).find(|now| {
        let was_there =
            |pid: Pid| before.service(&now.name).unproven.iter().any(|one| one.pid == pid);
        now.is_alive() || now.unproven.iter().any(|one| !was_there(one.pid))
    })
}

fn told_of_return(service: &Service, back: &Observed, context: &Context) -> Failure {
    let name = &service.name;
    let pid = back.pids().first().copied().or(back.unproven.first().map(|one| one.pid));
    let (who, fix) = match &service.manager {
        Manager::Native(_) => match pid.and_then(started_by) {
            Some(supervisor) => (supervisor.to_string(), supervisor.remedy()),
            None => ("something".to_owned(), format!("see `ps -fp {}`", pid.unwrap_or_default())),
        },
        Manager::Containers(_) => {
            let containers = &context.before.managed(name).containers;
            let policy = |one: &&Container| !matches!(one.setup.restart.as_str(), "" | "no");
            match (supervisor_of_containers(containers), containers.iter().find(policy)) {
                (Some(supervisor), _) => (supervisor.to_string(), supervisor.remedy()),
                (None, Some(one)) => (
                    format!("the engine, by its restart policy {},", one.setup.restart),
                    one.without_restart(&context.config.docker, "no"),
                ),
                (None, None) => (
                    "something".to_owned(),
                    format!(
                        "see `{} events --filter container={}`",
                        context.config.docker,
                        containers.first().map_or(name.as_str(), |one| one.name.as_str())
                    ),
                ),
            }
        }
        Manager::Systemd { unit, user } => {
            return systemd::started_again(name, unit, *user, context.stop);
        }
    };
    started_again(service, &who, &fix)
}

/// Returns the failure of a service that `who` has started again; `fix` says how to prevent that.
pub fn started_again(service: &Service, who: &str, fix: &str) -> Failure {
    let message = format!("{}: {who} started it again as soon as it was stopped", service.name);
    Failure::new(Code::StopFailed, message).hint(format!("{fix}; then run the command again"))
}
