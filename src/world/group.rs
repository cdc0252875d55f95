//! The processes that a command consists of: those in the group that its leader made, and those that
//! bear the token that it was given, whatever group they have made for themselves.

use super::process::{self, Process, ProcessTable};
use crate::model::variable;

/// The processes of the group that `leader` leads or led, and those that bear the token; without a
/// leader the latter alone, and never us among them.
pub fn members(leader: Option<process::Id>, token: &str) -> Vec<process::Id> {
    // One that is just being replaced by a program has no environment for a moment.
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
    // A number is not given to another process while a group still bears it.
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
