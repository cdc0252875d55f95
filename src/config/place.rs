//! The place where the GPU lock is kept: a file on this machine, and Redis if one is configured.

use super::file;
use redis::Client;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Folders for the file of the machine's lock: the first, or the second if the first is missing or
/// not open to all users. In both, every user can create files and nobody can remove another's;
/// they outlive every login, and cleaners leave locked files in them alone.
const FOLDERS: [&str; 2] = ["/run/lock", "/var/tmp"];

/// Place where the GPU lock is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Path of the file of the machine's lock.
    pub file: PathBuf,
    /// URL of the Redis that keeps the lock between machines, or `None` if the machine's lock alone
    /// counts. The client has accepted this URL, which may contain a password.
    pub redis: Option<String>,
    /// Source of the lock's URL.
    pub source: UrlSource,
}

/// Source of the lock's URL. `$REDIS_URL` may be meant for another program altogether, so messages
/// about the lock say if its URL comes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UrlSource {
    /// No URL is given, so the machine's lock alone counts.
    Nowhere,
    Config,
    GpuctlLockUrl,
    RedisUrl,
}

impl UrlSource {
    /// Returns the environment variable that the URL comes from, or `None` if it is from no
    /// variable.
    pub fn variable(self) -> Option<&'static str> {
        match self {
            UrlSource::Nowhere | UrlSource::Config => None,
            UrlSource::GpuctlLockUrl => Some("GPUCTL_LOCK_URL"),
            UrlSource::RedisUrl => Some("REDIS_URL"),
        }
    }
}

impl fmt::Display for UrlSource {
    /// Writes the source as messages name it: "lock.url", "$REDIS_URL" or "the default".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.variable()) {
            (_, Some(variable)) => write!(f, "${variable}"),
            (UrlSource::Config, _) => f.write_str("lock.url"),
            _ => f.write_str("the default"),
        }
    }
}

impl Place {
    /// Returns ", in Redis (from $REDIS_URL)", to be appended to a message about the lock. The text
    /// is empty if the lock is not in Redis, or if a setting of gpuctl's own puts it there.
    pub fn by_chance(&self) -> String {
        match (&self.redis, self.source) {
            (Some(_), source @ UrlSource::RedisUrl) => format!(", in Redis (from {source})"),
            _ => String::new(),
        }
    }

    /// Resolves the place from the lock's table, whose URL comes from `source`. If there is no URL,
    /// the machine's lock alone counts. Fails with what is wrong with the URL.
    pub fn of(lock: &file::LockTable, source: UrlSource) -> std::result::Result<Place, String> {
        let file = machines(&lock.key);
        let Some(url) = &lock.url else { return Ok(Place { file, redis: None, source }) };
        match url.split_once("://") {
            Some(("redis" | "rediss" | "redis+unix", _)) => match Client::open(url.as_str()) {
                Ok(_) => Ok(Place { file, redis: Some(url.to_owned()), source }),
                Err(error) => {
                    // The error's kind, which follows, adds nothing, and its detail might show a
                    // password.
                    let told = error.to_string();
                    let why = told.split(" - ").next().unwrap_or_default();
                    Err(format!(
                        "not a Redis URL ({why}); the form is redis://HOST:PORT/DB or redis+unix:///PATH?db=DB"
                    ))
                }
            },
            Some(("file", path)) if path.starts_with('/') && !path.ends_with('/') => {
                Ok(Place { file: PathBuf::from(path), redis: None, source })
            }
            _ => Err("not a redis://, rediss://, redis+unix:// or file:///path URL".to_owned()),
        }
    }
}

/// Returns the path of the file of the machine's lock, which is the same for every user.
fn machines(key: &str) -> PathBuf {
    let is_for_all = |folder: &&str| {
        let meta = Path::new(folder).metadata();
        meta.is_ok_and(|meta| meta.is_dir() && meta.permissions().mode() & 0o1777 == 0o1777)
    };
    let [first, other] = FOLDERS;
    let folder = if is_for_all(&first) { first } else { other };
    Path::new(folder).join(format!("gpuctl-{}.lock", key.replace('/', "_")))
}
