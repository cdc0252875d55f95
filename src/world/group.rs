//! The processes that a command consists of: those in the group that its leader made, and those that
//! bear the token that it was given, whatever group they have made for themselves.

use super::process::{self, Table};
use crate::model::{Pid, variable};

/// The processes of the group that `leader` leads or led, and those that bear the token; without a
/// leader the latter alone, and never us among them.
pub fn members(leader: Option<process::Id>, token: &str) -> Vec<Pid> {
    // One that is just being replaced by a program has no environment for a moment.
    let found = find(&Table::read(), leader, token);
    if found.is_empty() { find(&Table::read(), leader, token) } else { found }
}

fn find(table: &Table, leader: Option<process::Id>, token: &str) -> Vec<Pid> {
    let mut members: Vec<Pid> =
        leader.map_or_else(Vec::new, |leader| in_group(table, leader).collect());
    members.extend(bearers(table, token).filter(|pid| !members.contains(pid)).collect::<Vec<_>>());
    members
}

fn in_group(table: &Table, leader: process::Id) -> impl Iterator<Item = Pid> {
    // A number is not given to another process while a group still bears it.
    let is_gone = table.get(leader.pid).is_some_and(|process| process.ticks != leader.start);
    let in_group = table.iter().filter(move |process| !is_gone && process.group == leader.pid);
    in_group.map(|process| process.pid)
}

fn bearers(table: &Table, token: &str) -> impl Iterator<Item = Pid> {
    let me = std::process::id() as Pid;
    table.iter().map(|process| process.pid).filter(move |pid| {
        let [value] = process::variables(*pid, [variable::LOCK_TOKEN]);
        *pid != me && value.as_deref() == Some(token)
    })
}
