//! The file `gpu_maintenance.lock` with HOLDER:PID:TIMESTAMP, for other programs that look for it;
//! and the release of this lock and the GPU lock on an operator's order.

use super::ledger::{Ledger, later};
use crate::config::{Canary, Config};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::lock::{self, Release};
use crate::model::Pid;
use crate::world::files;
use crate::world::host;
use crate::world::process;
use serde_json::json;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// The maintenance lock's file while this process holds it; dropping the value removes it.
pub struct Maintenance {
    path: PathBuf,
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        // A file that is left over is recognised as stale by its PID.
        let _ = fs::remove_file(&self.path);
    }
}

/// Creates the maintenance lock's file, or returns `None` if none is configured. Fails if another
/// program's file is there (exit code 75).
pub fn begin(canary: &Canary) -> Result<Option<Maintenance>> {
    let Some(path) = &canary.maintenance_lock else { return Ok(None) };
    clear_stale(canary)?;
    // Seconds since the epoch: other forms of a time contain colons, which separate the fields.
    let content = format!("canary:{}:{}\n", std::process::id(), host::now().as_second());
    match files::create(path, content.as_bytes()) {
        Ok(()) => Ok(Some(Maintenance { path: path.clone() })),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            Err(held(canary, path, &fs::read_to_string(path).unwrap_or_default()))
        }
        Err(e) => Err(unusable(path, &e)),
    }
}

/// Fails if another program's file is there and is not stale (exit code 75).
pub fn refuse_held(canary: &Canary) -> Result<()> {
    match (&canary.maintenance_lock, read(canary)?) {
        (Some(path), Some(text)) if !is_stale(&text) => Err(held(canary, path, &text)),
        _ => Ok(()),
    }
}

/// Returns the failure for a file that another program holds. How long that will last is unknown,
/// so it suggests the longest time of a trial as the time until the next try.
fn held(canary: &Canary, path: &Path, text: &str) -> Failure {
    Failure::new(Code::LockBusy, format!("{} is held by {}", path.display(), text.trim()))
        .hint("wait for that program; if it is gone: `gpuctl canary unlock --force`")
        .detail("next", later(canary.limits.reserve))
}

/// Removes the maintenance lock's file if the process that it names is gone.
pub fn clear_stale(canary: &Canary) -> Result<()> {
    match (&canary.maintenance_lock, read(canary)?) {
        (Some(path), Some(text)) if is_stale(&text) => {
            fs::remove_file(path).map_err(|e| unusable(path, &e))
        }
        _ => Ok(()),
    }
}

fn read(canary: &Canary) -> Result<Option<String>> {
    let Some(path) = &canary.maintenance_lock else { return Ok(None) };
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unusable(path, &e)),
    }
}

/// Reports whether the process that a file names is gone. A process that this user may not look at,
/// or that has been given the same PID since, counts as living.
fn is_stale(text: &str) -> bool {
    let is_over = |pid| !process::Id::of(pid).unwrap_or(process::Id { pid, start: 0 }).is_alive();
    pid_in(text).is_some_and(is_over)
}

/// Returns the PID that a maintenance lock's file names, or `None` if it names none.
pub fn pid_in(text: &str) -> Option<Pid> {
    text.split(':').nth(1)?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Releases the GPU lock and removes the maintenance lock's file, even if others hold them, and
/// reports whether there was either. Fails with `lock_busy` if processes keep the GPU lock.
pub fn unlock(config: &Config, canary: &Canary, ledger: &Ledger) -> Result<bool> {
    let holder = lock::look(config).ok().flatten().map(|held| held.holder);
    let released = lock::release(config, None)?;
    let cleared = clear(canary)?;
    let night = canary.limits.window.night(host::now());
    let facts = json!({"run_id": null, "candidate_id": null, "budget_used": ledger.used(night).ok(), "reason": holder});
    ledger.audit(night, "unlocked", facts.as_object().cloned().unwrap_or_default())?;
    match released {
        Release::Kept(held) => {
            let why = format!("the GPU lock is held by {}", held.describe());
            Err(Failure::new(Code::LockBusy, why)
                .hint("it ends with the processes that keep it, and no sooner"))
        }
        released => Ok(cleared || matches!(released, Release::Released)),
    }
}

fn clear(canary: &Canary) -> Result<bool> {
    let Some(path) = &canary.maintenance_lock else { return Ok(false) };
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(unusable(path, &e)),
    }
}

fn unusable(path: &Path, error: &Error) -> Failure {
    Failure::new(Code::Io, format!("cannot use {}: {error}", path.display()))
        .hint("correct canary.maintenance_lock")
}
