//! Builds small worlds for the tests: processes, and what they and the services have to show.

use super::*;
use crate::world::clock::SinceBoot;
use std::time::Duration;

pub const SYSTEMD: Pid = 1;
pub const SSHD: Pid = 10;
pub const SHELL: Pid = 11;
pub const GPUCTL: Pid = 12;

/// A machine on which somebody has logged in and calls gpuctl.
pub struct World {
    processes: Vec<Process>,
    claims: Vec<Credentials>,
    pub evidence: HashMap<Pid, Evidence>,
    listening: HashSet<(Pid, u16)>,
}

impl World {
    /// Makes a world with `services` native services, which have no port.
    pub fn new(services: usize) -> World {
        let native = Credentials { is_native: true, ..Credentials::default() };
        let mut world = World {
            processes: Vec::new(),
            claims: vec![native; services],
            evidence: HashMap::new(),
            listening: HashSet::new(),
        };
        world.leader(SYSTEMD, 0, "systemd");
        world.leader(SSHD, SYSTEMD, "sshd");
        world.leader(SHELL, SSHD, "bash");
        world.job(GPUCTL, SHELL, "gpuctl");
        world
    }

    pub fn add(&mut self, pid: Pid, parent: Pid, group: Pid, session: Pid, name: &str) {
        self.processes.push(Process {
            pid,
            parent,
            group,
            session,
            state: 'S',
            started: SinceBoot::after_boot(Duration::from_secs(pid as u64)),
            ticks: start_of(pid),
            name: name.to_owned(),
            is_kernel: false,
            threads: 1,
        });
    }

    fn get(&self, pid: Pid) -> &Process {
        self.processes.iter().find(|process| process.pid == pid).expect("a parent that is there")
    }

    /// Adds a process with a session of its own.
    pub fn leader(&mut self, pid: Pid, parent: Pid, name: &str) {
        self.add(pid, parent, pid, pid, name);
    }

    /// Adds a process with a group of its own, as a shell with job control starts it.
    pub fn job(&mut self, pid: Pid, parent: Pid, name: &str) {
        let session = self.get(parent).session;
        self.add(pid, parent, pid, session, name);
    }

    pub fn child(&mut self, pid: Pid, parent: Pid, name: &str) {
        let Process { group, session, .. } = *self.get(parent);
        self.add(pid, parent, group, session, name);
    }

    /// Ends a process; its children become those of PID 1.
    pub fn end(&mut self, pid: Pid) {
        self.processes.retain(|process| process.pid != pid);
        let orphans = self.processes.iter_mut().filter(|process| process.parent == pid);
        orphans.for_each(|orphan| orphan.parent = SYSTEMD);
    }

    pub fn shows(&mut self, pid: Pid) -> &mut Evidence {
        self.evidence.entry(pid).or_default()
    }

    pub fn claim(&mut self, service: usize) -> &mut Credentials {
        &mut self.claims[service]
    }

    pub fn listens(&mut self, pid: Pid, port: u16) {
        self.listening.insert((pid, port));
    }

    pub fn record(&mut self, service: usize, pid: Pid) {
        self.claims[service].recorded.push(Id { pid, start: start_of(pid) });
    }

    pub fn port(&mut self, service: usize) -> u16 {
        *self.claims[service].port.get_or_insert(8000 + service as u16)
    }

    /// Gives a process one proof of belonging to a service.
    pub fn proves(&mut self, pid: Pid, service: usize, proof: Proof) {
        match proof {
            Proof::ControlGroup => self.shows(pid).control_group.push(service),
            Proof::Container => {
                self.claims[service].is_native = false;
                self.claims[service].containers.push(pid);
            }
            Proof::Start => self.record(service, pid),
            Proof::Mark => self.shows(pid).mark = Some(service),
            Proof::Match => {
                self.shows(pid).matches.push(service);
                let port = self.port(service);
                self.listens(pid, port);
            }
        }
    }

    pub fn table(&self, me: Pid) -> ProcessTable {
        ProcessTable::of(
            self.processes.clone(),
            SinceBoot::after_boot(Duration::from_secs(1_000_000)),
            me,
        )
    }

    pub fn decide(&self, me: Pid) -> Ownership {
        let is_taken = |port| self.listening.iter().any(|(_, taken)| *taken == port);
        let mut claims = self.claims.clone();
        claims.iter_mut().for_each(|it| it.is_port_taken = it.port.is_some_and(is_taken));
        let listens = |pid: Pid, port: u16| self.listening.contains(&(pid, port));
        decide(&self.table(me), &claims, &self.evidence, &listens)
    }

    /// Returns the members of service 0, and the processes that may be its own but are unproven.
    pub fn first(&self) -> (Vec<Pid>, Vec<Pid>) {
        let ownership = self.decide(GPUCTL);
        let unproven = ownership.unproven.iter().filter(|(service, _)| *service == 0);
        (ownership.members(0), unproven.map(|(_, pid)| *pid).collect())
    }
}

/// Returns the time at which a process of a test starts, in clock ticks since boot.
pub fn start_of(pid: Pid) -> u64 {
    pid as u64 * 100
}
