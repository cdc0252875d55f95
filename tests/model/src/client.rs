//! A client: its processes, and how far it has come.

use crate::world::{Kind, TTL};

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Absent,
    Idle,
    /// In the line of its machine.
    Waiting,
    /// At the door, with a question to the server that was not answered.
    Asked,
    Taken,
    Working,
    /// Taken by hand, and nobody works under its token.
    Left,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    None,
    Runs,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub kind: Kind,
    pub machine: u8,
    pub phase: Phase,
    pub gpuctl: Process,
    pub watchdog: Process,
    pub command: bool,
    /// With all its processes.
    pub frozen: bool,
    /// It goes on since a moment, and has not looked yet whether anybody came meanwhile.
    pub thawed: bool,
    /// The watchdog keeps the lock for what the command has left.
    pub keeps: bool,
    /// Ticks until the lock's time in Redis ends, as far as the client knows.
    pub lease: i8,
    /// Ticks until a lock by hand ends on its machine.
    pub record: i8,
    pub has_joined: bool,
    /// For how many ticks a waiter has seen the same second record.
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

    /// Whether its command works, and is not about to be ended since it was frozen for too long.
    pub fn works(&self) -> bool {
        self.command && !self.frozen && !self.thawed
    }

    /// Whether it waits, and looks.
    pub fn waits_in_line(&self) -> bool {
        self.phase == Phase::Waiting && self.gpuctl_acts()
    }

    /// Whether it renews its lock, and has not left it to its time.
    pub fn is_renewed(&self) -> bool {
        self.kind == Kind::Run
    }

    /// Whether the kernel keeps others out of its machine for it, or its record by hand does.
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

    /// It is over, as far as its gpuctl goes.
    pub fn ends(&mut self) {
        let Client { kind, machine, command, record, has_joined, .. } = *self;
        // A lock by hand that nobody works under may last.
        let phase = if record > 0 { Phase::Left } else { Phase::Done };
        *self = Client { kind, machine, command, record, has_joined, phase, ..Client::absent() };
    }

    /// Whether something is to be done before another tick.
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
