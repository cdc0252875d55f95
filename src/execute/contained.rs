//! Starts and stops services of containers, in the order in which they depend on each other, and
//! many services in few calls of the client.

mod order;

pub use order::in_order;

use super::{Context, LONGEST, SHORTEST};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{
    Compose, ComposeFiles, Condition, Container, Containers, Healthy, Managed, Manager, Presence,
    Running, Service, Trouble,
};
use crate::observe::containers;
use crate::plan::{Plan, StartHow};
use crate::world::compose;
use crate::world::docker::{Docker, resolve};
use crate::world::wait::{Stop, wait};
use order::{awaited, has_completed, levels, service_of};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Returns how long a service's containers may take to end: their own time counts if it is longer
/// than the service's.
pub fn stop_limit(service: &Service, managed: &Managed) -> Duration {
    let own = managed.containers.iter().filter_map(|container| container.setup.stop_timeout);
    own.fold(service.stop_timeout, Duration::max)
}

/// Reports whether a service's containers can be started in one call, together with those of
/// others.
pub fn is_startable_at_once(managed: &Managed) -> bool {
    let is_simple = |container: &Container| match &container.presence {
        Presence::Up(running) => running.trouble != Some(Trouble::Paused),
        _ => true,
    };
    managed.dependencies.is_empty()
        && is_stoppable_at_once(managed)
        && managed.containers.iter().all(is_simple)
}

/// Reports whether a service's containers can be stopped in one call.
pub fn is_stoppable_at_once(managed: &Managed) -> bool {
    levels(managed.containers.iter().collect()).len() == 1
}

/// Returns the reference to a container that the engine is given: its name, as the configuration
/// says it, or, if compose has made the container, its id, which no other can come to have.
fn reference(container: &Container) -> &str {
    match container.setup.compose {
        Some(_) => &container.id,
        None => &container.name,
    }
}

/// Stops services, and returns for each whether it had to be killed.
pub fn stop(services: &[&Service], force: bool, context: &Context) -> Vec<Result<bool>> {
    let managed: Vec<&Managed> =
        services.iter().map(|service| context.before.managed(&service.name)).collect();
    let stopped = stop_containers(services, &managed, force, context);
    let each = services.iter().zip(stopped);
    each.map(|(service, done)| match done {
        Err(failure) if failure.code == Code::NotFound => stop_again(service, force, context),
        done => done,
    })
    .collect()
}

/// Stops containers that compose has made anew since the plan was made, and returns whether there
/// were any.
pub fn stop_made_anew(service: &Service, context: &Context) -> Result<bool> {
    let Manager::Containers(which @ Containers::Compose(_)) = &service.manager else {
        return Ok(false);
    };
    let known = &context.before.managed(&service.name).containers;
    let (_, managed) = containers(which, context.config, context.stop);
    let is_new = |one: &Container| one.is_up() && known.iter().all(|known| known.id != one.id);
    if !managed.containers.iter().any(is_new) {
        return Ok(false);
    }
    stop_again(service, false, context).map(|_| true)
}

/// Stops what has taken the place of containers that are gone, because compose makes them anew.
/// Returns whether it had to be killed.
fn stop_again(service: &Service, force: bool, context: &Context) -> Result<bool> {
    let Manager::Containers(which @ Containers::Compose(_)) = &service.manager else {
        // The container was removed in the meantime, which is as good as stopped.
        return Ok(false);
    };
    let (presence, managed) = containers(which, context.config, context.stop);
    match presence {
        Presence::Unknown(failure) => Err(failure),
        _ => match stop_containers(&[service], &[&managed], force, context).remove(0) {
            Err(failure) if failure.code == Code::NotFound => Ok(false),
            done => done,
        },
    }
}

/// Ends the containers that a unit has run and that did not end with their client.
pub fn end_left_by_unit(service: &Service, force: bool, context: &Context) -> Result<()> {
    let managed = context.before.managed(&service.name);
    let ids: Vec<&str> = managed.containers.iter().map(|one| one.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let engine = context.engine(context.stop);
    let ended: Vec<Result<()>> = match force {
        true => engine.kill(&ids),
        false => {
            let stopped = engine.stop(&ids, stop_limit(service, managed));
            stopped.into_iter().map(|done| done.map(|_| ())).collect()
        }
    };
    // A container that was made to be removed at its end is gone.
    let is_gone = |done: &Result<()>| matches!(done, Err(it) if it.code == Code::NotFound);
    ended.into_iter().filter(|done| !is_gone(done)).collect()
}

/// Stops the containers of services, those that others depend on last. Returns for each service
/// whether one of its containers had to be killed.
fn stop_containers(
    services: &[&Service],
    managed: &[&Managed],
    force: bool,
    context: &Context,
) -> Vec<Result<bool>> {
    let engine = context.engine(context.stop);
    let mut results: Vec<Result<bool>> = services.iter().map(|_| Ok(false)).collect();
    let limit = services.iter().zip(managed).map(|(service, of)| stop_limit(service, of)).max();
    let runs = |one: &&Container| !matches!(one.presence, Presence::Down(_) | Presence::Dead(_));
    let owner =
        |id: &str| managed.iter().position(|of| of.containers.iter().any(|one| one.id == id));
    let all = managed.iter().flat_map(|of| &of.containers).collect();
    for level in levels(all).into_iter().rev() {
        let level: Vec<&Container> = level.into_iter().filter(runs).collect();
        if level.is_empty() {
            continue;
        }
        let references: Vec<&str> = level.iter().map(|one| reference(one)).collect();
        let stopped = match force {
            true => engine.kill(&references).into_iter().map(|done| done.map(|()| false)).collect(),
            false => engine.stop(&references, limit.unwrap_or_default()),
        };
        for (container, stopped) in level.iter().zip(stopped) {
            let Some(result) = owner(&container.id).map(|at| &mut results[at]) else { continue };
            match stopped {
                Err(failure) => *result = result.clone().and(Err(failure)),
                Ok(killed) => *result = result.clone().map(|before| before || killed),
            }
        }
    }
    results
}

/// Starts services, and returns the containers that each is made of.
pub fn start(services: &[&Service], stop: &Stop, context: &Context) -> Vec<Result<Managed>> {
    let started = start_containers(services, stop, context);
    let each = services.iter().zip(started);
    each.map(|(service, done)| match (done, &service.manager) {
        // Compose has made the containers anew, so they are looked for again.
        (Err(gone), Manager::Containers(which @ Containers::Compose(of_service)))
            if gone.code == Code::NotFound =>
        {
            match containers(which, context.config, stop) {
                (Presence::Unknown(failure), _) => Err(failure),
                (_, managed) if managed.containers.is_empty() => {
                    Err(compose::not_created(&context.engine(stop), of_service))
                }
                (_, managed) => start_in_order(service, managed, stop, context),
            }
        }
        (done, _) => done,
    })
    .collect()
}

fn start_containers(services: &[&Service], stop: &Stop, context: &Context) -> Vec<Result<Managed>> {
    let managed = |service: &&Service| context.before.managed(&service.name).clone();
    if let [service] = services {
        return vec![start_in_order(service, managed(service), stop, context)];
    }
    let managed: Vec<Managed> = services.iter().map(managed).collect();
    let all: Vec<&Container> = managed.iter().flat_map(|of| &of.containers).collect();
    let references: Vec<&str> = all.iter().map(|one| reference(one)).collect();
    let limit = services.iter().map(|service| service.start_timeout).max().unwrap_or_default();
    let started = context.engine(stop).start(&references, limit);
    let failures: HashMap<&str, Failure> = all
        .iter()
        .zip(started)
        .filter_map(|(container, done)| Some((container.id.as_str(), done.err()?)))
        .collect();
    let result =
        |of: &Managed| match of.containers.iter().find_map(|one| failures.get(one.id.as_str())) {
            Some(failure) => Err(failure.clone()),
            None => Ok(of.clone()),
        };
    managed.iter().map(result).collect()
}

/// Makes the containers that compose has yet to make for what a plan starts, and returns whether
/// there were any: what they depend on is known only then.
pub fn create_missing(plan: &Plan, context: &Context) -> Result<bool> {
    let mut projects: Vec<(&ComposeFiles, Vec<&Compose>, Duration)> = Vec::new();
    for start in plan.start.iter().filter(|start| start.how == StartHow::Start) {
        let (service, managed) =
            (context.service(&start.service), context.before.managed(&start.service));
        let (Manager::Containers(Containers::Compose(compose)), [_, ..], Some(files)) =
            (&service.manager, managed.unmade.as_slice(), &managed.compose_files)
        else {
            continue;
        };
        let limit = service.start_timeout;
        match projects.iter_mut().find(|(of, all, _)| {
            *of == files && all.iter().all(|other| other.project == compose.project)
        }) {
            Some((_, all, longest)) => {
                all.push(compose);
                *longest = limit.max(*longest);
            }
            None => projects.push((files, vec![compose], limit)),
        }
    }
    let engine = context.engine(context.stop);
    for (files, services, limit) in &projects {
        let told: Vec<String> = services.iter().map(|compose| compose.told()).collect();
        // Compose may have to fetch an image, which takes time.
        context.progress.line(&format!("creating the containers of {}", told.join(" and ")));
        compose::create(&engine, services, files, *limit)?;
    }
    Ok(!projects.is_empty())
}

fn start_in_order(
    service: &Service,
    managed: Managed,
    stop: &Stop,
    context: &Context,
) -> Result<Managed> {
    let engine = context.engine(stop);
    let deadline = Instant::now() + service.start_timeout;
    let all: Vec<&Container> = managed.dependencies.iter().chain(&managed.containers).collect();
    for level in levels(all.clone()) {
        await_dependencies(&level, &all, &engine, stop, deadline)?;
        let is_paused = |one: &&Container| {
            matches!(&one.presence, Presence::Up(Running { trouble: Some(Trouble::Paused), .. }))
        };
        let (paused, others): (Vec<&Container>, Vec<&Container>) =
            level.into_iter().partition(is_paused);
        // A container that was up when it was looked at may have been stopped for this start, so it
        // is started as well.
        let has_to = |one: &&Container| !has_completed(one, &all);
        let mut others: Vec<&str> = others.into_iter().filter(has_to).map(reference).collect();
        let paused: Vec<&str> = paused.into_iter().map(reference).collect();
        if !paused.is_empty() {
            let unpaused = engine.unpause(&paused);
            others.extend(
                paused.iter().zip(unpaused).filter(|(_, done)| done.is_err()).map(|it| it.0),
            );
        }
        if !others.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            engine.start(&others, left).into_iter().collect::<Result<()>>()?;
        }
    }
    Ok(managed)
}

/// Waits until what these containers depend on is as far as they want it; fails if it cannot get
/// there or is not there by the deadline.
fn await_dependencies(
    level: &[&Container],
    all: &[&Container],
    engine: &Docker,
    stop: &Stop,
    deadline: Instant,
) -> Result<()> {
    let mut pause = SHORTEST;
    let mut awaited: Vec<(&Container, Condition)> = level
        .iter()
        .flat_map(|one| awaited(one))
        .filter(|(_, condition)| *condition != Condition::Started)
        .flat_map(|(name, condition)| {
            let meant = all.iter().filter(move |other| service_of(other) == name);
            meant.map(move |other| (*other, condition))
        })
        .collect();
    while !awaited.is_empty() {
        let ids: Vec<&str> = awaited.iter().map(|(one, _)| one.id.as_str()).collect();
        let told = engine.inspect(ids, &[])();
        let mut failure = None;
        awaited.retain(|(one, condition)| match resolve(&told.containers, &one.id) {
            Some(now) => match is_as_far(now, *condition) {
                Ok(is_met) => !is_met,
                Err(why) => {
                    failure = Some(why);
                    true
                }
            },
            None => {
                let is_gone = told.trouble.is_none();
                failure = is_gone.then(|| engine.missing(&one.name)).or(failure.take());
                true
            }
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        let Some((first, _)) = awaited.first() else { break };
        if Instant::now() >= deadline {
            let why = format!("{}, which it depends on, is not ready in time", first.name);
            return Err(told.trouble.unwrap_or_else(|| Failure::new(Code::StartFailed, why)));
        }
        wait(&[], stop, (Instant::now() + pause).min(deadline));
        stop.check()?;
        pause = (pause * 2).min(LONGEST);
    }
    Ok(())
}

fn is_as_far(container: &Container, condition: Condition) -> Result<bool> {
    let failed = |how: &str| {
        let message = format!("{}, which it depends on, {how}", container.name);
        Err(Failure::new(Code::StartFailed, message))
    };
    match (condition, &container.presence) {
        (Condition::Completed, Presence::Down(_)) => match container.exit_code {
            Some(0) => Ok(true),
            Some(code) => failed(&format!("exited with code {code}")),
            None => Ok(false),
        },
        (Condition::Healthy, Presence::Down(how)) if container.exit_code.is_some() => {
            failed(how.as_deref().unwrap_or("has ended"))
        }
        // A container without a check of its own counts as healthy.
        (Condition::Healthy, Presence::Up(running)) => {
            Ok(matches!(running.own_health, None | Some(Healthy::Yes)))
        }
        (Condition::Started, _) => Ok(true),
        _ => Ok(false),
    }
}
