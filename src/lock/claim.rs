//! A claim on the lock (who wants it, for what, and in Redis for how long), and the time limits of
//! the lock in Redis.

use super::machine::Machine;
use super::record::Record;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use std::time::{Duration, Instant};

/// Time for which a lock in Redis lasts after each renewal, and so the longest time for which a
/// holder that has vanished holds up processes on other machines.
pub const TTL: Duration = Duration::from_secs(30);

/// Pause between two renewals of the lock in Redis.
pub const RENEWAL: Duration = Duration::from_secs(10);

/// Pause between two tries to renew the lock while the server cannot be reached.
pub const RETRY: Duration = Duration::from_millis(500);

/// How long before the end of the lock's time in Redis its holder has ended its work.
pub const MARGIN: Duration = Duration::from_secs(2);

/// Longest grace of a command under a lock in Redis: what is left of the lock's time after a
/// renewal, less the pause until the next one and the time that it takes to end the work.
const MOST_GRACE: Duration = Duration::from_secs(15);

/// A claim on the lock: who wants it, for what, and for how long.
pub struct Claim {
    pub holder: String,
    /// The record to be written; its fence is 0 until the lock is taken.
    pub record: Record,
    pub ttl: Duration,
    /// Moment at which the wait for the lock began.
    pub since: Instant,
}

impl Claim {
    /// Creates a claim whose record names this machine's lock, which the claimant has to have
    /// before it takes the lock in Redis.
    pub fn new(holder: &str, record: Record, ttl: Duration, machine: &Machine) -> Result<Claim> {
        let record = Record { place: machine.lock().place()?, ..record };
        Ok(Claim { holder: holder.to_owned(), record, ttl, since: Instant::now() })
    }
}

/// The condition under which a lock in Redis is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lock's time is not over yet.
    InTime,
    /// The lock's time may be over: the lock is renewed if nobody else has taken it since.
    Late,
    /// The lock is renewed only if nobody waits for it.
    Unwanted,
    /// The renewal is the last one: nothing works under the lock any more, so that its second
    /// record ends.
    Last,
}

/// The party that gives up a lock in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releaser<'a> {
    /// The holder with this token, which has ended all that worked under it.
    Holder(&'a str),
    /// A caller with the token of a lock that was taken by hand, which does not know what works
    /// under it.
    Bearer(&'a str),
    /// A caller without a token, which takes away whatever lock there is.
    Anybody,
}

/// Refuses a grace so long that it would end after the lock's time in Redis if it began when the
/// lock was lost.
pub fn check_grace(grace: Duration) -> Result<()> {
    if grace <= MOST_GRACE {
        return Ok(());
    }
    let why = format!(
        "--grace {} does not fit into the time of the lock in Redis ({}, renewed every {})",
        Span(grace),
        Span(TTL),
        Span(RENEWAL)
    );
    Err(Failure::new(Code::Usage, why).hint(format!("{} at most", Span(MOST_GRACE))))
}
