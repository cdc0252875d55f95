//! A client of the model: its processes, and how far it has come.

use crate::world::{Kind, TTL};

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Absent,
    Idle,
    /// The client is in the line of its machine.
    Waiting,
    /// The client is at the door, with a question to the server that was not answered.
    Asked,
    Taken,
    Working,
    /// The lock was taken by hand, and nothing works under its token.
    Left,
    Done,
}

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    None,
    Runs,
    Stopped,
}

/// A client: one `gpuctl run`, or one lock taken by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub kind: Kind,
    pub machine: u8,
    pub phase: Phase,
    pub gpuctl: Process,
    pub watchdog: Process,
    pub command: bool,
    /// Whether all its processes are frozen.
    pub frozen: bool,
    /// Whether the client was frozen until its lease was over, runs again, and has not yet asked
    /// whether anybody took the lock meanwhile.
    pub thawed: bool,
    /// Whether the watchdog keeps the lock for what the command has left in the background.
    pub keeps: bool,
    /// Ticks until the lock in Redis expires, as far as the client knows.
    pub lease: i8,
    /// Ticks until the machine's record of a lock by hand ends.
    pub record: i8,
    pub has_joined: bool,
    /// Ticks for which a waiter has seen the same second record; `None` if it has not seen the
    /// present one.
    pub watched_for: Option<i8>,
    pub arrival: u8,
}

impl Client {
    pub const fn absent() -> Client {
        Client {
            kind: Kind::Run,
            machine: 0,
            phase: Phase::Absent,
            gpuctl: Process::None,
            watchdog: Process::None,
            command: false,
            frozen: false,
            thawed: false,
            keeps: false,
            lease: 0,
            record: 0,
            has_joined: false,
            watched_for: None,
            arrival: 0,
        }
    }

    pub fn gpuctl_acts(&self) -> bool {
        self.gpuctl == Process::Runs && !self.frozen
    }

    pub fn watchdog_acts(&self) -> bool {
        self.watchdog == Process::Runs && !self.frozen
    }

    /// Reports whether the command works. A command that was frozen for too long does not count
    /// until it is known whether the lock was lost, as it may be about to be ended.
    pub fn works(&self) -> bool {
        self.command && !self.frozen && !self.thawed
    }

    /// Reports whether the client waits in line and looks at the lock, being neither stopped nor
    /// frozen.
    pub fn waits_in_line(&self) -> bool {
        self.phase == Phase::Waiting && self.gpuctl_acts()
    }

    /// Reports whether the client renews its lock, rather than leaving it to run out.
    pub fn is_renewed(&self) -> bool {
        self.kind == Kind::Run
    }

    /// Reports whether this client keeps others out of its machine: by its processes, which hold
    /// the kernel's lock, or by the record of a lock by hand.
    pub fn holds_machine(&self) -> bool {
        let some = |process| process != Process::None;
        let has_processes = match self.phase {
            Phase::Asked | Phase::Taken | Phase::Working => {
                some(self.gpuctl) || some(self.watchdog) || self.command
            }
            Phase::Done => self.command,
            _ => false,
        };
        has_processes || self.record > 0
    }

    /// Ends the client as far as its gpuctl goes; a command and a record by hand may outlast it.
    pub fn ends(&mut self) {
        let Client { kind, machine, command, record, has_joined, .. } = *self;
        // A lock by hand may last though nothing works under it.
        let phase = if record > 0 { Phase::Left } else { Phase::Done };
        *self = Client { kind, machine, command, record, has_joined, phase, ..Client::absent() };
    }

    /// Reports whether the client has something to do before the next tick may go by. `margin` is
    /// `Rules::margin`.
    pub fn is_overdue(&self, margin: i8) -> bool {
        let is_late = self.thawed || self.lease <= margin;
        let has_gpuctl = self.gpuctl != Process::None;
        match self.phase {
            _ if self.frozen => false,
            Phase::Asked | Phase::Taken => self.gpuctl_acts(),
            Phase::Working if self.gpuctl_acts() => !self.command || is_late,
            Phase::Working if self.watchdog_acts() => !has_gpuctl || (self.command && is_late),
            Phase::Done if self.keeps && self.watchdog_acts() => !self.command || self.lease <= 1,
            _ => false,
        }
    }

    pub fn tick(&mut self) {
        if self.gpuctl != Process::None || self.watchdog != Process::None {
            self.lease = (self.lease - 1).max(-1);
        }
        self.record = (self.record - 1).max(0);
        self.watched_for = self.watched_for.map(|ticks| (ticks + 1).min(TTL));
    }
}
