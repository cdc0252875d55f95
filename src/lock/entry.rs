//! The way to the lock: through the line and the door of the machine's lock and, if a Redis is
//! configured, through the lock there.
//!
//! A waiting process has a place in the line, and nothing else with which it could hold up others
//! while it is stopped: it goes through the door for a moment, looks, and comes back if it cannot
//! stay.

use super::claim::{Claim, Releaser};
use super::line::WaitingLine;
use super::machine::{InTheWay, Machine};
use super::redis::Redis;
use super::{Attempt, Busy, Patience, Teller};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::clock::SinceBoot;
use crate::world::host;
use crate::world::wait::{Stop, wait};
use std::time::{Duration, Instant};

/// Pause between two tries at a Redis server that is expected to be ready in a moment.
const UNREADY_PAUSE: Duration = Duration::from_millis(100);

/// What has to change before another try to take the lock can succeed.
enum Obstacle {
    /// Another process waits ahead of this one, at this place in the line.
    Waiter(u64),
    Here(InTheWay),
    /// The lock in Redis is held, or another waiter's turn.
    Elsewhere,
    /// The Redis server is not ready yet, or cannot be reached although it has answered before.
    Unready(Failure),
}

/// Takes the machine's lock and the lock in Redis, waiting for them as long as `patience` allows.
/// Returns the time since boot at which the lock in Redis ends unless it is renewed, or `None` if
/// no Redis is configured.
pub fn enter(
    config: &Config,
    machine: &mut Machine,
    redis: Option<&mut Redis>,
    claim: &mut Claim,
    patience: &Patience,
    stop: &Stop,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<SinceBoot>> {
    let teller = Teller::new(config, tell);
    let mut entry = Entry { machine, redis, claim, patience, stop, teller };
    let entered = entry.enter();
    let cannot_be_asked = entered.as_ref().is_err_and(|failure| failure.code == Code::Unavailable);
    let left_nothing = patience.total.is_zero() && entry.claim.record.fence == 0;
    if let Some(redis) = entry.redis
        && entered.is_err()
        && !left_nothing
        && !cannot_be_asked
    {
        // Gives up the place in the line in Redis, or the lock; if this fails, the server forgets
        // both by itself.
        let _ = redis.release(Releaser::Holder(&entry.claim.record.token), None);
    }
    entered
}

struct Entry<'a> {
    machine: &'a mut Machine,
    redis: Option<&'a mut Redis>,
    claim: &'a mut Claim,
    patience: &'a Patience,
    stop: &'a Stop,
    teller: Teller<'a>,
}

impl Entry<'_> {
    fn enter(&mut self) -> Result<Option<SinceBoot>> {
        let mut line = WaitingLine::new(&self.machine.lock().file);
        loop {
            self.stop.check()?;
            let failed = |e: std::io::Error| self.machine.lock().failed(e);
            if !self.patience.total.is_zero() {
                line.queue_up().map_err(failed)?;
            }
            let ahead = line.ahead().map_err(failed)?;
            let (obstacle, mut busy) = match ahead.next {
                Some(place) => {
                    self.machine.step_back()?;
                    (
                        Obstacle::Waiter(place),
                        Busy { held: self.machine.held()?, ahead: 0, is_elsewhere: false },
                    )
                }
                None => match self.machine.try_door()? {
                    Some(InTheWay::Removed) => {
                        self.machine.open_again()?;
                        line = WaitingLine::new(&self.machine.lock().file);
                        continue;
                    }
                    Some(obstacle) => {
                        let held = self.machine.held_beyond(&obstacle, ahead.count == 0)?;
                        (Obstacle::Here(obstacle), Busy { held, ahead: 0, is_elsewhere: false })
                    }
                    None => {
                        // Whoever reads the record wants to know since when others are kept out,
                        // not since when the holder has wanted the lock.
                        self.claim.record.since = host::now();
                        match self.try_redis()? {
                            Ok(valid_until) => {
                                self.machine.go_in(&self.claim.holder, &mut self.claim.record)?;
                                return Ok(valid_until);
                            }
                            Err(refused) => {
                                self.machine.step_back()?;
                                refused
                            }
                        }
                    }
                },
            };
            busy.ahead += ahead.count;
            if self.patience.is_over() {
                return Err(match obstacle {
                    Obstacle::Unready(failure) => failure,
                    _ => self.teller.refusal(busy, self.patience),
                });
            }
            if !matches!(obstacle, Obstacle::Unready(_)) {
                self.teller.tell(busy);
            }
            self.wait_for(obstacle, &mut line)?;
        }
    }

    /// Tries once to take the lock in Redis, if one is configured. Returns the time since boot at
    /// which that lock ends, or else what is in the way.
    fn try_redis(&mut self) -> Result<std::result::Result<Option<SinceBoot>, (Obstacle, Busy)>> {
        let Some(redis) = &mut self.redis else { return Ok(Ok(None)) };
        // The server counts the lock's time from a later moment, so that the time counted from here
        // is over first.
        let asked = SinceBoot::now();
        Ok(match redis.attempt(self.claim, !self.patience.total.is_zero(), self.stop)? {
            Attempt::Taken(fence) => {
                self.claim.record.fence = fence;
                Ok(Some(asked + self.claim.ttl))
            }
            Attempt::Busy(busy) => Err((Obstacle::Elsewhere, *busy)),
            Attempt::Unready(failure) => {
                Err((Obstacle::Unready(failure), Busy { held: None, ahead: 0, is_elsewhere: true }))
            }
        })
    }

    fn wait_for(&mut self, obstacle: Obstacle, line: &mut WaitingLine) -> Result<()> {
        let (stop, deadline) = (self.stop, self.patience.deadline);
        match obstacle {
            Obstacle::Waiter(place) => line.wait_for(place, stop, deadline),
            Obstacle::Here(obstacle) => self.machine.wait_for(obstacle, stop, deadline),
            Obstacle::Elsewhere => match &mut self.redis {
                Some(redis) => redis.wait_for_change(self.claim, stop, deadline),
                None => Ok(()),
            },
            Obstacle::Unready(_) => {
                wait(&[], stop, deadline.min(Instant::now() + UNREADY_PAUSE));
                Ok(())
            }
        }
    }
}
