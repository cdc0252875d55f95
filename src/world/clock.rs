//! Time since boot, which neither a suspend nor a change of the wall clock distorts.

use serde::{Deserialize, Serialize};
use std::ops::Add;
use std::time::Duration;

/// A moment, given as the time since boot including any suspend. Nobody can set that clock, and a
/// moment has a meaning only within one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinceBoot(Duration);

impl SinceBoot {
    /// Returns the current moment.
    pub fn now() -> SinceBoot {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        SinceBoot(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    /// Returns the moment that is `time` after boot.
    pub const fn after_boot(time: Duration) -> SinceBoot {
        SinceBoot(time)
    }

    /// Returns the time from boot to this moment.
    pub fn time(self) -> Duration {
        self.0
    }

    /// Returns how long ago this moment was, or zero if it is still to come.
    pub fn elapsed(self) -> Duration {
        SinceBoot::now().since(self)
    }

    /// Returns how long it is until this moment, or zero if it has come.
    pub fn left(self) -> Duration {
        self.since(SinceBoot::now())
    }

    /// Returns the time from an earlier moment to this one, or zero if the other moment is later.
    pub fn since(self, earlier: SinceBoot) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Reports whether this moment has come.
    pub fn has_come(self) -> bool {
        SinceBoot::now() >= self
    }

    /// Returns the moment that is `by` before this one, but not before boot.
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
