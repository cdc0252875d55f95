//! Looks at services through their managers: which of them are alive, which process belongs to
//! which service, and what really listens on a port.

mod answering;
mod contested;
mod unit;

use super::containers::contained;
use super::evidence::{self, Scene};
use super::ownership::{Ownership, Panes};
use super::supervisor::{Supervisor, supervisor_of};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{
    Containers, Managed, Manager, Pid, Presence, Proof, Running, Service, Trouble, Unproven,
};
use crate::redact::mask;
use crate::world::docker::{Docker, Inspected};
use crate::world::ports::{Listeners, local_port};
use crate::world::process::{self, Process};
use crate::world::systemd;
use crate::world::wait::{Handle, Stop, wait};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};
use unit::{in_unit, with_containers};

/// Longest time that a look waits for processes that are ending.
const ENDING: Duration = Duration::from_secs(1);

/// What the managers and the process table say of services, put together.
pub struct Look<'a> {
    config: &'a Config,
    presences: HashMap<String, Presence>,
    /// The answers of the managers for all services, in the order of the configuration.
    pub managed: Vec<Managed>,
    scene: Scene,
    ownership: Ownership,
    places: HashMap<&'a str, usize>,
    /// The processes that listen on each port. They are looked for once, and only if one has to be
    /// named.
    holders: OnceCell<HashMap<u16, Vec<Pid>>>,
}

/// The questions to the managers of some services in a look. The client of the container engine,
/// which takes longest of all, is running already.
pub struct Managers<'a> {
    services: Vec<&'a Service>,
    engine: Docker<'a>,
    inspected: Option<Box<dyn FnOnce() -> Inspected + Send + 'a>>,
    /// The units that the system's manager is asked about, and those for the user's.
    units: [Vec<&'a str>; 2],
    stop: &'a Stop,
}

impl<'a> Managers<'a> {
    /// Asks the managers of all services.
    pub fn of_all(config: &'a Config, stop: &'a Stop) -> Managers<'a> {
        Managers::ask(config, config.services.iter().collect(), stop)
    }

    /// Begins to ask the managers of these services.
    pub fn ask(config: &'a Config, services: Vec<&'a Service>, stop: &'a Stop) -> Managers<'a> {
        let (mut named, mut projects) = (Vec::new(), BTreeSet::new());
        let mut units = [Vec::new(), Vec::new()];
        for service in &services {
            match &service.manager {
                Manager::Containers(Containers::Named(name)) => named.push(name.as_str()),
                Manager::Containers(Containers::Compose(compose)) => {
                    projects.insert(compose.project.as_str());
                }
                Manager::Systemd { unit, user } => units[usize::from(*user)].push(unit.as_str()),
                Manager::Native(_) => {}
            }
        }
        let projects: Vec<&str> = projects.into_iter().collect();
        let engine = Docker::of(&config.docker, stop);
        let inspected: Option<Box<dyn FnOnce() -> Inspected + Send>> =
            match named.is_empty() && projects.is_empty() {
                true => None,
                false => Some(Box::new(engine.inspect(named, &projects))),
            };
        Managers { services, engine, inspected, units, stop }
    }
}

/// Asks the managers of `services` side by side, and meanwhile `on_gpu` for the processes that hold
/// GPU memory. `known` is what the managers of the other services have said before.
pub fn look<'a>(
    config: &'a Config,
    services: &[&Service],
    known: &[Managed],
    stop: &Stop,
    on_gpu: impl FnOnce() -> HashSet<Pid>,
) -> Look<'a> {
    look_by(Managers::ask(config, services.to_vec(), stop), config, known, on_gpu)
}

/// Looks at services through `managers`, which have been asked already, and meanwhile asks `on_gpu`
/// for the processes that hold GPU memory. `known` is what the managers of the other services have
/// said.
pub fn look_by<'a>(
    managers: Managers,
    config: &'a Config,
    known: &[Managed],
    on_gpu: impl FnOnce() -> HashSet<Pid>,
) -> Look<'a> {
    let Managers { services, engine, inspected, units, stop } = managers;
    thread::scope(|scope| {
        let some = |names: &[&str]| (!names.is_empty()).then_some(scope);
        let [system, user] = &units;
        let inspected = inspected.map(|asked| scope.spawn(|| Ok(asked())));
        let system = some(system).map(|s| s.spawn(systemd::show(system, false, stop)));
        let user = some(user).map(|s| s.spawn(systemd::show(user, true, stop)));
        let has_port = |service: &Service| service.health.as_ref().and_then(local_port).is_some();
        // The driver is asked on a thread of its own; the listeners are read before it is waited
        // for.
        let listeners = config.services.iter().any(has_port).then(Listeners::read);
        let on_gpu = on_gpu();
        let listeners = listeners.unwrap_or_default();
        let mut scene = evidence::look_around(config, &on_gpu, listeners);
        let mut managed = known.to_vec();
        managed.resize_with(config.services.len(), Managed::default);
        if inspected.as_ref().is_some_and(|asked| !asked.is_finished()) {
            // The descriptors that this needs are looked through while the engine is waited for.
            scene.ownership(config, &managed, &[]);
        }
        let inspected: Inspected = answer(inspected)
            .unwrap_or_else(|why| Inspected { trouble: Some(why), ..Inspected::default() });
        let units = [answer(system), answer(user)];

        let names = config.services.iter().enumerate();
        let places = names.map(|(at, service)| (service.name.as_str(), at)).collect();
        let places: HashMap<&str, usize> = places;
        let mut presences = HashMap::new();
        let all = OnceCell::new();
        for service in &services {
            let (presence, now) = match &service.manager {
                Manager::Containers(which) => contained(which, &inspected, config, &engine),
                Manager::Systemd { unit, user } => {
                    let told = || all.get_or_init(|| engine.all());
                    with_containers(in_unit(unit, &units[usize::from(*user)]), &scene.table, told)
                }
                Manager::Native(_) => continue,
            };
            presences.insert(service.name.clone(), presence);
            managed[places[service.name.as_str()]] = now;
        }
        let ownership = scene.ownership(config, &managed, &[]);
        let holders = OnceCell::new();
        let mut look = Look { config, presences, managed, scene, ownership, places, holders };
        for service in services {
            if let Manager::Native(_) = &service.manager {
                let presence = look.native(service, &on_gpu);
                look.presences.insert(service.name.clone(), presence);
            }
        }
        for (kind, what, services) in contested::by_several(config, &look.managed, &units) {
            for at in &services {
                let failure = claimed_by(config, &format!("{kind} {what}"), &services)
                    .hint(format!("two services claim one {kind}: give one of them another"));
                let name = &config.services[*at].name;
                look.presences.insert(name.clone(), Presence::Unknown(failure));
            }
        }
        look
    })
}

/// The processes of a native service at one moment.
pub struct Members {
    pub proven: Vec<process::Id>,
    /// Processes that may be the service's as well, but are not proven to be.
    pub unproven: Vec<Pid>,
    /// What may start the service again, if anything.
    pub supervisor: Option<Supervisor>,
}

/// Returns the processes that a native service has now. The `known` ones and all that come from
/// them count as proven.
pub fn members(
    config: &Config,
    managed: &[Managed],
    service: &str,
    known: &[process::Id],
    on_gpu: &HashSet<Pid>,
) -> Members {
    let at = config.place_of(service).expect("a service of the configuration");
    let mut scene = evidence::look_around(config, on_gpu, Listeners::read());
    let known: Vec<(usize, process::Id)> = known.iter().map(|id| (at, *id)).collect();
    let ownership = scene.ownership(config, managed, &known);
    let table = &scene.table;
    let members = ownership.members(at);
    // Processes that gpuctl has started have no other supervisor.
    let is_found = |pid: &Pid| ownership.of(*pid).is_some_and(|it| it.proof == Proof::Match);
    let found: Vec<Pid> = members.iter().copied().filter(is_found).collect();
    let unproven = ownership.unproven.iter().filter(|(of, _)| *of == at);
    Members {
        proven: members.iter().filter_map(|pid| table.get(*pid)).map(Process::id).collect(),
        unproven: unproven.map(|(_, pid)| *pid).collect(),
        supervisor: supervisor_of(&found, table),
    }
}

/// Returns the failure of services that claim one and the same thing.
fn claimed_by(config: &Config, what: &str, services: &BTreeSet<usize>) -> Failure {
    let names: Vec<&str> = services.iter().map(|at| config.services[*at].name.as_str()).collect();
    Failure::new(Code::Config, format!("{what} belongs to both {}", names.join(" and ")))
}

/// Returns the answer of a manager, or the default if it was not asked.
fn answer<T: Default>(asked: Option<ScopedJoinHandle<Result<T>>>) -> Result<T> {
    let panicked = |_| Err(Failure::new(Code::Internal, "a thread of gpuctl panicked"));
    asked.map_or_else(|| Ok(T::default()), |asked| asked.join().unwrap_or_else(panicked))
}

impl Look<'_> {
    /// Returns the presence of a native service by its processes; `Presence::Unknown` with the
    /// reason if it cannot be determined.
    fn native(&self, service: &Service, on_gpu: &HashSet<Pid>) -> Presence {
        let (table, ownership) = (&self.scene.table, &self.ownership);
        let at = self.places[service.name.as_str()];
        if table.me().is_none() {
            let failure =
                Failure::new(Code::Unavailable, "the process table in /proc cannot be read");
            return Presence::Unknown(failure.hint("mount it: mount -t proc proc /proc"));
        }
        if let Some(dispute) = ownership.disputes.iter().find(|it| it.services.contains(&at)) {
            let what = format!("process {}", dispute.pid);
            return Presence::Unknown(claimed_by(self.config, &what, &dispute.services).hint(
                "two services claim one process: give each a match that finds only its own",
            ));
        }
        let mut members = ownership.members(at);
        if members.is_empty() {
            return self.hidden(service, on_gpu).map_or(Presence::Down(None), Presence::Unknown);
        }
        members.retain(|pid| !process::is_ending(*pid));
        if members.is_empty() {
            return Presence::Down(None);
        }
        let living = || members.iter().filter_map(|pid| table.get(*pid));
        let suspended = living().all(|process| process.is_suspended());
        let port = service.health.as_ref().and_then(local_port);
        let is_deaf = port.is_some_and(|port| !self.scene.listeners.is_taken(port));
        let orphaned = is_deaf && self.scene.was_ready.contains(&at);
        Presence::Up(Running {
            age: living().map(|process| table.age(process)).max(),
            trouble: match (suspended, orphaned) {
                (true, _) => Some(Trouble::Suspended),
                (false, true) => Some(Trouble::Orphaned),
                (false, false) => None,
            },
            pids: members,
            ..Running::default()
        })
    }

    /// Returns why it cannot be determined that nothing of a native service runs, if so: a process
    /// that gpuctl may not inspect listens on the service's port or, if the service has none, is on
    /// the card.
    fn hidden(&self, service: &Service, on_gpu: &HashSet<Pid>) -> Option<Failure> {
        let Scene { table, listeners, .. } = &self.scene;
        let what = match service.health.as_ref().and_then(local_port) {
            Some(port) => {
                let is_seen =
                    || self.publisher(port).is_some() || !self.listening_on(port).is_empty();
                let is_hidden =
                    listeners.is_taken(port) && !is_seen() && self.outlasts_the_ending(port);
                is_hidden.then(|| {
                    format!("a process that may not be inspected is listening on port {port}")
                })
            }
            None => on_gpu
                .iter()
                .find(|pid| table.get(**pid).is_none() && !process::is_ending(**pid))
                .map(|pid| format!("process {pid}, which is on the card, may not be inspected")),
        };
        what.map(|what| {
            Failure::new(
                Code::Permission,
                format!("{what}: gpuctl cannot tell whether it is the service"),
            )
            .hint("run gpuctl as root, or as the user who owns these processes")
        })
    }

    /// Reports whether a port is still taken when the processes that were ending have ended. The
    /// kernel closes their sockets only after it has ceased to show them.
    fn outlasts_the_ending(&self, port: u16) -> bool {
        let deadline = Instant::now() + ENDING;
        let pids = self.scene.table.iter().map(|process| process.pid);
        let ending = pids.filter(|pid| process::is_ending(*pid)).filter_map(Handle::open);
        for process in ending.collect::<Vec<_>>() {
            wait(&[process.fd()], &Stop::never(), deadline);
        }
        Listeners::read().is_taken(port)
    }

    /// Returns what a start may have left in the panes of terminal multiplexers. `since` is the
    /// time of the start, in clock ticks since boot.
    pub fn panes_since(&self, service: &str, since: u64) -> Panes {
        self.scene.panes_since(&self.ownership, self.places[service], since)
    }

    /// Returns the ids of the containers in which a process has started since a time, in clock
    /// ticks since boot.
    pub fn containers_since(&self, since: u64) -> BTreeSet<String> {
        self.scene.containers_since(since)
    }

    /// Reports whether any connection to the service would start it, because systemd listens for
    /// it.
    pub fn starts_when_asked(&self, service: &str) -> bool {
        self.managed[self.places[service]].socket.is_some()
    }

    /// Returns copies of a service, one for each address that it is reached at now.
    pub fn located(&self, service: &Service) -> Vec<Service> {
        service.at(&self.managed[self.places[&*service.name]].addresses())
    }

    /// Returns what a service's manager or its processes say of whether it runs.
    pub fn presence(&self, service: &str) -> Presence {
        self.presences[service].clone()
    }

    /// Returns the processes that may be a service's and are not proven to be.
    pub fn unproven(&self, service: &str) -> Vec<Unproven> {
        let table = &self.scene.table;
        let at = self.places[service];
        let of_service = self.ownership.unproven.iter().filter(|(of, _)| *of == at);
        let shown = |(_, pid): &(usize, Pid)| {
            let age = table.age(table.get(*pid)?);
            let command = mask(&process::arguments(*pid).join(" "));
            let (matches, is_on_card) = self.scene.shows(*pid, at);
            Some(Unproven { pid: *pid, command, matches, is_on_card, age })
        };
        of_service.filter_map(shown).collect()
    }

    /// Returns the name of the service that a process belongs to, if any.
    pub fn service_of(&self, pid: Pid) -> Option<&str> {
        let owner = self.ownership.of(pid).map(|owner| owner.service);
        // The control groups were read only for the processes that showed something.
        let in_group = || {
            let groups = process::control_groups(pid);
            evidence::in_groups(&groups, &self.managed).first().copied()
        };
        owner.or_else(in_group).map(|at| self.config.services[at].name.as_str())
    }
}
