//! A claim on the lock: who wants it, for what, and in Redis for how long.

use super::machine::Machine;
use super::record::Record;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use std::time::{Duration, Instant};

/// A lock that is renewed lasts this long: so long a holder that has vanished may hold up others elsewhere.
pub const TTL: Duration = Duration::from_secs(30);

/// Two renewals are this far apart.
pub const RENEWAL: Duration = Duration::from_secs(10);

/// Two tries to renew are this far apart where the server cannot be reached.
pub const RETRY: Duration = Duration::from_millis(500);

/// A holder has given up so long before the end of its time.
pub const MARGIN: Duration = Duration::from_secs(2);

/// A grace may be this long: what is left of a lock's time after a renewal, less the next one and what
/// it takes to end the work.
const MOST_GRACE: Duration = Duration::from_secs(15);

/// Who wants the lock, for what, and for how long.
pub struct Claim {
    pub holder: String,
    /// Its fence is 0 until the lock is taken.
    pub record: Record,
    pub ttl: Duration,
    /// When it began to wait.
    pub since: Instant,
}

impl Claim {
    /// One that who has this machine's lock makes good.
    pub fn new(holder: &str, record: Record, ttl: Duration, machine: &Machine) -> Result<Claim> {
        let record = Record { place: machine.lock().place()?, ..record };
        Ok(Claim { holder: holder.to_owned(), record, ttl, since: Instant::now() })
    }
}

/// How a lock is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    InTime,
    /// Its time may have run out: it is the token's again where nobody has come since.
    Late,
    /// Only where nobody waits for it.
    Unwanted,
    /// It is the last one: nothing works under the lock any more, so that its second record ends.
    Last,
}

/// Who gives a lock up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releaser<'a> {
    /// Who has ended all that worked under its token.
    Holder(&'a str),
    /// Who knows the token of a lock that was taken by hand.
    Bearer(&'a str),
    Anybody,
}

/// Refuses a grace that ends after a lock's time in Redis, if it begins when the lock is lost.
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
