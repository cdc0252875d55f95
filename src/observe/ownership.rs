//! Decides which service a process belongs to: at most one owner for each process, with the proof.
//! This is a pure function of the process table and of the evidence that was gathered; nothing else
//! decides which processes gpuctl may signal.

mod by_match;
mod panes;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worlds;

pub use panes::{Panes, is_multiplexer, panes_since};

use crate::model::{Pid, Proof};
use crate::world::process::{Id, Process, ProcessTable};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What a service has to show for its processes. Services are numbered as in the configuration.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Whether the service is native: gpuctl has started it as a process, or somebody has by hand.
    /// A process in a container is never part of a native service.
    pub is_native: bool,
    /// The port of the service's health check, or `None` if it has none on this machine.
    pub port: Option<u16>,
    /// Whether anything listens on `port`.
    pub is_port_taken: bool,
    /// The main processes of the service's containers.
    pub containers: Vec<Pid>,
    /// The processes that were recorded when the service was started, or that were adopted.
    pub recorded: Vec<Id>,
}

/// What a process shows of itself, besides its place in the process table.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Whether the process only mentions a service, as a viewer, an editor, a caller of gpuctl or a
    /// command under the lock does.
    pub is_bystander: bool,
    /// Whether the process is in a container that gpuctl is not in itself, or is a container engine
    /// or its port forwarder.
    pub is_contained: bool,
    /// The services whose unit, container or scope the process is in.
    pub control_group: Vec<usize>,
    /// The services to whose recorded log the process writes.
    pub log: Vec<usize>,
    /// The service that `GPUCTL_SERVICE` names in the process's environment.
    pub mark: Option<usize>,
    /// The services whose `match` finds the process's command line.
    pub matches: Vec<usize>,
    /// Whether the process holds memory on the card.
    pub is_on_card: bool,
}

/// The service that a process belongs to, and what proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub service: usize,
    pub proof: Proof,
}

/// A process for which several services have equally strong proof, so that it belongs to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    pub pid: Pid,
    pub services: BTreeSet<usize>,
}

/// The owners of all processes, and what could not be decided.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    owners: HashMap<Pid, Owner>,
    /// Services with processes that may be theirs but are proven to be nobody's: the service's
    /// `match` finds the process, or the process listens on the port of a service that has no
    /// proven process.
    pub unproven: Vec<(usize, Pid)>,
    pub disputes: Vec<Dispute>,
}

impl Ownership {
    /// Returns the service that a process belongs to, if any.
    pub fn of(&self, pid: Pid) -> Option<Owner> {
        self.owners.get(&pid).copied()
    }

    /// Returns the processes of a service, sorted by number.
    pub fn members(&self, service: usize) -> Vec<Pid> {
        let owned = self.owners.iter().filter(|(_, owner)| owner.service == service);
        let mut members: Vec<Pid> = owned.map(|(pid, _)| *pid).collect();
        members.sort_unstable();
        members
    }
}

/// Decides the owner of every process in the table. `listens` reports whether a process listens on
/// a port; it is called only if the answer matters, because it costs a look at all descriptors of
/// the process.
pub fn decide(
    table: &ProcessTable,
    claims: &[Credentials],
    evidence: &HashMap<Pid, Evidence>,
    listens: &dyn Fn(Pid, u16) -> bool,
) -> Ownership {
    let each = || claims.iter().enumerate();
    let mut matched: HashMap<usize, Vec<Pid>> = HashMap::new();
    for (pid, shown) in evidence.iter().filter(|(_, shown)| !shown.is_bystander) {
        shown.matches.iter().for_each(|service| matched.entry(*service).or_default().push(*pid));
    }
    let mut court = Court {
        table,
        claims,
        evidence,
        listens,
        callers: table.callers(),
        mains: each()
            .flat_map(|(at, claim)| claim.containers.iter().map(move |pid| (*pid, at)))
            .collect(),
        recorded: each()
            .flat_map(|(at, claim)| claim.recorded.iter().map(move |id| (*id, at)))
            .collect(),
        matched,
        nothing: Evidence::default(),
        ownership: Ownership::default(),
    };
    for proof in [Proof::ControlGroup, Proof::Container, Proof::Start, Proof::Mark] {
        if court.prove(proof) {
            court.inherit();
        }
    }
    court.prove_by_match();
    court.name_unproven();
    court.ownership
}

struct Court<'a> {
    table: &'a ProcessTable,
    claims: &'a [Credentials],
    evidence: &'a HashMap<Pid, Evidence>,
    listens: &'a dyn Fn(Pid, u16) -> bool,
    callers: HashSet<Pid>,
    /// The main processes of containers, each with its service.
    mains: Vec<(Pid, usize)>,
    recorded: Vec<(Id, usize)>,
    /// The processes that each service's `match` finds, except for bystanders.
    matched: HashMap<usize, Vec<Pid>>,
    nothing: Evidence,
    ownership: Ownership,
}

impl Court<'_> {
    fn shows(&self, pid: Pid) -> &Evidence {
        self.evidence.get(&pid).unwrap_or(&self.nothing)
    }

    /// Reports whether a process is never part of a service and passes nothing on to its
    /// descendants: gpuctl and its callers, PID 1, and the servers of terminal multiplexers, whose
    /// panes may belong to anybody.
    fn is_barrier(&self, process: &Process) -> bool {
        process.pid == 1
            || process.name == "gpuctl"
            || is_multiplexer(process)
            || self.callers.contains(&process.pid)
    }

    fn is_free(&self, pid: Pid) -> bool {
        !self.ownership.owners.contains_key(&pid)
            && !self.ownership.disputes.iter().any(|dispute| dispute.pid == pid)
            && self.table.get(pid).is_some_and(|process| !self.is_barrier(process))
    }

    fn free(&self) -> Vec<Pid> {
        let mut free: Vec<Pid> =
            self.table.iter().map(|process| process.pid).filter(|pid| self.is_free(*pid)).collect();
        free.sort_unstable();
        free
    }

    /// Gives a process to the one service that has proven it, or to nobody if several have.
    fn give(&mut self, pid: Pid, services: BTreeSet<usize>, proof: Proof) {
        match (services.len(), services.first()) {
            (1, Some(service)) => {
                self.ownership.owners.insert(pid, Owner { service: *service, proof });
            }
            (0, _) => {}
            _ => self.ownership.disputes.push(Dispute { pid, services }),
        }
    }

    /// Gives away the free processes that have this kind of proof, and reports whether there were
    /// any.
    fn prove(&mut self, proof: Proof) -> bool {
        let before = self.ownership.owners.len();
        // Most processes of a machine show nothing; they are looked at only when they may come from
        // a recorded start.
        let shown: BTreeSet<Pid> = match proof {
            Proof::Container => self.mains.iter().map(|(main, _)| *main).collect(),
            Proof::Start if !self.recorded.is_empty() => self.free().into_iter().collect(),
            _ => self.evidence.keys().copied().collect(),
        };
        for pid in shown {
            if self.is_free(pid) {
                let services = self.proven(pid, proof);
                self.give(pid, services, proof);
            }
        }
        self.ownership.owners.len() > before
    }

    /// Returns the services for which a process has a proof of its own, apart from what it
    /// inherits.
    fn proven(&self, pid: Pid, proof: Proof) -> BTreeSet<usize> {
        let shown = self.shows(pid);
        let may_be = |service: &usize| !self.claims[*service].is_native || !shown.is_contained;
        // A multiplexer hands what it was started with to every pane that anybody opens later.
        let is_own_pane = |service: &usize| {
            !self.claims[*service].is_native
                || self.pane(pid).is_none_or(|pane| self.serves(pane, *service))
        };
        let services: Vec<usize> = match proof {
            Proof::ControlGroup => {
                shown.control_group.iter().copied().filter(is_own_pane).collect()
            }
            Proof::Container => {
                self.mains.iter().filter(|(main, _)| *main == pid).map(|(_, at)| *at).collect()
            }
            Proof::Start => {
                let recorded = self.recorded.iter().filter(|(id, _)| self.comes_from(pid, *id));
                // A bystander only reads the log, though its own output may go there.
                let log = shown.log.iter().filter(|_| !shown.is_bystander);
                recorded.map(|(_, at)| at).chain(log).copied().collect()
            }
            Proof::Mark => shown.mark.into_iter().filter(is_own_pane).collect(),
            Proof::Match => Vec::new(),
        };
        services.into_iter().filter(may_be).collect()
    }

    /// Reports whether a process is a recorded one, or is in a session or group that a recorded one
    /// made.
    fn comes_from(&self, pid: Pid, recorded: Id) -> bool {
        let Some(process) = self.table.get(pid) else { return false };
        // The kernel gives a number to no other process while a session or group still bears it.
        let was_reused =
            self.table.get(recorded.pid).is_some_and(|now| now.ticks != recorded.start);
        let is_meant = pid == recorded.pid || self.makers(process).contains(&Some(recorded.pid));
        is_meant && !was_reused && process.ticks >= recorded.start
    }

    /// Returns the processes that made the group and the session of a process. `None` stands for
    /// gpuctl's own group and session and for those that its callers have made: their members are
    /// the caller's, so they prove nothing.
    fn makers(&self, process: &Process) -> [Option<Pid>; 2] {
        let me = self.table.me();
        let group = Some(process.group).filter(|group| me.is_none_or(|me| me.group != *group));
        let session = Some(process.session).filter(|it| me.is_none_or(|me| me.session != *it));
        [group, session].map(|maker| maker.filter(|pid| !self.callers.contains(pid)))
    }

    /// Gives every free process to the owner of its nearest ancestor that has one, or else to the
    /// owner of the process that made its group or session.
    fn inherit(&mut self) {
        loop {
            let found: Vec<(Pid, Owner)> = self
                .free()
                .into_iter()
                .filter_map(|pid| Some((pid, self.inherited(pid)?)))
                .filter(|(pid, owner)| {
                    !self.shows(*pid).is_contained || !self.claims[owner.service].is_native
                })
                .collect();
            if found.is_empty() {
                return;
            }
            self.ownership.owners.extend(found);
        }
    }

    fn inherited(&self, pid: Pid) -> Option<Owner> {
        let process = self.table.get(pid)?;
        let makers = self.makers(process).into_iter().flatten();
        self.ancestors(pid).into_iter().chain(makers).find_map(|other| self.ownership.of(other))
    }

    /// Returns the ancestors of a process, nearest first, up to the first that passes nothing on.
    fn ancestors(&self, pid: Pid) -> Vec<Pid> {
        let may_pass = |pid: &Pid| self.table.get(*pid).is_some_and(|p| !self.is_barrier(p));
        self.table.ancestors(pid).take_while(may_pass).collect()
    }

    /// Returns the first process of the terminal multiplexer's pane that a process is in, or `None`
    /// if it is in no pane.
    fn pane(&self, pid: Pid) -> Option<Pid> {
        let mut first = pid;
        for ancestor in self.table.ancestors(pid) {
            let process = self.table.get(ancestor)?;
            if is_multiplexer(process) {
                return Some(first);
            }
            if self.is_barrier(process) {
                return None;
            }
            first = ancestor;
        }
        None
    }

    /// Reports whether a member of a process's family listens on the service's port.
    fn serves(&self, pid: Pid, service: usize) -> bool {
        let port = self.claims[service].port;
        port.is_some_and(|port| self.family(pid).iter().any(|pid| (self.listens)(*pid, port)))
    }

    /// Returns a process, its descendants, and those in the group or session that it made.
    fn family(&self, pid: Pid) -> Vec<Pid> {
        let mut family = vec![pid];
        let mut seen = HashSet::from([pid]);
        let is_made = |p: &Process| self.makers(p).contains(&Some(pid)) && !self.is_barrier(p);
        let made = self.table.made_by(pid);
        let made = made.filter(|pid| self.table.get(*pid).is_some_and(is_made));
        family.extend(made.filter(|pid| seen.insert(*pid)));
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            let children = self.table.children(parent).iter().copied();
            let passes = |pid: &Pid| self.table.get(*pid).is_some_and(|p| !self.is_barrier(p));
            family.extend(children.filter(passes).filter(|pid| seen.insert(*pid)));
            next += 1;
        }
        family
    }
}
