//! Decides which processes may be tied to a service by hand. What is known of a process is gathered
//! in one place, and objections are decided from that alone.

use super::{evidence, look, ownership};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Pid, Service};
use crate::world::process::{self, Id, Process, ProcessTable};
use crate::world::wait::Stop;
use std::collections::HashSet;

/// What is known of a process that is to be adopted.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Whether a process with this number exists.
    exists: bool,
    is_kernel: bool,
    /// Whether gpuctl may read what the process shows of itself.
    is_readable: bool,
    is_gpuctl: bool,
    is_caller: bool,
    is_multiplexer: bool,
    is_contained: bool,
    name: String,
    /// The service that the process belongs to already, if any.
    owner: Option<String>,
}

/// Returns the identities of processes that may become a service's; fails at the first that may
/// not. `on_card` holds the processes that hold memory on the card.
pub fn adoptable(
    config: &Config,
    service: &str,
    pids: &[Pid],
    on_card: HashSet<Pid>,
    stop: &Stop,
) -> Result<Vec<Id>> {
    let services: Vec<&Service> = config.services.iter().collect();
    let look = look(config, &services, &[], stop, || on_card);
    stop.check()?;
    let table = ProcessTable::read();
    let adoptable = |pid: &Pid| {
        let facts =
            Facts { owner: look.service_of(*pid).map(str::to_owned), ..gather(*pid, &table) };
        match objection(service, *pid, &facts) {
            Some(failure) => Err(failure),
            None => table.get(*pid).map(Process::id).ok_or_else(|| absent(*pid)),
        }
    };
    pids.iter().map(adoptable).collect()
}

fn gather(pid: Pid, table: &ProcessTable) -> Facts {
    let Some(process) = table.get(pid) else {
        // The number is not in the table if the process is the kernel's, is hidden from gpuctl, has
        // ended, or is a thread of another process.
        let is_kernel = Process::of(pid).is_some_and(|process| process.is_kernel);
        let exists = is_kernel || process::is_hidden(pid);
        return Facts { exists, is_kernel, ..Facts::default() };
    };
    Facts {
        exists: true,
        is_kernel: false,
        is_readable: process::is_readable(process),
        is_gpuctl: process.name == "gpuctl",
        is_caller: table.callers().contains(&pid),
        is_multiplexer: ownership::is_multiplexer(process),
        is_contained: evidence::is_contained(process, &process::control_groups(pid)),
        name: process.name.clone(),
        owner: None,
    }
}

/// Returns why a process cannot become a service's, or `None` if it can.
fn objection(service: &str, pid: Pid, facts: &Facts) -> Option<Failure> {
    let refuse = |why: &str, hint: &str| {
        let message = format!("process {pid} cannot be adopted by {service}: {why}");
        Some(Failure::new(Code::Usage, message).hint(hint).detail("pid", pid))
    };
    let name = &facts.name;
    match facts {
        Facts { exists: false, .. } => Some(absent(pid)),
        _ if pid == 1 => refuse(
            "it is the first process of this machine or container",
            "name the server itself; `gpuctl status` lists the processes on the card",
        ),
        Facts { is_kernel: true, .. } => refuse(
            "it is a kernel thread",
            "name the server itself; `gpuctl status` lists the processes on the card",
        ),
        Facts { is_gpuctl: true, .. } => {
            refuse("it is gpuctl", "name the server itself, not the gpuctl that waits for it")
        }
        Facts { is_caller: true, .. } => refuse(
            &format!("this gpuctl was called from it ({name})"),
            "name the server itself, or adopt it from another terminal",
        ),
        Facts { is_multiplexer: true, .. } => refuse(
            &format!(
                "it is the server of a terminal multiplexer ({name}), whose panes may belong to anybody"
            ),
            "name the process in the pane",
        ),
        Facts { is_readable: false, .. } => {
            let message = format!(
                "process {pid} may not be inspected, so gpuctl cannot tell whether {service} may adopt it"
            );
            let failure = Failure::new(Code::Permission, message).detail("pid", pid);
            Some(failure.hint("run gpuctl as root, or as the user who owns the process"))
        }
        Facts { owner: Some(owner), .. } if owner != service => refuse(
            &format!("it belongs to service {owner}"),
            &format!("`gpuctl stop {owner}` ends it; a process belongs to at most one service"),
        ),
        Facts { is_contained: true, .. } => refuse(
            "it is in a container, or listens for one, which its engine manages",
            &format!(
                "in services.{service}, set type = \"docker\" and container = \"NAME\"; `docker ps` lists them"
            ),
        ),
        _ => None,
    }
}

fn absent(pid: Pid) -> Failure {
    Failure::new(Code::NotFound, format!("there is no process {pid}"))
        .hint("`gpuctl status` lists the processes on the card, `pgrep -af NAME` all those with a name")
        .detail("pid", pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinary() -> Facts {
        Facts { exists: true, is_readable: true, name: "python3".to_owned(), ..Facts::default() }
    }

    #[test]
    fn an_ordinary_process_and_one_of_the_service_may_be_adopted() {
        let own = Facts { owner: Some("vidi".to_owned()), ..ordinary() };
        for facts in [ordinary(), own] {
            assert!(objection("vidi", 4711, &facts).is_none(), "{facts:?}");
        }
    }

    #[test]
    fn each_that_cannot_be_a_services_is_refused_with_the_reason_and_what_to_do() {
        for (pid, facts, code, why) in [
            (4711, Facts::default(), Code::NotFound, "there is no process 4711"),
            (1, ordinary(), Code::Usage, "first process"),
            (
                4711,
                Facts { is_kernel: true, is_readable: false, ..ordinary() },
                Code::Usage,
                "kernel",
            ),
            (4711, Facts { is_gpuctl: true, ..ordinary() }, Code::Usage, "it is gpuctl"),
            (
                4711,
                Facts { is_caller: true, ..ordinary() },
                Code::Usage,
                "called from it (python3)",
            ),
            (4711, Facts { is_multiplexer: true, ..ordinary() }, Code::Usage, "multiplexer"),
            (4711, Facts { is_contained: true, ..ordinary() }, Code::Usage, "container"),
            (4711, Facts { owner: Some("voice".to_owned()), ..ordinary() }, Code::Usage, "voice"),
            (4711, Facts { is_readable: false, ..ordinary() }, Code::Permission, "inspected"),
        ] {
            let failure = objection("vidi", pid, &facts).expect(why);
            assert_eq!(failure.code.name(), code.name(), "{}", failure.message);
            assert!(failure.message.contains(why), "{}", failure.message);
            assert!(failure.message.contains(&pid.to_string()), "{}", failure.message);
            assert!(!failure.hints.is_empty(), "{}", failure.message);
        }
    }
}
