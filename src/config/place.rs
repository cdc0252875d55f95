//! Where the GPU lock is kept.

use super::file;
use redis::Client;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Folders in which every user may make files and nobody may remove another's, that outlive every
/// login, and in which cleaners leave alone what is locked; the first one that is there.
const FOLDERS: [&str; 2] = ["/run/lock", "/var/tmp"];

/// The GPU lock is kept here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file of the machine's lock.
    pub file: PathBuf,
    /// Its URL is one that the client takes, and may hold a password.
    pub redis: Option<String>,
    pub source: UrlSource,
}

/// Where the URL of the lock is from. `$REDIS_URL` may be meant for another program altogether, so
/// whoever is told of the lock's place is told this too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UrlSource {
    /// There is none: the machine's lock alone counts.
    Nowhere,
    Config,
    GpuctlLockUrl,
    RedisUrl,
}

impl UrlSource {
    /// The variable of the environment that it is.
    pub fn variable(self) -> Option<&'static str> {
        match self {
            UrlSource::Nowhere | UrlSource::Config => None,
            UrlSource::GpuctlLockUrl => Some("GPUCTL_LOCK_URL"),
            UrlSource::RedisUrl => Some("REDIS_URL"),
        }
    }
}

impl fmt::Display for UrlSource {
    /// "lock.url", "$REDIS_URL"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.variable()) {
            (_, Some(variable)) => write!(f, "${variable}"),
            (UrlSource::Config, _) => f.write_str("lock.url"),
            _ => f.write_str("the default"),
        }
    }
}

impl Place {
    /// ", in Redis (from $REDIS_URL)", to be put after whatever is told of the lock; empty where it
    /// is in Redis because somebody has said so of gpuctl, or not at all.
    pub fn by_chance(&self) -> String {
        match (&self.redis, self.source) {
            (Some(_), source @ UrlSource::RedisUrl) => format!(", in Redis (from {source})"),
            _ => String::new(),
        }
    }

    /// Reads the place from its URL; without one it is the machine's lock alone.
    pub fn of(lock: &file::LockTable, source: UrlSource) -> std::result::Result<Place, String> {
        let file = machines(&lock.key);
        let Some(url) = &lock.url else { return Ok(Place { file, redis: None, source }) };
        match url.split_once("://") {
            Some(("redis" | "rediss" | "redis+unix", _)) => match Client::open(url.as_str()) {
                Ok(_) => Ok(Place { file, redis: Some(url.to_owned()), source }),
                Err(error) => {
                    // The kind behind it says nothing, and a detail might show a password.
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

/// The file of the machine's lock, the same for everybody.
fn machines(key: &str) -> PathBuf {
    let is_for_all = |folder: &&str| {
        let meta = Path::new(folder).metadata();
        meta.is_ok_and(|meta| meta.is_dir() && meta.permissions().mode() & 0o1777 == 0o1777)
    };
    let [first, other] = FOLDERS;
    let folder = if is_for_all(&first) { first } else { other };
    Path::new(folder).join(format!("gpuctl-{}.lock", key.replace('/', "_")))
}
