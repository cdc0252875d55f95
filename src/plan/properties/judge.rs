//! Decides what a command may do by trying everything. The judge shares no arithmetic with the
//! planner: it states the contract (a running service commits the larger of what it declares and
//! holds) once more, in the simplest words.

use super::machine::{Call, Computer, Shape, Tenant};
use std::cmp::Reverse;

pub struct Judge<'a> {
    machine: &'a Computer,
    command: &'a Call,
    needed: Vec<&'a Tenant>,
    others: Vec<&'a Tenant>,
}

impl<'a> Judge<'a> {
    pub fn of(machine: &'a Computer, command: &'a Call) -> Judge<'a> {
        let is_needed = |member: &&Tenant| match command {
            Call::Prepare { phase, .. } => member.phases.contains(phase),
            Call::Start { service, .. } => member.name == *service,
            Call::Stop { .. } | Call::ReleaseAll { .. } => false,
        };
        let (needed, others) = machine.members.iter().partition(is_needed);
        Judge { machine, command, needed, others }
    }

    pub fn needs(&self, name: &str) -> bool {
        self.needed.iter().any(|member| member.name == name)
    }

    /// Reports whether there is a plan for the command.
    pub fn permits(&self) -> bool {
        use Shape::{Dead, Missing, Unknown};
        match self.command {
            Call::Stop { services, .. } => !self
                .others
                .iter()
                .any(|one| services.contains(&one.name) && matches!(one.shape, Missing | Unknown)),
            Call::ReleaseAll { .. } => self.others.iter().all(|one| one.shape != Unknown),
            Call::Prepare { lazy: false, .. }
                if self.others.iter().any(|one| one.shape == Unknown) =>
            {
                false
            }
            Call::Prepare { .. } | Call::Start { .. } => {
                let makes_room =
                    || subsets(&self.stoppable()).iter().any(|set| self.fits_without(set));
                self.needed.iter().all(|one| !matches!(one.shape, Missing | Dead | Unknown))
                    && (self.is_there() || makes_room())
            }
        }
    }

    /// Returns the services that have to go, in alphabetical order.
    pub fn victims(&self) -> Vec<String> {
        let alive = self.others.iter().filter(|one| one.can_be_stopped());
        let mut victims: Vec<String> = match self.command {
            Call::Stop { services, .. } => {
                alive.map(|one| one.name.clone()).filter(|name| services.contains(name)).collect()
            }
            Call::ReleaseAll { .. } => alive.map(|one| one.name.clone()).collect(),
            Call::Prepare { lazy: false, .. } => {
                let (empty, rest): (Vec<&Tenant>, Vec<&Tenant>) =
                    alive.partition(|one| self.has_unloaded(one));
                let rest = rest.iter().map(|one| one.name.clone()).collect();
                self.by_the_rule(rest, |one| empty.iter().any(|it| it.name == one.name))
            }
            Call::Prepare { .. } | Call::Start { .. } => self.by_the_rule(Vec::new(), |_| true),
        };
        victims.sort();
        victims
    }

    /// Reports whether the command stops only as much as it has to.
    pub fn is_sparing(&self) -> bool {
        matches!(self.command, Call::Start { .. } | Call::Prepare { lazy: true, .. })
    }

    /// Reports whether what the command needs fits once the services in `gone` are gone.
    pub fn fits_without(&self, gone: &[String]) -> bool {
        let needed = self.needed_memory();
        let stays = self.others.iter().filter(|one| !gone.contains(&one.name));
        let staying: u64 = stays.map(|one| self.commits(one)).sum();
        let held: u64 = self.machine.members.iter().map(|one| self.machine.held(one)).sum();
        let foreign = self.machine.in_use().saturating_sub(held);
        match self.machine.size() {
            _ if needed == 0 => true,
            Some(size) => needed + staying <= size.saturating_sub(foreign),
            // It is unknown whether this fits, unless nothing else is left on the card.
            None => staying == 0,
        }
    }

    /// Returns the memory of the needed services, which will be used to the full.
    pub fn needed_memory(&self) -> u64 {
        self.needed.iter().map(|one| one.vram.max(self.machine.held(one))).sum()
    }

    fn commits(&self, one: &Tenant) -> u64 {
        match one.may_run() && !one.unloads {
            true => self.machine.held(one).max(one.vram),
            false => self.machine.held(one),
        }
    }

    /// Reports whether all needed services run already, with their memory; then a plan is never
    /// refused.
    fn is_there(&self) -> bool {
        self.needed.iter().all(|one| {
            let is_away = self.has_unloaded(one) && self.machine.held(one) < one.vram;
            one.shape == Shape::Ready && !is_away
        })
    }

    /// Reports whether a service is known to hold no more than its context keeps.
    fn has_unloaded(&self, one: &Tenant) -> bool {
        let held = self.machine.held(one);
        let is_little = held <= 1536 || held * 4 <= one.vram;
        one.unloads
            && one.shape == Shape::Ready
            && (held == 0 || is_little && held < one.vram)
            && self.machine.is_told(one)
    }

    /// Returns the services that may be stopped: those that are being stopped already, then lowest
    /// priority and largest commitment first.
    fn stoppable(&self) -> Vec<&'a Tenant> {
        let may_go = |one: &&&Tenant| match self.command {
            _ if one.shape == Shape::Stopping => true,
            Call::Start { service, preempt } => {
                *preempt && one.priority < self.machine.priority(service)
            }
            _ => true,
        };
        let gives = |one: &&&Tenant| one.can_be_stopped() && self.commits(one) > 0;
        let mut stoppable: Vec<&Tenant> =
            self.others.iter().filter(may_go).filter(gives).copied().collect();
        stoppable.sort_by_key(|one| {
            (one.shape != Shape::Stopping, one.priority, Reverse(self.commits(one)))
        });
        stoppable
    }

    /// Takes as few services as possible from the front of the line, and of these the set that
    /// spares the last in the line, then the one before it, and so on. The services in `gone` go in
    /// any case.
    fn by_the_rule(&self, gone: Vec<String>, may_go: impl Fn(&Tenant) -> bool) -> Vec<String> {
        // What else is on the card is not the business of a service that runs already.
        if matches!(self.command, Call::Start { .. }) && self.is_there() {
            return gone;
        }
        let line: Vec<&Tenant> = self.stoppable().into_iter().filter(|one| may_go(one)).collect();
        let names = |members: &[&Tenant]| -> Vec<String> {
            members.iter().map(|one| one.name.clone()).chain(gone.iter().cloned()).collect()
        };
        let fronts = (0..=line.len()).map(|length| &line[..length]);
        let Some(front) = fronts.into_iter().find(|front| self.fits_without(&names(front))) else {
            return gone;
        };
        let beside = |set: Vec<String>| set.into_iter().chain(gone.iter().cloned()).collect();
        let enough = subsets(front)
            .into_iter()
            .map(beside)
            .filter(|set: &Vec<String>| self.fits_without(set));
        let stops = |set: &Vec<String>| -> Vec<bool> {
            front.iter().rev().map(|one| set.contains(&one.name)).collect()
        };
        enough.min_by_key(stops).expect("the front itself is enough")
    }
}

fn subsets(members: &[&Tenant]) -> Vec<Vec<String>> {
    let of = |mask: usize| {
        let chosen = members.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0);
        chosen.map(|(_, one)| one.name.clone()).collect()
    };
    (0..1 << members.len()).map(of).collect()
}
