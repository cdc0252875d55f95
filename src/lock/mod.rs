//! The GPU lock: one holder at a time, the longest waiting process next, and a number (the fence)
//! that rises with every holder. The machine's lock is kept by the kernel. If a Redis is
//! configured, the lock there is taken as well, by at most one gpuctl of each machine.

mod by_hand;
mod claim;
mod entry;
mod file;
mod guard;
mod keep;
mod keepers;
mod line;
mod machine;
mod record;
mod redis;
mod rest;
pub mod watchdog;

pub use by_hand::{Release, Wanted, acquire, joined, release};
pub use claim::{Claim, check_grace};
#[cfg(any(test, fuzzing))]
pub use file::Written;
pub use guard::{Guard, Heirloom, Purpose};
pub use record::{Ends, Held, KeeperProcess, Record, name_of, shown};
pub use redis::ServerFacts;
pub use rest::end_command;

use crate::config::{Config, Place, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use file::LockFile;
use machine::Machine;
use redis::Redis;
use std::time::{Duration, Instant};

/// Result of one try to take the lock in Redis.
pub enum Attempt {
    /// The lock was taken, with this fence.
    Taken(u64),
    Busy(Box<Busy>),
    /// The server is loading its data, or has answered before and cannot be reached now: another
    /// try may succeed.
    Unready(Failure),
}

/// Why the lock cannot be taken now.
pub struct Busy {
    /// The lock's holder, or `None` if another waiter is about to take the lock.
    pub held: Option<Held>,
    /// Number of waiters ahead of this process in the line.
    pub ahead: usize,
    /// Whether the holder is known from Redis, and not from this machine's lock.
    pub is_elsewhere: bool,
}

/// How long a process waits for the lock: the time in all, and the moment at which it is over.
pub struct Patience {
    pub total: Duration,
    pub deadline: Instant,
}

/// Reports which holder this process waits for, at first and whenever the holder changes.
pub struct Teller<'a> {
    config: &'a Config,
    tell: &'a mut dyn FnMut(&str),
    told: Option<Option<(String, Option<String>)>>,
}

impl Busy {
    /// Describes why the lock is busy:
    /// `held by comfyui (nora:1234, 29 s left), 2 waiting before us`.
    pub fn describe(&self, place: &Place) -> String {
        let mut text = match &self.held {
            Some(held) => format!("held by {}", held.describe()),
            None => "about to be taken by another".to_owned(),
        };
        if self.ahead > 0 {
            text.push_str(&format!(", {} waiting before us", self.ahead));
        }
        let by_chance = place.by_chance();
        if !by_chance.is_empty() && !self.is_elsewhere {
            text.push_str(", on this machine; it is kept");
            return text + by_chance.trim_start_matches(',');
        }
        text + &by_chance
    }

    /// Returns the failure of a caller that does not wait for the lock, or no longer.
    pub fn refusal(&self, place: &Place, patience: &Patience) -> Failure {
        let waited = match patience.total.is_zero() {
            true => String::new(),
            false => format!(", and the wait of {} is over", Span(patience.total)),
        };
        let failure = Failure::new(
            Code::LockBusy,
            format!("the GPU lock is {}{waited}", self.describe(place)),
        );
        let Some(held) = &self.held else {
            return failure.hint("try again: another was just before us");
        };
        let failure = match held.ends {
            Ends::Never => failure.hint(
                "it has no time to live, so it is never taken over; if its holder is gone: `gpuctl lock release --force`",
            ),
            Ends::WithProcesses if held.is_stopped() => failure.hint(
                "its process is stopped, and holds the lock for as long as it is there: continue it (kill -CONT), or end it",
            ),
            // A caller that does not wait does not mean to, or cannot: it gets no advice to wait
            // longer.
            _ if patience.total.is_zero() => {
                failure.hint("try again when it is free; `gpuctl lock status` shows the holder")
            }
            _ => failure.hint("wait longer with --wait; `gpuctl lock status` shows the holder"),
        };
        failure
            .detail("holder", held.holder.as_str())
            .detail("owner", held.owner())
            .detail("ttl", held.ttl())
    }
}

impl Patience {
    pub fn new(total: Duration) -> Patience {
        Patience { total, deadline: Instant::now() + total }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl<'a> Teller<'a> {
    fn new(config: &'a Config, tell: &'a mut dyn FnMut(&str)) -> Teller<'a> {
        Teller { config, tell, told: None }
    }

    fn tell(&mut self, busy: Busy) {
        let who = busy.held.as_ref().map(|held| (held.holder.clone(), held.owner()));
        if self.told.as_ref() != Some(&who) {
            self.told = Some(who);
            let text = self.named(busy).describe(&self.config.lock.place);
            (self.tell)(&text);
        }
    }

    fn refusal(&self, busy: Busy, patience: &Patience) -> Failure {
        self.named(busy).refusal(&self.config.lock.place, patience)
    }

    /// Adds the holder of the lock in Redis if `busy` names none: the process that this one waits
    /// for on its machine may itself be waiting for Redis.
    fn named(&self, busy: Busy) -> Busy {
        if busy.held.is_some() {
            return busy;
        }
        let held = redis(self.config).and_then(|mut redis| redis.look().ok().flatten());
        Busy { is_elsewhere: busy.is_elsewhere || held.is_some(), held, ..busy }
    }
}

/// Returns who holds the lock, or `None` if nobody does. A record in Redis that names this
/// machine's lock is left over from a dead holder, unless the machine's lock is still held.
pub fn look(config: &Config) -> Result<Option<Held>> {
    let machine = Machine::look_at(&config.lock.place.file);
    if let Some(mut redis) = redis(config)
        && let Some(held) = redis.look()?
    {
        let place = machine
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .and_then(|machine| machine.lock().place().ok());
        if held.ends == Ends::Never || place.is_none_or(|place| !held.was_in(&place)) {
            return Ok(Some(held));
        }
    }
    machine?.map_or(Ok(None), |machine| machine.held())
}

fn redis(config: &Config) -> Option<Redis> {
    Redis::at(&config.lock.place, &config.lock.key)
}

/// Fails if the file of the machine's lock cannot be opened or, if there is none, created.
pub fn could_open(config: &Config) -> Result<()> {
    LockFile::could_open(&config.lock.place.file)
}

/// Returns facts about the Redis server that keeps the lock, or `None` if no Redis is configured.
/// Fails if the server cannot be asked, or does not let its user do with the lock's key what the
/// lock needs.
pub fn server(config: &Config) -> Option<Result<ServerFacts>> {
    redis(config).map(|mut redis| redis.server())
}

/// Returns the failure of a caller whose `GPUCTL_LOCK_TOKEN` names a lock that is not held any
/// more.
fn not_held(place: &Place) -> Failure {
    Failure::new(
        Code::LockLost,
        format!(
            "the lock that GPUCTL_LOCK_TOKEN names is not held any more{}: it has ended or was released",
            place.by_chance()
        ),
    )
    .hint("unset GPUCTL_LOCK_TOKEN, or take the lock again")
}
