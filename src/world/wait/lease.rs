//! How long a lock is ours: what is done under it asks before every step.

use super::event::Event;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::clock::SinceBoot;
use rustix::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Who comes so long after a time that it has waited for was stopped or suspended meanwhile.
pub const LATE: Duration = Duration::from_secs(1);

/// Asks whether a lock whose time may be over is still ours, and until when.
type Late = Box<dyn Fn() -> Option<SinceBoot> + Send + Sync>;

/// How long a lock is ours: until a time that only a renewal moves, or until it is seen to be
/// another's. It is told by the clock since boot, which also runs while gpuctl is stopped or the
/// machine sleeps.
pub struct Lease {
    lost: Arc<Event>,
    late: OnceLock<Late>,
    /// Milliseconds since boot.
    valid_until: AtomicU64,
    why: OnceLock<String>,
    /// Where the lock is, as far as that is to be told.
    place: String,
}

impl Lease {
    /// `place` is told after "the GPU lock is lost".
    pub fn until(valid_until: SinceBoot, place: String) -> Result<Arc<Lease>> {
        let valid_until = AtomicU64::new(milliseconds(valid_until));
        let (late, why) = (OnceLock::new(), OnceLock::new());
        Ok(Arc::new(Lease { lost: Event::new()?, late, valid_until, why, place }))
    }

    /// One that needs no renewal.
    pub fn endless() -> Result<Arc<Lease>> {
        Lease::until(SinceBoot::after_boot(Duration::from_millis(u64::MAX)), String::new())
    }

    /// Who was stopped beyond its end asks first.
    pub fn when_late(&self, ask: impl Fn() -> Option<SinceBoot> + Send + Sync + 'static) {
        let _ = self.late.set(Box::new(ask));
    }

    /// A renewal has moved its end.
    pub fn extend(&self, valid_until: SinceBoot) {
        self.valid_until.store(milliseconds(valid_until), Ordering::SeqCst);
    }

    /// Tells until when it is valid; `None` if it needs no renewal.
    pub fn valid_until(&self) -> Option<SinceBoot> {
        let until = self.valid_until.load(Ordering::SeqCst);
        (until != u64::MAX).then(|| SinceBoot::after_boot(Duration::from_millis(until)))
    }

    /// It is another's now, or nobody's.
    pub fn lose(&self, why: &str) {
        // The first reason is the one that counts.
        let _ = self.why.set(why.to_owned());
        self.lost.set();
    }

    /// Readable once it is lost.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.lost.fd()
    }

    /// Fails once the lock is not ours any more, as far as that is known.
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
