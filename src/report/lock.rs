//! The GPU lock: in `status`, and what the `lock` commands say.

use super::Report;
use crate::config::{Config, Place};
use crate::error::Result;
use crate::lock::{Claim, Held, name_of};
use crate::screen::Screen;
use crate::screen::text::on_one_line;
use serde::Serialize;

/// Who holds the lock. Figures that are not known are `None`.
#[derive(Serialize)]
pub struct LockReport {
    pub backend: &'static str,
    pub holder: Option<String>,
    /// Seconds; -1: it never ends by itself; -2: no lock.
    pub ttl: Option<i64>,
    /// Host and PID of the holder, as far as they are known.
    pub owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl LockReport {
    pub fn new(config: &Config, found: &Result<Option<Held>>) -> LockReport {
        let backend = match config.lock.place {
            Place::Redis(_) => "redis",
            Place::File(_) | Place::Nowhere => "file",
        };
        let held = found.as_ref().ok().and_then(Option::as_ref);
        LockReport {
            backend,
            holder: held.map(|held| held.holder.clone()),
            ttl: match found {
                Ok(held) => Some(held.as_ref().map_or(-2, Held::ttl)),
                Err(_) => None,
            },
            owner: held.and_then(Held::owner),
            error: found.as_ref().err().map(|failure| failure.message.clone()),
        }
    }

    /// "free" or who holds it, for people.
    pub fn describe(&self) -> String {
        let Some(holder) = &self.holder else {
            return match &self.error {
                Some(error) => format!("unknown: {error}"),
                None => "free".to_owned(),
            };
        };
        let owner = self.owner.as_ref().map(|owner| format!(" ({owner})")).unwrap_or_default();
        let left = match self.ttl {
            Some(left @ 0..) => format!("{left} s left"),
            _ => "without an end".to_owned(),
        };
        format!("held by {}{owner}, {left}", name_of(holder))
    }
}

/// `lock status`.
#[derive(Serialize)]
pub struct LockStatusReport {
    #[serde(flatten)]
    lock: LockReport,
    fence: Option<u64>,
}

impl LockStatusReport {
    pub fn new(config: &Config, held: Option<&Held>) -> LockStatusReport {
        LockStatusReport {
            fence: held.and_then(|held| held.record.as_ref()).map(|record| record.fence),
            lock: LockReport::new(config, &Ok(held.cloned())),
        }
    }
}

impl Report for LockStatusReport {
    fn text(&self, _: &Screen) -> String {
        let fence = self.fence.map(|fence| format!(", fence {fence}")).unwrap_or_default();
        format!("{}{fence}\n", on_one_line(&self.lock.describe()))
    }
}

/// `lock acquire`: the token alone, for people and `$(...)`.
#[derive(Serialize)]
pub struct AcquiredReport {
    token: String,
    fence: u64,
    holder: String,
    /// Seconds; -1: it never ends by itself.
    ttl: i64,
}

impl AcquiredReport {
    pub fn new(claim: &Claim) -> AcquiredReport {
        AcquiredReport {
            token: claim.record.token.clone(),
            fence: claim.record.fence,
            holder: claim.holder.clone(),
            ttl: claim.ttl.as_secs() as i64,
        }
    }

    /// Of a lock that the caller holds already.
    pub fn of(held: &Held, token: &str) -> AcquiredReport {
        AcquiredReport {
            token: token.to_owned(),
            fence: held.record.as_ref().map_or(0, |record| record.fence),
            holder: held.holder.clone(),
            ttl: held.ttl(),
        }
    }
}

impl Report for AcquiredReport {
    fn text(&self, _: &Screen) -> String {
        format!("{}\n", self.token)
    }
}

/// `lock release`.
#[derive(Serialize)]
pub struct ReleasedReport {
    released: bool,
    /// Who holds it, where it was not released.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip)]
    is_left_to_run: bool,
}

impl ReleasedReport {
    pub fn new(released: bool, held: Option<&Held>) -> ReleasedReport {
        let holder = held.map(|held| held.holder.clone());
        ReleasedReport { released, holder, is_left_to_run: false }
    }

    /// Of a lock under which a command works.
    pub fn left_to_run(held: &Held) -> ReleasedReport {
        ReleasedReport { is_left_to_run: true, ..ReleasedReport::new(false, Some(held)) }
    }
}

impl Report for ReleasedReport {
    fn text(&self, _: &Screen) -> String {
        match (self.released, &self.holder) {
            (true, _) => "released\n".to_owned(),
            (false, None) => "nothing to release: the lock is free\n".to_owned(),
            (false, Some(_)) if self.is_left_to_run => {
                "not released: it is the lock of `gpuctl run`, and ends with it\n".to_owned()
            }
            (false, Some(holder)) => {
                let holder = on_one_line(name_of(holder));
                format!("not released: the lock is held by {holder}, under another token\n")
            }
        }
    }
}
