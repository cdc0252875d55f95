//! Giving back the lock in Redis, which has to wait until the last of the holder's processes that
//! keep the machine's lock has ended. A companion renews the lock in Redis until then.

use super::claim::{MARGIN, RENEWAL, RETRY, Releaser, Renewal, TTL};
use super::line::WaitingLine;
use super::machine::Machine;
use super::redis::Redis;
use super::rest::end_command;
use crate::config::{Config, Lock, Place};
use crate::error::Result;
use crate::world::clock::SinceBoot;
use crate::world::wait::{Stop, wait};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long processes that a command has left in the background may take to end before they are
/// killed.
const LEFT_GRACE: Duration = Duration::from_secs(10);

/// A lock in Redis that has to be kept as long as processes keep the machine's lock beside it.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    place: Place,
    key: String,
    token: String,
}

impl Kept {
    /// Describes the lock that is held under `token`. Returns `None` if no Redis is configured.
    pub fn new(config: &Config, token: &str) -> Option<Kept> {
        let Lock { place, key, .. } = config.lock.clone();
        place.redis.is_some().then(|| Kept { place, key, token: token.to_owned() })
    }

    /// Renews the lock once for a gpuctl that does not renew it, and returns the time since boot
    /// until which it lasts now. Returns `None` if that is not possible, or if others want the lock
    /// and its time is not over yet.
    pub fn hold_on(&self, is_late: bool) -> Option<SinceBoot> {
        let asked = SinceBoot::now();
        let how = if is_late { Renewal::Late } else { Renewal::Unwanted };
        let renewed = Redis::at(&self.place, &self.key)?.renew(&self.token, TTL, how);
        renewed.is_ok_and(|is_held| is_held).then_some(asked + TTL)
    }

    /// Renews the lock until nobody else has the machine's lock, and then gives it back. Returns
    /// `false` if the lock is lost before, so that the processes that are left have to be ended.
    pub fn keep(&self) -> Result<bool> {
        let Some(mut redis) = Redis::at(&self.place, &self.key) else { return Ok(true) };
        let mut next = None;
        if let Some(machine) = Machine::find(&self.place.file)? {
            machine.forget_inherited()?;
            let alone = machine.alone()?;
            let (mut end, mut pause) = (SinceBoot::now() + TTL, Duration::ZERO);
            loop {
                wait(&[alone.ended().fd()], &Stop::never(), Instant::now() + pause);
                if alone.ended().happened() {
                    break;
                }
                let asked = SinceBoot::now();
                match redis.renew(&self.token, TTL, Renewal::Late) {
                    Ok(true) => (end, pause) = (asked + TTL, RENEWAL),
                    Ok(false) => return Ok(false),
                    Err(_) if SinceBoot::now() + MARGIN + LEFT_GRACE >= end => return Ok(false),
                    // The server may come back.
                    Err(_) => pause = RETRY,
                }
            }
            // A lock by hand that is not over keeps its time.
            let left = machine.held().ok().flatten();
            if left.is_some_and(|held| held.is_of(&self.token)) {
                redis.renew(&self.token, Duration::ZERO, Renewal::Last)?;
                return Ok(true);
            }
            next = WaitingLine::next(machine.lock()).ok().flatten();
        }
        redis.release(Releaser::Holder(&self.token), next.as_ref())?;
        Ok(true)
    }

    /// Ends the processes that work on under the lock, after the lock was lost.
    pub fn end_the_rest(&self) -> Result<()> {
        end_command(None, &self.token, LEFT_GRACE).map(drop)
    }
}
