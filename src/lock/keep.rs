//! Giving back the lock in Redis: not before the last process has ended that keeps the machine's,
//! and was the holder's. A companion renews it until then.

use super::claim::{RENEWAL, TTL};
use super::machine::Machine;
use super::redis::Redis;
use crate::config::Config;
use crate::error::Result;
use crate::world::wait::{Stop, wait};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;

/// A lock in Redis that is to be kept for as long as processes keep the machine's lock beside it.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    url: String,
    key: String,
    token: String,
    file: PathBuf,
}

impl Kept {
    /// `None` where no Redis is configured.
    pub fn new(config: &Config, token: &str) -> Option<Kept> {
        let url = config.lock.place.redis.clone()?;
        let (key, file) = (config.lock.key.clone(), config.lock.place.file.clone());
        Some(Kept { url, key, token: token.to_owned(), file })
    }

    /// Renews the lock until nobody else has the machine's, and gives it back then; or until it is
    /// another's.
    pub fn keep(&self) -> Result<()> {
        let mut redis = Redis::new(&self.url, &self.key);
        if let Some(machine) = Machine::find(&self.file)? {
            machine.forget_inherited()?;
            let alone = machine.alone()?;
            loop {
                wait(&[alone.ended().fd()], &Stop::never(), Instant::now() + RENEWAL);
                if alone.ended().happened() {
                    break;
                }
                // A server that cannot be reached may come back.
                if let Ok(false) = redis.renew(&self.token, TTL, true, false) {
                    return Ok(());
                }
            }
        }
        redis.release(Some(&self.token)).map(drop)
    }
}
