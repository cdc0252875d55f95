//! A state of the world, and what a scenario begins with.

use crate::client::{Client, Phase};
use crate::server::Server;

/// Clients in a scenario at most.
pub const CLIENTS: usize = 4;

/// Ticks that a lock in Redis lives after a renewal.
pub const TTL: i8 = 3;

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `gpuctl run`: a gpuctl, its watchdog and a command.
    Run,
    /// `lock acquire`, with a command of gpuctl that works under its token, once.
    ByHand,
}

/// How often each fault may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A gpuctl is killed.
    pub kill: u8,
    /// A watchdog is killed.
    pub kill_watchdog: u8,
    /// A gpuctl is stopped, for as long as one likes; its command works on.
    pub stop: u8,
    /// All of a `run` is frozen, for as long as one likes.
    pub freeze: u8,
    /// A script is run, and its caller does not hear of it.
    pub lost_reply: u8,
    /// A waiter is interrupted.
    pub interrupt: u8,
    /// A command leaves a child in the background.
    pub background: u8,
    /// The token of a lock by hand is released, on either machine.
    pub release: u8,
    /// The lock's key is deleted.
    pub delete: u8,
    /// The server's calendar jumps ahead by more than any time of ours.
    pub jump_ahead: u8,
    /// The server's calendar is set back.
    pub jump_back: u8,
    /// A replica takes over that has not heard of the last change, or of none at all.
    pub fail_over: u8,
    /// FLUSHALL.
    pub flush: u8,
}

/// The rules of the protocol; each can be broken, to see that the model tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A second record outlives the key.
    pub second_record: bool,
    /// It is waited for by the waiters' own clocks, and not by the server's.
    pub own_clock: bool,
    /// Ticks before the end of its time by which a holder has ended its work.
    pub margin: i8,
    /// Only who has the machine's lock of a holder takes over from it.
    pub place: bool,
    /// A holder that comes back late asks whether anybody came since.
    pub asks_who_came: bool,
    /// A bearer of a token leaves the second record to what works under it.
    pub bearer: bool,
    /// A server that took over is known as such.
    pub server_id: bool,
    /// The watchdog ends a command whose gpuctl has died.
    pub watchdog: bool,
    /// What is left in the background keeps the lock.
    pub keeper: bool,
    /// Who has waited longest is called.
    pub calls: bool,
    /// One who has waited longer on the releasing machine comes before the line.
    pub reservation: bool,
    /// A call that nobody follows ends.
    pub call_ends: bool,
    /// The fence rises above the last one.
    pub counter: bool,
    /// The fence rises with the server's calendar.
    pub clock: bool,
}

impl Rules {
    /// The protocol as it is.
    pub const ALL: Rules = Rules {
        second_record: true,
        own_clock: true,
        margin: 1,
        place: true,
        asks_who_came: true,
        bearer: true,
        server_id: true,
        watchdog: true,
        keeper: true,
        calls: true,
        reservation: true,
        call_ends: true,
        counter: true,
        clock: true,
    };
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// With the machine of each.
    pub clients: Vec<(Kind, u8)>,
    /// A program that knows nothing of gpuctl comes too.
    pub legacy: bool,
    pub faults: Faults,
    pub rules: Rules,
    /// Who is woken looks before another command comes, or one has done its work; otherwise there is
    /// no order that could be kept.
    pub is_timely: bool,
}

/// The program of the older kind: `SET NX EX`, work, GET, DEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Legacy {
    Absent,
    Idle,
    Works,
    /// It has read its own name, and will delete the key.
    Deletes,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub clients: [Client; CLIENTS],
    pub server: Server,
    pub legacy: Legacy,
    pub faults: Faults,
    /// The number of those who have queued up.
    pub arrivals: u8,
    /// The highest fence that anybody was given.
    pub fence: u8,
    /// The first promise that was broken.
    pub broken: Option<Promise>,
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// Never two commands at once.
    Alone,
    /// A program of the older kind is excluded too.
    AloneWithLegacy,
    /// Fences rise.
    Fences,
    /// Who has waited longest is next.
    Order,
    /// No waiter is forgotten.
    NobodyForgotten,
}

impl World {
    pub fn of(scenario: &Scenario) -> World {
        let mut clients = [Client::absent(); CLIENTS];
        for (client, (kind, machine)) in clients.iter_mut().zip(&scenario.clients) {
            *client = Client { kind: *kind, machine: *machine, phase: Phase::Idle, ..*client };
        }
        World {
            clients,
            server: Server::new(),
            legacy: if scenario.legacy { Legacy::Idle } else { Legacy::Absent },
            faults: scenario.faults,
            arrivals: 0,
            fence: 0,
            broken: None,
        }
    }

    /// Whether somebody but this client has the door of its machine's lock, or is inside.
    pub fn machine_is_held_beside(&self, client: usize) -> bool {
        let machine = self.clients[client].machine;
        let others = self.clients.iter().enumerate().filter(|(other, _)| *other != client);
        others.into_iter().any(|(_, other)| other.machine == machine && other.holds_machine())
    }

    /// The next in the line of a machine's lock, of those who are not stopped.
    pub fn next_on(&self, machine: u8) -> Option<usize> {
        let waiting = |one: &usize| {
            let client = &self.clients[*one];
            client.machine == machine && client.phase == Phase::Waiting && client.gpuctl_acts()
        };
        (0..CLIENTS).filter(waiting).min_by_key(|one| self.clients[*one].arrival)
    }

    pub fn breaks(&mut self, promise: Promise) {
        self.broken.get_or_insert(promise);
    }

    /// Looks at what nobody may ever see.
    pub fn look(&mut self) {
        let working = self.clients.iter().filter(|client| client.works());
        let count = working.clone().count();
        if count > 1 {
            self.breaks(Promise::Alone);
        }
        if count > 0 && self.legacy == Legacy::Works {
            self.breaks(Promise::AloneWithLegacy);
        }
    }
}
