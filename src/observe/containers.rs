//! Derives the presence of a service that consists of one or several containers from what the
//! engine says of them.

use crate::config::Config;
use crate::model::{
    Compose, ComposeFiles, Condition, Container, ContainerNetwork, Containers, Healthy, Managed,
    Manager, Presence, Running, Service, Trouble,
};
use crate::world::compose;
use crate::world::docker::{self, Docker, Inspected};
use crate::world::wait::Stop;
use std::collections::HashSet;

/// Asks the engine for the containers of one service, and returns the service's presence and what
/// they are.
pub fn containers(which: &Containers, config: &Config, stop: &Stop) -> (Presence, Managed) {
    let engine = Docker::of(&config.docker, stop);
    let told = match which {
        Containers::Named(name) => engine.inspect(vec![name], &[])(),
        Containers::Compose(compose) => engine.inspect(vec![], &[&compose.project])(),
    };
    contained(which, &told, config, &engine)
}

/// Returns the presence of a service by its containers, and which containers these are.
pub fn contained(
    which: &Containers,
    told: &Inspected,
    config: &Config,
    engine: &Docker,
) -> (Presence, Managed) {
    let all = &told.containers;
    let own: Vec<Container> = match which {
        Containers::Named(name) => docker::resolve(all, name).into_iter().cloned().collect(),
        Containers::Compose(compose) => {
            all.iter().filter(|one| is_of(one, compose)).cloned().collect()
        }
    };
    let mut managed = Managed { containers: own, ..Managed::default() };
    for one in &mut managed.containers {
        if let ContainerNetwork::Of(other) = &one.setup.network {
            let other = docker::resolve(all, other);
            one.addresses = other.map(|other| other.addresses.clone()).unwrap_or_default();
        }
    }
    let presence = match (which, &told.trouble) {
        // A container that the engine did not report may exist all the same.
        (Containers::Named(_), Some(why)) if managed.containers.is_empty() => {
            return (Presence::Unknown(why.clone()), managed);
        }
        (Containers::Compose(_), Some(why)) => return (Presence::Unknown(why.clone()), managed),
        (Containers::Named(name), None) if managed.containers.is_empty() => {
            Presence::Missing(engine.missing(name))
        }
        (Containers::Named(_), _) => presence_of(&managed.containers, all),
        (Containers::Compose(compose), None) => {
            managed.compose_files = files(compose, all);
            depended_on(&mut managed, compose, all, config);
            match (managed.containers.as_slice(), &managed.compose_files) {
                ([], Some(_)) => {
                    Presence::Down(Some("its containers are not created yet".to_owned()))
                }
                ([], None) => Presence::Missing(compose::not_created(engine, compose)),
                (own, _) => presence_of(own, all),
            }
        }
    };
    (presence, managed)
}

fn is_of(container: &Container, compose: &Compose) -> bool {
    container.setup.compose.as_ref().is_some_and(|labels| compose.has(labels))
}

/// Returns the files of a project: those of the configuration, or else those that its containers
/// name, and in either case the env files that the containers name. `None` if none are known or one
/// of them does not exist.
fn files(compose: &Compose, all: &[Container]) -> Option<ComposeFiles> {
    let mut labels = all.iter().filter_map(|one| one.setup.compose.as_ref());
    let named = labels.find(|labels| labels.project == compose.project);
    let named = named.map(|labels| labels.files.clone());
    let files = match compose.files.is_empty() {
        true => named?,
        false => {
            let env_files = named.map(|named| named.env_files).unwrap_or_default();
            ComposeFiles { files: compose.files.clone(), folder: None, env_files }
        }
    };
    let mut each = files.files.iter().chain(&files.env_files);
    let are_there = !files.files.is_empty() && each.all(|file| file.is_file());
    are_there.then_some(files)
}

/// Fills in what a service's containers depend on, also by way of others: the containers that no
/// configured service has, which are started first and never stopped; the services that have the
/// others; and the compose services that have no container. A container that only has to work to
/// its end counts as one of the first even if a service has it, because such a service could never
/// be ready.
fn depended_on(managed: &mut Managed, compose: &Compose, all: &[Container], config: &Config) {
    let mut needed: Vec<&Container> = managed.containers.iter().collect();
    let own = needed.len();
    let mut works_to_its_end: HashSet<&str> = HashSet::new();
    let mut unmade = Vec::new();
    if needed.is_empty() {
        unmade.push(compose.clone());
    }
    let mut at = 0;
    while let Some(labels) = needed.get(at).map(|one| one.setup.compose.as_ref()) {
        for dependency in labels.into_iter().flat_map(|labels| &labels.depends_on) {
            let service = Some(dependency.service.clone());
            let other = Compose { service, ..compose.clone() };
            let there: Vec<&Container> = all.iter().filter(|one| is_of(one, &other)).collect();
            if dependency.condition == Condition::Completed {
                works_to_its_end.extend(there.iter().map(|one| one.id.as_str()));
            }
            if there.is_empty() && !unmade.contains(&other) {
                unmade.push(other);
            }
            let is_new = |one: &&Container| needed.iter().all(|known| known.id != one.id);
            let new: Vec<&Container> = there.into_iter().filter(is_new).collect();
            needed.extend(new);
        }
        at += 1;
    }
    let owner = |container: &Container| {
        let has = |service: &&Service| match &service.manager {
            Manager::Containers(Containers::Compose(compose)) => is_of(container, compose),
            Manager::Containers(Containers::Named(name)) => {
                docker::resolve(std::slice::from_ref(container), name).is_some()
            }
            _ => false,
        };
        config.services.iter().find(has).filter(|_| !works_to_its_end.contains(&*container.id))
    };
    let (mut containers, mut services) = (Vec::new(), Vec::new());
    for container in needed.into_iter().skip(own) {
        match owner(container) {
            None => containers.push(container.clone()),
            Some(service) if services.contains(&service.name) => {}
            Some(service) => services.push(service.name.clone()),
        }
    }
    (managed.dependencies, managed.needs, managed.unmade) = (containers, services, unmade);
}

/// Returns the presence of several containers taken together. `all` includes those that may wait
/// for one of them to complete its work.
fn presence_of(own: &[Container], all: &[Container]) -> Presence {
    if let [only] = own {
        return only.presence.clone();
    }
    let up: Vec<(&Container, &Running)> = own
        .iter()
        .filter_map(|one| match &one.presence {
            Presence::Up(running) => Some((one, running)),
            _ => None,
        })
        .collect();
    let find = |is_so: fn(&Presence) -> bool| {
        own.iter().map(|one| &one.presence).find(|presence| is_so(presence)).cloned()
    };
    if up.is_empty() {
        return find(|presence| matches!(presence, Presence::Stopping(_)))
            .or_else(|| find(|presence| matches!(presence, Presence::Dead(_))))
            .or_else(|| find(|presence| matches!(presence, Presence::Down(Some(_)))))
            .unwrap_or(Presence::Down(None));
    }
    let about = |container: &Container, text: &str| format!("{}: {text}", container.name);
    let missing: Vec<String> = own
        .iter()
        .filter(|one| !one.is_up() && !has_done_its_work(one, all))
        .map(|one| match &one.presence {
            Presence::Down(Some(how)) => about(one, how),
            _ => about(one, "is not running"),
        })
        .collect();
    let incomplete = (!missing.is_empty()).then(|| Trouble::Incomplete(missing.join(", ")));
    let trouble = up.iter().find_map(|(one, running)| match running.trouble.clone()? {
        Trouble::CrashLoop(how) => Some(Trouble::CrashLoop(about(one, &how))),
        other => Some(other),
    });
    let said = || up.iter().filter_map(|(one, running)| Some((one, running.own_health.clone()?)));
    let unwell = said().find_map(|(one, health)| match health {
        Healthy::Yes => None,
        Healthy::No(why) => Some(Healthy::No(about(one, &why))),
        Healthy::Silent(why) => Some(Healthy::Silent(about(one, &why))),
    });
    Presence::Up(Running {
        pids: up.iter().flat_map(|(_, running)| running.pids.clone()).collect(),
        age: up.iter().filter_map(|(_, running)| running.age).min(),
        restarts: up.iter().map(|(_, running)| running.restarts).sum(),
        trouble: trouble.or(incomplete),
        own_health: unwell.or_else(|| said().next().map(|(_, health)| health)),
        published: up.iter().flat_map(|(_, running)| running.published.clone()).collect(),
    })
}

/// Reports whether a container has ended with success and others of its project wait for just that.
fn has_done_its_work(container: &Container, all: &[Container]) -> bool {
    let Some(own) = &container.setup.compose else { return false };
    let others = all.iter().filter_map(|one| one.setup.compose.as_ref());
    container.exit_code == Some(0)
        && others.filter(|other| other.project == own.project).any(|other| {
            let mut waits = other.depends_on.iter();
            waits.any(|it| it.service == own.service && it.condition == Condition::Completed)
        })
}
