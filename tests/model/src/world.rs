//! A state of the world, and the scenario that it begins with.

use crate::client::{Client, Phase};
use crate::server::Server;

/// Largest number of clients in a scenario.
pub const CLIENTS: usize = 4;

/// Ticks for which a lock in Redis lives after a renewal.
pub const TTL: i8 = 3;

/// The kind of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `gpuctl run`: a gpuctl, its watchdog and a command.
    Run,
    /// `lock acquire`, with one command of gpuctl that works under its token once.
    ByHand,
}

/// Number of times that each fault may happen; in a `World`, the number that is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A gpuctl is killed.
    pub kill: u8,
    /// A watchdog is killed.
    pub kill_watchdog: u8,
    /// A gpuctl is stopped for any length of time, while its command works on.
    pub stop: u8,
    /// All processes of a `run` are frozen for any length of time.
    pub freeze: u8,
    /// A script runs, but its caller does not hear the answer.
    pub lost_reply: u8,
    /// A waiter is interrupted.
    pub interrupt: u8,
    /// A command leaves a child in the background.
    pub background: u8,
    /// The token of a lock by hand is released, on either machine.
    pub release: u8,
    /// The lock's key is deleted.
    pub delete: u8,
    /// The server's calendar jumps ahead by more than any time to live.
    pub jump_ahead: u8,
    /// The server's calendar is set back.
    pub jump_back: u8,
    /// A replica takes over that has not heard of the last change, or of any.
    pub fail_over: u8,
    /// The server's data is deleted by `FLUSHALL`.
    pub flush: u8,
}

/// The rules of the protocol. Each can be left out, to see that the model finds what breaks then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A second record outlives the key.
    pub second_record: bool,
    /// Waiters wait for the second record to end by their own clocks, not by the server's.
    pub own_clock: bool,
    /// Ticks before the end of its lease by which a holder has ended its work.
    pub margin: i8,
    /// Only a client that has the lock of a holder's machine takes over from that holder.
    pub place: bool,
    /// A holder that comes back late asks whether anybody came meanwhile.
    pub asks_who_came: bool,
    /// A bearer that releases a token leaves the second record to what works under the token.
    pub bearer: bool,
    /// A server that took over is recognised as another one.
    pub server_id: bool,
    /// The watchdog ends a command whose gpuctl has died.
    pub watchdog: bool,
    /// What a command leaves in the background keeps the lock.
    pub keeper: bool,
    /// The client that has waited longest is called.
    pub calls: bool,
    /// A client on the releasing machine that has waited longer comes before the line in Redis.
    pub reservation: bool,
    /// A call that no client follows ends.
    pub call_ends: bool,
    /// The fence rises above the last one.
    pub counter: bool,
    /// The fence rises with the server's calendar.
    pub clock: bool,
}

impl Rules {
    /// The protocol as it is, with all its rules.
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

/// A scenario to explore.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The kind and the machine of each client.
    pub clients: Vec<(Kind, u8)>,
    /// Whether a program that knows nothing of gpuctl takes part.
    pub legacy: bool,
    pub faults: Faults,
    pub rules: Rules,
    /// Whether woken waiters look at the lock before another client queues up or a command ends.
    /// Without that there is no order that could be kept.
    pub is_timely: bool,
}

/// How far the program of the older kind has come: `SET NX EX`, work, `GET`, `DEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Legacy {
    Absent,
    Idle,
    Works,
    /// The program has read its own name in the key, and will delete the key.
    Deletes,
    Done,
}

/// A state of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub clients: [Client; CLIENTS],
    pub server: Server,
    pub legacy: Legacy,
    pub faults: Faults,
    /// Number of clients that have queued up so far.
    pub arrivals: u8,
    /// The highest fence that was given to any client.
    pub fence: u8,
    /// The first promise that was broken, if any.
    pub broken: Option<Promise>,
}

/// A promise of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// Two commands never work at once.
    Alone,
    /// No command works while a program of the older kind does.
    AloneWithLegacy,
    /// Every fence is higher than those before it.
    Fences,
    /// The client that has waited longest is next.
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

    /// Reports whether another client of the same machine is at the door of the machine's lock or
    /// holds that lock.
    pub fn machine_is_held_beside(&self, client: usize) -> bool {
        let machine = self.clients[client].machine;
        let others = self.clients.iter().enumerate().filter(|(other, _)| *other != client);
        others.into_iter().any(|(_, other)| other.machine == machine && other.holds_machine())
    }

    /// Returns the client that is next in the line of a machine's lock, passing over those that are
    /// stopped or frozen.
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

    /// Records the promise that is broken if two commands work at once, or one beside a program of
    /// the older kind.
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
