//! A claim on the lock: who wants it, for what, and in Redis for how long.

use super::record::Record;
use super::redis::Redis;
use crate::error::Result;
use crate::model::Pid;
use crate::world::process;
use std::time::Duration;

/// Of a lock that is to last, while it is not known to be taken.
const BEFORE_KEPT: Duration = Duration::from_secs(30);

/// Who wants the lock, for what, and for how long.
pub struct Claim {
    pub holder: String,
    /// Its fence is 0 until the lock is taken.
    pub record: Record,
    pub ttl: Duration,
}

impl Claim {
    pub fn new(holder: &str, record: Record, ttl: Duration) -> Claim {
        Claim { holder: holder.to_owned(), record, ttl }
    }

    /// Has it end with us for now.
    pub fn end_with_us(&mut self) {
        let me = process::Id::of(std::process::id() as Pid);
        (self.record.pid, self.record.pid_start) = (me.map(|me| me.pid), me.map(|me| me.start));
        self.ttl = self.ttl.min(BEFORE_KEPT);
    }

    /// Has the lock know the command that is about to work under it; false where it is not the
    /// claim's any more.
    pub fn name_command(&mut self, redis: &mut Redis, command: process::Id) -> Result<bool> {
        self.record.group = Some(command);
        redis.renew(self)
    }
}
