//! Giving back the lock in Redis: not before the last process has ended that keeps the machine's,
//! and was the holder's. A companion renews it until then.

use super::claim::{RENEWAL, TTL};
use super::machine::Machine;
use super::redis::{Redis, Releaser, Renewal};
use crate::config::{Config, Lock, Place};
use crate::error::Result;
use crate::world::host::since_boot;
use crate::world::wait::{Stop, wait};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A lock in Redis that is to be kept for as long as processes keep the machine's lock beside it.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    place: Place,
    key: String,
    token: String,
}

impl Kept {
    /// `None` where no Redis is configured.
    pub fn new(config: &Config, token: &str) -> Option<Kept> {
        let Lock { place, key, .. } = config.lock.clone();
        place.redis.is_some().then(|| Kept { place, key, token: token.to_owned() })
    }

    /// Renews the lock for a gpuctl that does not; until when it lasts now, in time since boot. `None`
    /// where that cannot be done, or where others want it and it has its time still.
    pub fn hold_on(&self, is_late: bool) -> Option<Duration> {
        let asked = since_boot();
        let how = if is_late { Renewal::Late } else { Renewal::Unwanted };
        let renewed = Redis::at(&self.place, &self.key)?.renew(&self.token, TTL, how);
        renewed.is_ok_and(|is_held| is_held).then_some(asked + TTL)
    }

    /// Renews the lock until nobody else has the machine's, and gives it back then; or until it is
    /// another's.
    pub fn keep(&self) -> Result<()> {
        let Some(mut redis) = Redis::at(&self.place, &self.key) else { return Ok(()) };
        if let Some(machine) = Machine::find(&self.place.file)? {
            machine.forget_inherited()?;
            let alone = machine.alone()?;
            loop {
                wait(&[alone.ended().fd()], &Stop::never(), Instant::now() + RENEWAL);
                if alone.ended().happened() {
                    break;
                }
                // A server that cannot be reached may come back.
                if let Ok(false) = redis.renew(&self.token, TTL, Renewal::Late) {
                    return Ok(());
                }
            }
            // Of a lock by hand that is not over.
            let left = machine.held().ok().flatten();
            if left.is_some_and(|held| held.is_of(&self.token)) {
                return redis.renew(&self.token, Duration::ZERO, Renewal::Last).map(drop);
            }
        }
        redis.release(Releaser::Holder(&self.token), None).map(drop)
    }
}
