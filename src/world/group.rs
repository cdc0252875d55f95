//! The processes that a command consists of: those in the group that its leader made, and those
//! that bear the command's token, in whatever group they are.

use super::process::{self, Process, ProcessTable};
use crate::model::{Pid, variable};
use std::fs;
use std::path::Path;

/// Returns the processes in the group that `leader` leads or led, and those that bear `token`, but
/// never this process; without a leader, only those that bear the token.
pub fn members(leader: Option<process::Id>, token: &str) -> Vec<process::Id> {
    // A process that is just being replaced by a program has no environment for a moment.
    let found = find(&ProcessTable::read(), leader, token);
    if found.is_empty() { find(&ProcessTable::read(), leader, token) } else { found }
}

fn find(table: &ProcessTable, leader: Option<process::Id>, token: &str) -> Vec<process::Id> {
    let mut members: Vec<process::Id> =
        leader.map_or_else(Vec::new, |leader| in_group(table, leader).collect());
    members.extend(bearers(table, token).filter(|id| !members.contains(id)).collect::<Vec<_>>());
    members
}

fn in_group(table: &ProcessTable, leader: process::Id) -> impl Iterator<Item = process::Id> {
    // A PID is not given to another process while a group still has that number.
    let is_gone = table.get(leader.pid).is_some_and(|process| process.ticks != leader.start);
    let in_group = table.iter().filter(move |process| !is_gone && process.group == leader.pid);
    in_group.map(Process::id)
}

fn bearers(table: &ProcessTable, token: &str) -> impl Iterator<Item = process::Id> {
    let me = table.me().map(Process::id);
    table.iter().map(Process::id).filter(move |id| {
        let [value] = process::variables(id.pid, [variable::LOCK_TOKEN]);
        Some(*id) != me && value.as_deref() == Some(token)
    })
}

/// Returns the living processes in a control group and in the groups below it; `path` is as in
/// /proc/PID/cgroup.
pub fn in_control_group(path: &str) -> Vec<process::Id> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];
    let folders = roots.iter().map(|root| Path::new(root).join(path.trim_start_matches('/')));
    let found = folders.map(|folder| below(&folder)).find(|pids| !pids.is_empty());
    let living = |pid: &Pid| process::Id::of(*pid).filter(|_| !process::is_ending(*pid));
    found.iter().flatten().filter_map(living).collect()
}

fn below(folder: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<Pid> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.for_each(|entry| pids.extend(below(&entry.path())));
    pids
}
