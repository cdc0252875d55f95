//! The process table as /proc shows it, read once per look: parents, groups, sessions, ages.

use super::{Process, control_groups, read, read_stat};
use crate::model::Pid;
use crate::world::clock::SinceBoot;
use crate::world::host;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

/// PID of kthreadd, the kernel thread that creates all others. In a PID namespace, any process may
/// have this number.
const KTHREADD: Pid = 2;

/// Smallest number of processes that get a thread of their own: looking at this many takes longer
/// than starting a thread.
const MANY: usize = 64;

/// All processes at one moment, except zombies and kernel threads, which belong to no service and
/// cannot be ended.
pub struct ProcessTable {
    processes: HashMap<Pid, Process>,
    children: HashMap<Pid, Vec<Pid>>,
    /// Members of the process group or the session that a process created, by the PID of that
    /// process.
    made: HashMap<Pid, Vec<Pid>>,
    /// Time at which the table was read.
    now: SinceBoot,
    me: Pid,
}

impl ProcessTable {
    /// Reads the table from /proc.
    pub fn read() -> ProcessTable {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids: Vec<Pid> = pids.collect();
        // Asked after the listing: any other process that had such a number then has died since.
        let of_kernel = made_by_kernel();
        pids.retain(|pid| !of_kernel.contains(pid));
        let processes = each(pids, read_stat);
        ProcessTable::of(processes, SinceBoot::now(), std::process::id() as Pid)
    }

    /// Builds the table of these processes at the moment `now`; `me` is gpuctl's own PID.
    pub fn of(
        processes: impl IntoIterator<Item = Process>,
        now: SinceBoot,
        me: Pid,
    ) -> ProcessTable {
        let mut table = ProcessTable {
            processes: HashMap::new(),
            children: HashMap::new(),
            made: HashMap::new(),
            now,
            me,
        };
        for process in processes.into_iter().filter(|one| !one.is_dead() && !one.is_kernel) {
            let pid = process.pid;
            table.children.entry(process.parent).or_default().push(pid);
            table.made.entry(process.group).or_default().push(pid);
            if process.session != process.group {
                table.made.entry(process.session).or_default().push(pid);
            }
            table.processes.insert(pid, process);
        }
        table
    }

    /// Returns gpuctl's own process, or `None` if /proc does not show it.
    pub fn me(&self) -> Option<&Process> {
        self.get(self.me)
    }

    /// Returns the children of a process.
    pub fn children(&self, pid: Pid) -> &[Pid] {
        self.children.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Returns the members of the process group or the session that a process created, including
    /// that process itself.
    pub fn made_by(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        self.made.get(&pid).into_iter().flatten().copied()
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Returns the command line of each process as pgrep sees it: the arguments joined by spaces.
    pub fn command_lines(&self) -> Vec<(Pid, CString)> {
        let line = |pid: Pid| {
            let mut line = read(pid, "cmdline").ok()?;
            line.truncate(line.iter().rposition(|byte| *byte != 0)? + 1);
            line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
            Some((pid, CString::new(line).ok()?))
        };
        self.each(line)
    }

    /// Calls `tell` for every process, and returns the results that are not `None`, in any order.
    pub fn each<T: Send>(&self, tell: impl Fn(Pid) -> Option<T> + Sync) -> Vec<T> {
        each(self.processes.keys().copied().collect(), tell)
    }

    /// Returns the age of a process at the time when the table was read.
    pub fn age(&self, process: &Process) -> Duration {
        self.now.since(process.started)
    }

    /// Returns gpuctl itself and all its ancestors, the processes that it was called from.
    pub fn callers(&self) -> HashSet<Pid> {
        self.ancestors(self.me).chain([self.me]).collect()
    }

    /// Returns the ancestors of a process, nearest first.
    pub fn ancestors(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        let mut seen = HashSet::from([pid]);
        std::iter::successors(self.get(pid).map(|p| p.parent), |pid| {
            self.get(*pid).map(|p| p.parent)
        })
        // The table is not read at one instant, so a reused PID could close a circle.
        .take_while(move |pid| *pid > 0 && seen.insert(*pid))
    }
}

/// Returns the children of kthreadd, read from a single file: the other kernel threads, which are
/// most of /proc's entries on a machine with many processors, and the helpers that the kernel
/// calls. Empty in a PID namespace and on a kernel without that file.
fn made_by_kernel() -> HashSet<Pid> {
    let children = || fs::read_to_string(format!("/proc/{KTHREADD}/task/{KTHREADD}/children")).ok();
    let maker = read_stat(KTHREADD).filter(|process| process.is_kernel);
    let children = maker.and_then(|_| children()).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Calls `tell` for each of these processes, and returns the results that are not `None`. Many
/// processes are shared out among all processors but one, which is left to the clients and servers
/// that are being asked at the same time.
fn each<T: Send>(pids: Vec<Pid>, tell: impl Fn(Pid) -> Option<T> + Sync) -> Vec<T> {
    let threads = (host::processors() - 1).max(1);
    let part = pids.len().div_ceil(threads).max(MANY);
    let part_of = |pids: &[Pid]| pids.iter().filter_map(|pid| tell(*pid)).collect::<Vec<T>>();
    thread::scope(|scope| {
        let mut parts = pids.chunks(part);
        let own = parts.next_back();
        let others: Vec<_> = parts.map(|part| scope.spawn(|| part_of(part))).collect();
        let mut told = own.map(part_of).unwrap_or_default();
        for other in others {
            // If a part were missing, running services would look stopped.
            told.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        told
    })
}

/// Returns the main processes of these containers (by their ids) that are visible here: each is in
/// the container's control group, but its parent is not.
pub fn mains_in(containers: &[&str]) -> Vec<Pid> {
    let table = ProcessTable::read();
    let of = |pid: Pid| {
        let groups = control_groups(pid);
        containers.iter().position(|id| groups.contains(id)).map(|at| (pid, at))
    };
    let inside: HashMap<Pid, usize> = table.each(of).into_iter().collect();
    let is_main = |(pid, at): &(&Pid, &usize)| {
        let parent = table.get(**pid).map(|process| process.parent);
        parent.and_then(|parent| inside.get(&parent)) != Some(*at)
    };
    inside.iter().filter(is_main).map(|(pid, _)| *pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_threads_of_the_kernel_are_left_out() {
        let is_ours = |pid: &Pid| read_stat(*pid).is_some_and(|process| !process.is_kernel);
        let left_out: Vec<Pid> = made_by_kernel().into_iter().filter(is_ours).collect();
        assert_eq!(left_out, [] as [Pid; 0]);
    }
}
