//! Decides what a service's `match` proves. Processes that it finds without proving them are only
//! named to the user.

use super::Court;
use crate::model::{Pid, Proof};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Court<'_> {
    /// Gives away the families that a `match` proves: one in which a process listens on the
    /// service's port or, if the service has no port on this machine, the only one that holds
    /// memory on the card.
    pub(super) fn prove_by_match(&mut self) {
        let mut proven: HashMap<Pid, BTreeSet<usize>> = HashMap::new();
        for service in 0..self.claims.len() {
            let heads = self.proven_heads(service);
            for pid in heads.into_iter().flat_map(|head| self.family(head)) {
                if self.is_free(pid) && !self.shows(pid).is_contained {
                    proven.entry(pid).or_default().insert(service);
                }
            }
        }
        for (pid, services) in proven {
            self.give(pid, services, Proof::Match);
        }
    }

    /// Returns the processes from which the proven families of a service descend.
    fn proven_heads(&self, service: usize) -> BTreeSet<Pid> {
        let claim = &self.claims[service];
        let matching: HashSet<Pid> = self.matching(service).collect();
        let serves = |pid: &Pid| match claim.port {
            Some(port) => (self.listens)(*pid, port),
            None => self.shows(*pid).is_on_card,
        };
        let families = matching.iter().flat_map(|pid| self.family(*pid));
        let serving: BTreeSet<Pid> = families
            .filter(|pid| self.is_free(*pid) && !self.shows(*pid).is_contained)
            .filter(serves)
            .collect();
        let heads: BTreeSet<Pid> =
            serving.iter().filter_map(|pid| self.head(*pid, &matching)).collect();
        match claim.port {
            None if heads.len() > 1 => BTreeSet::new(),
            _ => heads,
        }
    }

    /// Returns the matching process that a serving one comes from: the nearest, and from there up
    /// as long as the parent matches too and belongs to the same job, as a shell around the server
    /// does. Matching alone is not enough, because a careless pattern also finds the session's
    /// shell and the login's server.
    fn head(&self, serving: Pid, matching: &HashSet<Pid>) -> Option<Pid> {
        let process = self.table.get(serving)?;
        let line = [vec![serving], self.ancestors(serving)].concat();
        let nearest = line.iter().position(|pid| matching.contains(pid));
        let Some(nearest) = nearest else {
            let mut makers = self.makers(process).into_iter().flatten();
            return makers.find(|pid| matching.contains(pid));
        };
        let group = self.table.get(line[nearest])?.group;
        let is_same_job = |pid: &&Pid| {
            matching.contains(pid) && self.table.get(**pid).is_some_and(|p| p.group == group)
        };
        line[nearest..].iter().take_while(is_same_job).last().copied()
    }

    /// Returns the free processes that a service's `match` finds.
    fn matching(&self, service: usize) -> impl Iterator<Item = Pid> {
        let matched = self.matched.get(&service).into_iter().flatten().copied();
        matched.filter(|pid| self.is_free(*pid) && !self.shows(*pid).is_contained)
    }

    /// Notes the processes that may be a native service's and are proven to be nobody's.
    pub(super) fn name_unproven(&mut self) {
        let owned: HashSet<usize> =
            self.ownership.owners.values().map(|owner| owner.service).collect();
        for (service, claim) in self.claims.iter().enumerate().filter(|(_, claim)| claim.is_native)
        {
            let mut unproven: BTreeSet<Pid> = self.matching(service).collect();
            let is_missed = claim.is_port_taken && !owned.contains(&service);
            if let Some(port) = claim.port.filter(|_| is_missed) {
                let listens =
                    |pid: &Pid| !self.shows(*pid).is_contained && (self.listens)(*pid, port);
                unproven.extend(self.free().into_iter().filter(listens));
            }
            self.ownership.unproven.extend(unproven.into_iter().map(|pid| (service, pid)));
        }
    }
}
