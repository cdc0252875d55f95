//! How long this process holds a lock; the work under the lock checks that before every step.

use super::event::Event;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::clock::SinceBoot;
use rustix::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How late a process may notice that a deadline has passed; a process that is later was stopped or
/// suspended meanwhile.
pub const LATE: Duration = Duration::from_secs(1);

/// Callback that asks whether this process still holds a lock whose time may be over; it returns
/// the new end, or `None` if that cannot be confirmed.
type Late = Box<dyn Fn() -> Option<SinceBoot> + Send + Sync>;

/// How long this process holds a lock: until a time that only a renewal moves, or until the lock is
/// seen to belong to another. The time is measured by the clock since boot, which also runs while
/// gpuctl is stopped or the machine is suspended.
pub struct Lease {
    lost: Arc<Event>,
    late: OnceLock<Late>,
    /// End of the lease in milliseconds since boot; `u64::MAX` if it needs no renewal.
    valid_until: AtomicU64,
    why: OnceLock<String>,
    /// Text about where the lock is, for the failure message; empty if the message is not to say
    /// so.
    place: String,
}

impl Lease {
    /// Creates a lease that ends at `valid_until`. Its failures read "the GPU lock is lost"
    /// followed by `place`.
    pub fn until(valid_until: SinceBoot, place: String) -> Result<Arc<Lease>> {
        let valid_until = AtomicU64::new(milliseconds(valid_until));
        let (late, why) = (OnceLock::new(), OnceLock::new());
        Ok(Arc::new(Lease { lost: Event::new()?, late, valid_until, why, place }))
    }

    /// Creates a lease that needs no renewal.
    pub fn endless() -> Result<Arc<Lease>> {
        Lease::until(SinceBoot::after_boot(Duration::from_millis(u64::MAX)), String::new())
    }

    /// Sets a callback that `check` calls if the lease ended longer than `LATE` ago, because this
    /// process was stopped or suspended. `ask` returns the new end if the lock is still held, or
    /// else `None`.
    pub fn when_late(&self, ask: impl Fn() -> Option<SinceBoot> + Send + Sync + 'static) {
        let _ = self.late.set(Box::new(ask));
    }

    /// Sets the new end of the lease after a renewal.
    pub fn extend(&self, valid_until: SinceBoot) {
        self.valid_until.store(milliseconds(valid_until), Ordering::SeqCst);
    }

    /// Returns the end of the lease, or `None` if it needs no renewal.
    pub fn valid_until(&self) -> Option<SinceBoot> {
        let until = self.valid_until.load(Ordering::SeqCst);
        (until != u64::MAX).then(|| SinceBoot::after_boot(Duration::from_millis(until)))
    }

    /// Marks the lock as lost: it belongs to another now, or to nobody. `why` becomes part of the
    /// failure.
    pub fn lose(&self, why: &str) {
        // The first reason is the one that counts.
        let _ = self.why.set(why.to_owned());
        self.lost.set();
    }

    /// Returns a descriptor that is readable once the lock is lost.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.lost.fd()
    }

    /// Fails once this process does not hold the lock any more, as far as that is known.
    pub fn check(&self) -> Result<()> {
        let is_past = |by: Duration| {
            let until = self.valid_until().filter(|_| !self.lost.happened());
            until.is_some_and(|until| (until + by).has_come())
        };
        if is_past(LATE)
            && let Some(end) = self.late.get().and_then(|ask| ask())
        {
            self.extend(end);
        }
        if is_past(Duration::ZERO) {
            self.lose("it was not renewed in time, so that others may have taken it");
        }
        match self.why.get() {
            None => Ok(()),
            Some(why) => {
                let text = format!("the GPU lock is lost{}: {why}", self.place);
                Err(Failure::new(Code::LockLost, text).hint(
                    "nothing has been done since; check `gpuctl status`, then run the command again",
                ))
            }
        }
    }
}

fn milliseconds(moment: SinceBoot) -> u64 {
    moment.time().as_millis() as u64
}
