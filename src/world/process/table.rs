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

/// The thread of the kernel that makes all others. In a PID namespace, anybody has this number.
const KTHREADD: Pid = 2;

/// It takes longer to look at this many processes than to begin a thread.
const MANY: usize = 64;

/// Every process but zombies and threads of the kernel, which are nobody's and cannot be ended.
pub struct ProcessTable {
    processes: HashMap<Pid, Process>,
    children: HashMap<Pid, Vec<Pid>>,
    /// Who is in the group or the session that a process made.
    made: HashMap<Pid, Vec<Pid>>,
    /// When it was read.
    now: SinceBoot,
    me: Pid,
}

impl ProcessTable {
    pub fn read() -> ProcessTable {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids: Vec<Pid> = pids.collect();
        // Afterwards: whoever had such a number then has died since.
        let of_kernel = made_by_kernel();
        pids.retain(|pid| !of_kernel.contains(pid));
        let processes = each(pids, read_stat);
        ProcessTable::of(processes, SinceBoot::now(), std::process::id() as Pid)
    }

    /// A table of these processes at that moment, as `me` sees it.
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

    /// gpuctl's own process; `None` where /proc shows nothing of it.
    pub fn me(&self) -> Option<&Process> {
        self.get(self.me)
    }

    /// The children of a process.
    pub fn children(&self, pid: Pid) -> &[Pid] {
        self.children.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Who is in the group or the session that a process made, itself among them.
    pub fn made_by(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        self.made.get(&pid).into_iter().flatten().copied()
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Returns what each process was called with, as pgrep sees it: the arguments with spaces
    /// between them.
    pub fn command_lines(&self) -> Vec<(Pid, CString)> {
        let line = |pid: Pid| {
            let mut line = read(pid, "cmdline").ok()?;
            line.truncate(line.iter().rposition(|byte| *byte != 0)? + 1);
            line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
            Some((pid, CString::new(line).ok()?))
        };
        self.each(line)
    }

    /// Returns what is to be told of each process, where there is something.
    pub fn each<T: Send>(&self, tell: impl Fn(Pid) -> Option<T> + Sync) -> Vec<T> {
        each(self.processes.keys().copied().collect(), tell)
    }

    pub fn age(&self, process: &Process) -> Duration {
        self.now.since(process.started)
    }

    /// gpuctl itself and all that it was called from.
    pub fn callers(&self) -> HashSet<Pid> {
        self.ancestors(self.me).chain([self.me]).collect()
    }

    /// Parents of a process, nearest first.
    pub fn ancestors(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        let mut seen = HashSet::from([pid]);
        std::iter::successors(self.get(pid).map(|p| p.parent), |pid| {
            self.get(*pid).map(|p| p.parent)
        })
        // The table is no atomic picture; a reused PID could close a ring.
        .take_while(move |pid| *pid > 0 && seen.insert(*pid))
    }
}

/// The children of the thread that makes all others of the kernel: those, most of what /proc lists where
/// there are many processors, and the helpers that the kernel calls. One file tells of them all; none are
/// known in a PID namespace, and from a kernel without that file.
fn made_by_kernel() -> HashSet<Pid> {
    let children = || fs::read_to_string(format!("/proc/{KTHREADD}/task/{KTHREADD}/children")).ok();
    let maker = read_stat(KTHREADD).filter(|process| process.is_kernel);
    let children = maker.and_then(|_| children()).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns what is to be told of each of these processes, on all processors but one where there are
/// many of them: clients and servers that are asked meanwhile need one too.
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
            // Without its part, what runs would be taken for stopped.
            told.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        told
    })
}

/// The main processes of containers that are seen here, by their control groups: those whose parents are
/// outside.
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
