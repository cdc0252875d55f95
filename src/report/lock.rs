//! Reports of the GPU lock: its part of `status`, and the results of the `lock` commands.

use super::Report;
use crate::config::Config;
use crate::error::Result;
use crate::lock::{Claim, Held, KeeperProcess, Release, name_of};
use crate::screen::Screen;
use crate::screen::layout::prose;
use crate::screen::text::on_one_line;
use schemars::JsonSchema;
use serde::Serialize;

/// What is known of a holder that is a gpuctl process.
#[derive(Serialize, JsonSchema)]
pub struct Details {
    pub command: String,
    pub user: String,
    pub since: i64,
    pub stopped: bool,
}

/// Who holds the GPU lock. Values that are not known are null.
#[derive(Serialize, JsonSchema)]
pub struct LockReport {
    pub backend: &'static str,
    pub holder: Option<String>,
    /// Seconds until the lock ends; -1 if it does not end by itself, -2 if nobody holds it.
    pub ttl: Option<i64>,
    /// Host and PID of the holder, or its host alone if the PID is not known.
    pub owner: Option<String>,
    /// What the holder runs, who called it, when it took the lock (seconds since 1970), and whether
    /// it is stopped by a signal.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// Processes that keep the lock after its holder has ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keepers: Vec<KeeperProcess>,
    #[serde(skip)]
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl LockReport {
    pub fn new(config: &Config, found: &Result<Option<Held>>) -> LockReport {
        let backend = if config.lock.place.redis.is_some() { "redis" } else { "file" };
        let aside = config.lock.place.by_chance();
        let held = found.as_ref().ok().and_then(Option::as_ref);
        let record = held.and_then(|held| Some((held.record.as_ref()?, held.is_stopped())));
        LockReport {
            backend,
            holder: held.map(|held| held.holder.clone()),
            ttl: match found {
                Ok(held) => Some(held.as_ref().map_or(-2, Held::ttl)),
                Err(_) => None,
            },
            owner: held.and_then(Held::owner),
            details: record.map(|(record, stopped)| Details {
                command: record.command.clone(),
                user: record.user.clone(),
                since: record.since.as_second(),
                stopped,
            }),
            keepers: held.map(|held| held.keepers.clone()).unwrap_or_default(),
            text: match found {
                Ok(None) => format!("free{aside}"),
                Ok(Some(held)) => format!("held by {}{aside}", held.describe()),
                Err(failure) => format!("unknown: {}", failure.message),
            },
            error: found.as_ref().err().map(|failure| failure.message.clone()),
        }
    }

    /// Describes the lock for people: "free", who holds it, or why that is unknown.
    pub fn describe(&self) -> &str {
        &self.text
    }
}

/// The answer to `lock status`.
#[derive(Serialize, JsonSchema)]
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
    fn text(&self, screen: &Screen) -> String {
        let fence = self.fence.map(|fence| format!(", fence {fence}")).unwrap_or_default();
        prose(&format!("{}{fence}", on_one_line(self.lock.describe())), screen)
    }
}

/// The answer to `lock acquire`; as text the token alone, for `$(...)`.
#[derive(Serialize, JsonSchema)]
pub struct AcquiredReport {
    token: String,
    fence: u64,
    holder: String,
    /// Seconds until the lock ends; -1 if it does not end by itself.
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

    /// Builds the report of a lock that the caller already holds under `token`.
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

/// The answer to `lock release`.
#[derive(Serialize, JsonSchema)]
pub struct ReleasedReport {
    released: bool,
    /// The holder of the lock, if it was not released.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip)]
    text: String,
}

impl ReleasedReport {
    pub fn new(config: &Config, released: &Release) -> ReleasedReport {
        let (holder, text) = match released {
            Release::Released => (None, "released".to_owned()),
            Release::Free => (None, "nothing to release: the lock is free".to_owned()),
            Release::LeftToRun(held) => {
                let text = "not released: it is the lock of `gpuctl run`, and ends with it";
                (Some(held), text.to_owned())
            }
            Release::Anothers(held) => {
                let holder = on_one_line(name_of(&held.holder));
                (
                    Some(held),
                    format!("not released: the lock is held by {holder}, under another token"),
                )
            }
            Release::Kept(held) => {
                let holder = on_one_line(&held.describe());
                (
                    Some(held),
                    format!(
                        "not released: it ends with the processes that keep it, and no sooner: held by {holder}"
                    ),
                )
            }
        };
        ReleasedReport {
            released: matches!(released, Release::Released),
            holder: holder.map(|held| held.holder.clone()),
            text: text + &config.lock.place.by_chance(),
        }
    }
}

impl Report for ReleasedReport {
    fn text(&self, screen: &Screen) -> String {
        prose(&self.text, screen)
    }
}
