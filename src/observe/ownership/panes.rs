//! Terminal multiplexers: what was started by hand in one of their panes.

use super::{Evidence, Ownership};
use crate::model::Pid;
use crate::world::process::{Id, Process, ProcessTable};
use std::collections::HashMap;

/// Processes in the panes of terminal multiplexers that are younger than a start.
#[derive(Debug, Default)]
pub struct Panes {
    /// The first processes of panes that were made with the mark of the service: its start made them.
    pub marked: Vec<Id>,
    /// Somebody works there that nobody has proven to be a service's, and that may become one.
    pub may_come: bool,
}

/// Looks through the panes for what a start, in clock ticks since boot, may have left there.
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

/// Whether it is the server of a terminal multiplexer, by the name that the kernel keeps of it.
pub fn is_multiplexer(process: &Process) -> bool {
    const MULTIPLEXERS: [&str; 7] =
        ["tmux", "screen", "SCREEN", "zellij", "dtach", "abduco", "dvtm"];
    let name = process.name.split([':', ' ']).next().unwrap_or_default();
    MULTIPLEXERS.contains(&name)
}
