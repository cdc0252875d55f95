//! Where the GPU lock is kept.

use super::file;
use redis::Client;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Folders in which every user may make files and nobody may remove another's, that outlive every
/// login, and in which cleaners leave alone what is locked; the first one that is there.
const FOLDERS: [&str; 2] = ["/run/lock", "/var/tmp"];

/// The GPU lock is kept here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file of the machine's lock.
    pub file: PathBuf,
    /// Its URL is one that the client takes, and may hold a password.
    pub redis: Option<String>,
}

impl Place {
    /// Reads the place from its URL; without one it is the machine's lock alone.
    pub fn of(lock: &file::LockTable) -> std::result::Result<Place, String> {
        let file = machines(&lock.key);
        let Some(url) = &lock.url else { return Ok(Place { file, redis: None }) };
        match url.split_once("://") {
            Some(("redis" | "rediss" | "redis+unix", _)) => match Client::open(url.as_str()) {
                Ok(_) => Ok(Place { file, redis: Some(url.to_owned()) }),
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
                Ok(Place { file: PathBuf::from(path), redis: None })
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
