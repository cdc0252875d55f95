//! Finds what a unit of systemd consists of: the processes in its control group, and the containers
//! that these run.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Managed, Pid, Presence, Running, Trouble};
use crate::world::clock::SinceBoot;
use crate::world::docker::{self, Inspected};
use crate::world::group;
use crate::world::process::{self, Process, ProcessTable};
use crate::world::systemd::UnitView;
use std::collections::HashMap;

/// Returns the presence of a unit by what systemd says of it, and where its processes are.
pub fn in_unit(unit: &str, asked: &Result<HashMap<String, UnitView>>) -> (Presence, Managed) {
    let nothing = || {
        Presence::Unknown(Failure::new(
            Code::Unavailable,
            format!("systemctl show said nothing about {unit}"),
        ))
    };
    match asked.as_ref().map(|shown| shown.get(unit)) {
        Err(failure) => (Presence::Unknown(failure.clone()), Managed::default()),
        Ok(None) => (nothing(), Managed::default()),
        Ok(Some(UnitView { control_group, presence, socket, .. })) => {
            let living = || -> Vec<Pid> {
                let group = control_group.as_deref();
                let ids = group.map_or_else(Vec::new, group::in_control_group);
                ids.iter().map(|id| id.pid).collect()
            };
            let presence = match presence {
                // The unit has ended and left processes behind: KillMode=process, or a stop that
                // failed.
                Presence::Down(_) | Presence::Missing(_) if !living().is_empty() => {
                    let trouble = Some(Trouble::Orphaned);
                    Presence::Up(Running { pids: living(), trouble, ..Running::default() })
                }
                // The unit has no main process: it is a slice, or its command has left a server
                // behind.
                Presence::Up(running) if running.pids.is_empty() => {
                    Presence::Up(Running { pids: living(), ..running.clone() })
                }
                presence => presence.clone(),
            };
            let is_down = matches!(presence, Presence::Down(_));
            let socket = socket.clone().filter(|_| is_down);
            let control_groups = control_group.clone().into_iter().collect();
            (presence, Managed { control_groups, socket, ..Managed::default() })
        }
    }
}

/// Adds the containers that a unit runs through clients of the engine in its control group which
/// stay for as long as the container runs. A container that was there before the client, or that
/// another engine's client means, is not counted.
pub fn with_containers<'a>(
    (presence, mut managed): (Presence, Managed),
    table: &ProcessTable,
    told: impl Fn() -> &'a Inspected,
) -> (Presence, Managed) {
    let Presence::Up(mut running) = presence else { return (presence, managed) };
    let is_inside = |client: &&Process| {
        let groups = process::control_groups(client.pid);
        let is_own = running.pids.contains(&client.pid);
        is_own || managed.control_groups.iter().any(|path| process::is_within(&groups, path))
    };
    let engine_of = |pid: Pid| process::variables(pid, docker::ENGINE_VARIABLES);
    let own = engine_of(std::process::id() as Pid);
    let clients = table.iter().filter(|it| docker::is_client(it)).filter(is_inside);
    let clients: Vec<&Process> = clients.filter(|client| engine_of(client.pid) == own).collect();
    if clients.is_empty() {
        return (Presence::Up(running), managed);
    }
    let Inspected { containers, trouble } = told();
    if let Some(why) = trouble {
        return (Presence::Unknown(why.clone()), managed);
    }
    let now = SinceBoot::now();
    for container in containers {
        let Presence::Up(Running { pids, age: Some(age), published, .. }) = &container.presence
        else {
            continue;
        };
        let is_its = |client: &&Process| {
            now.since(client.started) >= *age && docker::is_run_by(container, client)
        };
        if clients.iter().any(is_its) {
            running.pids.extend(pids);
            running.published.extend(published);
            managed.containers.push(container.clone());
        }
    }
    (Presence::Up(running), managed)
}
