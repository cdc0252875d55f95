//! Finds what really answers on a service's port: the service itself, another one, or a stranger.

use super::Look;
use crate::model::{AnsweredBy, Health, Healthy, Pid, Presence, Service};
use crate::observe::evidence::{Scene, is_contained};
use crate::world::docker;
use crate::world::ports::local_port;
use crate::world::process::{self, Process};

impl Look<'_> {
    /// Returns what answers a service's health check instead of the service, or `None` if the
    /// service itself does, as far as gpuctl can tell.
    pub fn answered_by(&self, service: &Service, port: Option<u16>) -> Option<AnsweredBy> {
        let own = match &self.presences[&service.name] {
            Presence::Up(running) => running,
            Presence::Down(_) | Presence::Dead(_) | Presence::Missing(_) => {
                return Some(self.holder_of(port));
            }
            Presence::Unknown(_) | Presence::Stopping(_) => return None,
        };
        let port = port?;
        let is_own = own.published.contains_key(&port)
            || own.pids.iter().any(|pid| self.scene.listens(*pid, port))
            || self.is_forwarded(port, &own.pids);
        if is_own || self.listening_on(port).is_empty() {
            return None;
        }
        let holder = self.holder_of(Some(port));
        (holder.service.as_ref() != Some(&service.name)).then_some(holder)
    }

    /// Corrects what a service's health check has found by whether its server is seen to listen. A
    /// server that gives no answer counts as silent only if it listens, and in front of a container
    /// Docker's proxy accepts connections even before the server does.
    pub fn heard(&self, healthy: Healthy, service: &Service) -> Healthy {
        let Some(check) = &service.health else { return healthy };
        let is_deaf = || local_port(check).is_some_and(|port| !self.scene.listeners.is_taken(port));
        match (healthy, check) {
            (Healthy::Silent(why), _) if is_deaf() => Healthy::No(why),
            (Healthy::Yes, Health::Tcp { .. }) if self.listens_inside(service) == Some(false) => {
                Healthy::No("nobody listens in the container yet".to_owned())
            }
            (healthy, _) => healthy,
        }
    }

    /// Reports whether a server listens in a container on the port that is published for its health
    /// check; `None` if that cannot be seen.
    fn listens_inside(&self, service: &Service) -> Option<bool> {
        let Presence::Up(running) = self.presences.get(&service.name)? else { return None };
        let port = running.published.get(&local_port(service.health.as_ref()?)?)?;
        process::listens_in_network(*running.pids.first()?, *port)
    }

    /// Reports whether the process that listens on a port forwards it to the network of one of
    /// these processes. A container that uses another's network publishes nothing itself.
    fn is_forwarded(&self, port: u16, to: &[Pid]) -> bool {
        let addresses = self.listening_on(port).iter().filter_map(|pid| docker::forwards_to(*pid));
        addresses
            .into_iter()
            .any(|address| to.iter().any(|pid| process::has_address(*pid, address)))
    }

    pub(super) fn listening_on(&self, port: u16) -> &[Pid] {
        let Scene { table, listeners, .. } = &self.scene;
        let holders = self.holders.get_or_init(|| listeners.holders(table));
        holders.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Describes what listens on a port: a service, if one can be made out, or else a process.
    fn holder_of(&self, port: Option<u16>) -> AnsweredBy {
        let Some(port) = port else {
            return AnsweredBy {
                who: "something else answers its health URL".to_owned(),
                service: None,
                pid: None,
            };
        };
        let holders = self.listening_on(port);
        let service = self.publisher(port).or_else(|| {
            holders.iter().find_map(|holder| self.service_of(*holder)).map(str::to_owned)
        });
        let holder = holders.first().and_then(|pid| self.scene.table.get(*pid));
        let who = match (&service, holder) {
            (Some(service), _) => format!("service {service}"),
            (None, Some(process)) => format!("process {} ({})", process.pid, process.name),
            (None, None) => "something else".to_owned(),
        };
        // A process in a container can never be adopted by a native service.
        let is_containers = |it: &Process| is_contained(it, &process::control_groups(it.pid));
        let nobodys = holder.filter(|process| service.is_none() && !is_containers(process));
        let pid = nobodys.map(|process| process.pid);
        AnsweredBy { who: format!("{who} answers on port {port}"), service, pid }
    }

    /// Returns the name of the service whose container publishes a port, if any.
    pub(super) fn publisher(&self, port: u16) -> Option<String> {
        let publishes = |(_, presence): &(&String, &Presence)| match presence {
            Presence::Up(running) => running.published.contains_key(&port),
            _ => false,
        };
        self.presences.iter().find(publishes).map(|(name, _)| name.clone())
    }
}
