//! A look at services through their managers: who is alive, which process belongs to whom, and
//! who really listens on a port.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{AnsweredBy, Manager, Pid, Presence, Service, Unproven};
use crate::world::docker::{self, Inspected};
use crate::world::native::{self, Evidence, Processes};
use crate::world::ports::{Listeners, local_port};
use crate::world::process::{self, Table};
use crate::world::systemd::{self, Shown};
use crate::world::wait::Stop;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

/// What the managers said, put together.
pub struct Look {
    presences: HashMap<String, Presence>,
    unproven: HashMap<String, Unproven>,
    /// Native services' processes.
    members: HashMap<Pid, String>,
    containers: Vec<(String, String)>,
    control_groups: Vec<(String, String)>,
    table: Table,
    listeners: Listeners,
    /// Who listens on which port: looked for once, and only where somebody has to be named.
    holders: OnceCell<HashMap<u16, Vec<Pid>>>,
}

/// Asks the managers of these services side by side, and meanwhile `on_gpu` for the processes
/// that hold GPU memory.
pub fn look(
    services: &[&Service],
    config: Option<&Path>,
    stop: &Stop,
    on_gpu: impl FnOnce() -> HashSet<Pid>,
) -> Look {
    let mut containers = Vec::new();
    let mut units = [Vec::new(), Vec::new()];
    let mut natives = Vec::new();
    for service in services {
        match &service.manager {
            Manager::Docker { container } => containers.push(container.as_str()),
            Manager::Systemd { unit, user } => units[usize::from(*user)].push(unit.as_str()),
            Manager::Native(native) => natives.push((*service, native)),
        }
    }
    thread::scope(|scope| {
        let some = |names: &[&str]| (!names.is_empty()).then_some(scope);
        let [system, user] = &units;
        let inspected = some(&containers).map(|s| s.spawn(docker::inspect(&containers, stop)));
        let system = some(system).map(|s| s.spawn(systemd::show(system, false, stop)));
        let user = some(user).map(|s| s.spawn(systemd::show(user, true, stop)));
        let has_port = |service: &&Service| service.health.as_ref().and_then(local_port).is_some();
        let listeners = services.iter().any(has_port).then(|| scope.spawn(Listeners::read));
        let on_gpu = on_gpu();
        let table = Table::read();
        let listeners = listeners.and_then(|asked| asked.join().ok()).unwrap_or_default();
        let evidence = Evidence {
            on_gpu: &on_gpu,
            listens: &|service, pid| {
                let port = service.health.as_ref().and_then(local_port);
                port.is_some_and(|port| listeners.held_by(port, pid))
            },
        };
        let found = native::find(&natives, config, &table, &evidence);
        let inspected = answer(inspected);
        let units = [answer(system), answer(user)];
        let mut look = Look {
            presences: HashMap::new(),
            unproven: HashMap::new(),
            members: HashMap::new(),
            containers: Vec::new(),
            control_groups: Vec::new(),
            table,
            listeners,
            holders: OnceCell::new(),
        };
        for service in services {
            let presence = match &service.manager {
                Manager::Docker { container } => {
                    look.container(&service.name, container, &inspected)
                }
                Manager::Systemd { unit, user } => {
                    look.unit(&service.name, unit, &units[usize::from(*user)])
                }
                Manager::Native(_) => look.native(&service.name, &found[&service.name]),
            };
            look.presences.insert(service.name.clone(), presence);
        }
        look
    })
}

/// Of a manager that was asked, if it was.
fn answer<T: Default>(asked: Option<ScopedJoinHandle<Result<T>>>) -> Result<T> {
    let panicked = |_| Err(Failure::new(Code::Internal, "a thread of gpuctl panicked"));
    asked.map_or_else(|| Ok(T::default()), |asked| asked.join().unwrap_or_else(panicked))
}

impl Look {
    fn container(
        &mut self,
        service: &str,
        container: &str,
        asked: &Result<HashMap<String, Inspected>>,
    ) -> Presence {
        match asked {
            Err(failure) => Presence::Unknown(failure.clone()),
            Ok(inspected) => {
                let Inspected { id, presence } = &inspected[container];
                if !id.is_empty() {
                    self.containers.push((id.clone(), service.to_owned()));
                }
                presence.clone()
            }
        }
    }

    fn unit(
        &mut self,
        service: &str,
        unit: &str,
        asked: &Result<HashMap<String, Shown>>,
    ) -> Presence {
        match asked {
            Err(failure) => Presence::Unknown(failure.clone()),
            Ok(shown) => match shown.get(unit) {
                Some(Shown { control_group, presence }) => {
                    let group =
                        control_group.iter().map(|group| (group.clone(), service.to_owned()));
                    self.control_groups.extend(group);
                    presence.clone()
                }
                None => Presence::Unknown(Failure::new(
                    Code::Unavailable,
                    format!("systemctl show said nothing of {unit}"),
                )),
            },
        }
    }

    fn native(&mut self, service: &str, processes: &Processes) -> Presence {
        let Processes { members, unproven } = processes;
        self.unproven.insert(service.to_owned(), unproven.clone());
        self.members.extend(members.iter().map(|pid| (*pid, service.to_owned())));
        native::presence(members, &self.table)
    }

    pub fn presence(&self, service: &str) -> Presence {
        self.presences[service].clone()
    }

    pub fn unproven(&self, service: &str) -> Unproven {
        self.unproven.get(service).cloned().unwrap_or_default()
    }

    /// The service that a process belongs to: by its native service's processes, its container
    /// or its unit.
    pub fn service_of(&self, pid: Pid) -> Option<&str> {
        if let Some(service) = self.members.get(&pid) {
            return Some(service);
        }
        let groups = process::control_groups(pid);
        let in_container = self.containers.iter().find(|(id, _)| groups.contains(id.as_str()));
        let in_unit =
            || self.control_groups.iter().find(|(group, _)| process::is_within(&groups, group));
        in_container.or_else(in_unit).map(|(_, service)| service.as_str())
    }

    /// Who answers a service's health check instead of the service; `None` when it is the service
    /// itself, as far as can be told.
    pub fn answered_by(&self, service: &Service, port: Option<u16>) -> Option<AnsweredBy> {
        let own = match &self.presences[&service.name] {
            Presence::Up(running) => running,
            Presence::Down(_) | Presence::Dead(_) | Presence::Missing(_) => {
                return Some(self.holder_of(port));
            }
            Presence::Unknown(_) | Presence::Stopping(_) => return None,
        };
        let port = port?;
        let is_own = own.published.contains(&port)
            || own.pids.iter().any(|pid| self.listeners.held_by(port, *pid));
        if is_own || self.listening_on(port).is_empty() {
            return None;
        }
        let holder = self.holder_of(Some(port));
        (holder.service.as_ref() != Some(&service.name)).then_some(holder)
    }

    fn listening_on(&self, port: u16) -> &[Pid] {
        let holders = self.holders.get_or_init(|| self.listeners.holders(&self.table));
        holders.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Who listens on a port: a service, as far as one can be made out, else a process.
    fn holder_of(&self, port: Option<u16>) -> AnsweredBy {
        let Some(port) = port else {
            return AnsweredBy {
                who: "something else answers its health URL".to_owned(),
                service: None,
            };
        };
        let publishes = |(_, presence): &(&String, &Presence)| match presence {
            Presence::Up(running) => running.published.contains(&port),
            _ => false,
        };
        let holders = self.listening_on(port);
        let service =
            self.presences.iter().find(publishes).map(|(name, _)| name.clone()).or_else(|| {
                holders.iter().find_map(|holder| self.service_of(*holder)).map(str::to_owned)
            });
        let holder = holders.first().and_then(|pid| self.table.get(*pid));
        let who = match (&service, holder) {
            (Some(service), _) => format!("service {service}"),
            (None, Some(process)) => format!("process {} ({})", process.pid, process.name),
            (None, None) => "something else".to_owned(),
        };
        AnsweredBy { who: format!("{who} answers on port {port}"), service }
    }
}
