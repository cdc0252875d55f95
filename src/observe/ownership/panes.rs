//! Recognises terminal multiplexers, and finds what a start has left in their panes.

use super::{Evidence, Ownership};
use crate::model::Pid;
use crate::world::process::{Id, Process, ProcessTable};
use std::collections::HashMap;

/// What has appeared in the panes of terminal multiplexers since a start.
#[derive(Debug, Default)]
pub struct Panes {
    /// The first processes of panes that bear the mark of the service, because its start made the
    /// panes.
    pub marked: Vec<Id>,
    /// Whether a process works in a pane that is not proven to be any service's and may become one.
    pub may_come: bool,
}

/// Looks through the panes for what a start may have left there. `since` is the time of the start,
/// in clock ticks since boot.
pub fn panes_since(
    table: &ProcessTable,
    evidence: &HashMap<Pid, Evidence>,
    ownership: &Ownership,
    service: usize,
    since: u64,
) -> Panes {
    let is_shared = |pid: Pid| table.get(pid).is_some_and(is_multiplexer);
    let is_in_pane = |process: &&Process| table.ancestors(process.pid).any(is_shared);
    let young = table.iter().filter(|process| process.ticks >= since && !is_multiplexer(process));
    let mut panes = Panes::default();
    for process in young.filter(is_in_pane).filter(|it| ownership.of(it.pid).is_none()) {
        panes.may_come = true;
        let is_marked = evidence.get(&process.pid).is_some_and(|it| it.mark == Some(service));
        if is_marked && is_shared(process.parent) {
            panes.marked.push(process.id());
        }
    }
    panes
}

/// Reports whether a process is the server of a terminal multiplexer, judging by the name that the
/// kernel keeps of it.
pub fn is_multiplexer(process: &Process) -> bool {
    const MULTIPLEXERS: [&str; 7] =
        ["tmux", "screen", "SCREEN", "zellij", "dtach", "abduco", "dvtm"];
    let name = process.name.split([':', ' ']).next().unwrap_or_default();
    MULTIPLEXERS.contains(&name)
}
