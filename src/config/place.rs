//! Where the GPU lock is kept.

use super::{Environment, file};
use redis::Client;
use std::path::PathBuf;

/// Where the GPU lock is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// With its URL, which is one that the client takes, and may hold a password.
    Redis(String),
    File(PathBuf),
    /// No URL is given, and there is no folder for a file.
    Nowhere,
}

impl Place {
    /// From its URL, or without one the place of a file on this machine.
    pub fn of(lock: &file::Lock, environment: &Environment) -> std::result::Result<Place, String> {
        if let Some(url) = &lock.url {
            return Place::of_url(url);
        }
        let name = format!("{}.lock", lock.key.replace('/', "_"));
        let folder = environment.runtime_dir();
        Ok(folder.map_or(Place::Nowhere, |folder| Place::File(folder.join(name))))
    }

    fn of_url(url: &str) -> std::result::Result<Place, String> {
        match url.split_once("://") {
            Some(("redis" | "rediss" | "redis+unix", _)) => match Client::open(url) {
                Ok(_) => Ok(Place::Redis(url.to_owned())),
                Err(error) => {
                    // The kind behind it says nothing, and a detail might show a password.
                    let told = error.to_string();
                    let why = told.split(" - ").next().unwrap_or_default();
                    Err(format!(
                        "no Redis URL ({why}); it is redis://HOST:PORT/DB or redis+unix:///PATH?db=DB"
                    ))
                }
            },
            Some(("file", path)) if path.starts_with('/') && !path.ends_with('/') => {
                Ok(Place::File(PathBuf::from(path)))
            }
            _ => Err("not a redis://, rediss://, redis+unix:// or file:///path URL".to_owned()),
        }
    }
}
