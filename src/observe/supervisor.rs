//! Finds what may start a service again as soon as it is stopped: a supervisor, a loop in a script,
//! a unit.

use crate::model::{Container, Pid};
use crate::redact::mask;
use crate::world::docker;
use crate::world::process::{self, Id, Process, ProcessTable};
use std::collections::HashSet;
use std::fmt;

/// Something that looks after a process or container that gpuctl has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supervisor {
    Parent { id: Id, command: String },
    Unit(String),
}

impl Supervisor {
    /// Reports whether the supervisor may still act, which a unit always may.
    pub fn is_there(&self) -> bool {
        match self {
            Supervisor::Parent { id, .. } => id.is_alive(),
            Supervisor::Unit(_) => true,
        }
    }

    /// Returns what the user can do to keep the supervisor from acting.
    pub fn remedy(&self) -> String {
        match self {
            Supervisor::Parent { id, .. } => format!("stop process {} first", id.pid),
            Supervisor::Unit(unit) => format!(
                "stop it with `systemctl stop {unit}`, and let gpuctl do so: type = \"systemd\", unit = \"{unit}\""
            ),
        }
    }
}

impl fmt::Display for Supervisor {
    /// Writes the supervisor as in "process 12 (bash loop.sh)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Supervisor::Parent { id, command } => write!(f, "process {} ({command})", id.pid),
            Supervisor::Unit(unit) => write!(f, "the unit {unit}"),
        }
    }
}

/// Returns what looks after these processes from outside of them, or `None` if nothing does.
pub fn supervisor_of(members: &[Pid], table: &ProcessTable) -> Option<Supervisor> {
    let own: HashSet<&Pid> = members.iter().collect();
    let callers = table.callers();
    members.iter().filter_map(|pid| table.get(*pid)).find_map(|process| {
        match table.get(process.parent) {
            Some(parent) if own.contains(&parent.pid) => None,
            Some(parent) if parent.pid != 1 && !callers.contains(&parent.pid) => {
                supervised_by(parent)
            }
            _ => unit_of(process.pid).map(Supervisor::Unit),
        }
    })
}

/// Returns what looks after one of these containers: the unit that podman names, or the unit or
/// process that runs a client which stays until the container ends.
pub fn supervisor_of_containers(containers: &[Container]) -> Option<Supervisor> {
    if let Some(unit) = containers.iter().find_map(|one| one.setup.unit.clone()) {
        return Some(Supervisor::Unit(unit));
    }
    let table = ProcessTable::read();
    let runs = |it: &&Process| containers.iter().any(|one| docker::is_run_by(one, it));
    let unit = |client: Pid| {
        // The first process started the client, directly or through a shell that ends with it.
        let is_by_init = table.ancestors(client).take(2).any(|pid| pid == 1);
        unit_of(client).filter(|_| is_by_init).map(Supervisor::Unit)
    };
    let mut clients = table.iter().filter(runs).map(|client| client.pid);
    clients.find_map(|client| unit(client).or_else(|| supervisor_of(&[client], &table)))
}

/// Returns what has started a process and may do so again, or `None` if that cannot be determined.
pub fn started_by(pid: Pid) -> Option<Supervisor> {
    supervisor_of(&[pid], &ProcessTable::read())
}

fn supervised_by(parent: &Process) -> Option<Supervisor> {
    let words = process::arguments(parent.pid);
    // Processes that adopt orphans, and shells at which somebody sits, start nothing of themselves.
    let is_idle = matches!(parent.name.as_str(), "systemd" | "gpuctl")
        || super::ownership::is_multiplexer(parent)
        || words.len() < 2
        || words.first().is_some_and(|name| name.starts_with('-'));
    let command = mask(&words.join(" "));
    (!is_idle).then(|| Supervisor::Parent { id: parent.id(), command })
}

/// Returns the unit whose control group a process is in, unless gpuctl is in that one too.
fn unit_of(pid: Pid) -> Option<String> {
    let unit = |pid| process::unit_of(&process::control_groups(pid)).map(str::to_owned);
    unit(pid).filter(|found| Some(found) != unit(std::process::id() as Pid).as_ref())
}
