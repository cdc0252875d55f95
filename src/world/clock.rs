//! Time that neither a suspend nor a step of the calendar's clock bends.

use serde::{Deserialize, Serialize};
use std::ops::Add;
use std::time::Duration;

/// A moment, told by the time since boot, a suspend included; nobody can set that clock. It means
/// something within one boot only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinceBoot(Duration);

impl SinceBoot {
    /// The moment that has come.
    pub fn now() -> SinceBoot {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        SinceBoot(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    /// The moment that is that long after the boot.
    pub const fn after_boot(time: Duration) -> SinceBoot {
        SinceBoot(time)
    }

    /// Returns how long after the boot it is.
    pub fn time(self) -> Duration {
        self.0
    }

    /// Returns how long ago it was; zero of one that is to come.
    pub fn elapsed(self) -> Duration {
        SinceBoot::now().since(self)
    }

    /// Returns how long it is until then; zero of one that has come.
    pub fn left(self) -> Duration {
        self.since(SinceBoot::now())
    }

    /// Returns how long it is after an earlier moment; zero of one before that.
    pub fn since(self, earlier: SinceBoot) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Tells whether it has come.
    pub fn has_come(self) -> bool {
        SinceBoot::now() >= self
    }

    /// Returns the moment so long before it, or the boot where that is later.
    pub fn earlier(self, by: Duration) -> SinceBoot {
        SinceBoot(self.0.saturating_sub(by))
    }
}

impl Add<Duration> for SinceBoot {
    type Output = SinceBoot;

    fn add(self, later: Duration) -> SinceBoot {
        SinceBoot(self.0 + later)
    }
}
