//! Checks of the state folder and its content, and of the kernel.

use super::Examined;
use super::check::{Check, CheckId};
use crate::world::files;
use rustix::fs::statvfs;
use std::fs;
use std::path::{Path, PathBuf};

/// Free space in bytes (100 MiB) below which writing to the disk may soon fail.
const SPACE: u64 = 100 * 1024 * 1024;
const LOGS: u64 = 1024 * 1024 * 1024;

/// First version of Linux that can wait for pidfds and has close_range with its flags.
const KERNEL: (u32, u32) = (5, 11);

const FIX: &str =
    "make it yours alone (chown, chmod go-w), or choose another folder with GPUCTL_STATE_DIR";

pub fn examine(case: &Examined) -> Vec<Check> {
    let Some(path) = &case.state_dir else {
        let message = "no folder for state: neither HOME nor XDG_STATE_HOME is set";
        return vec![Check::fail(CheckId::StateFolder, message, "set GPUCTL_STATE_DIR")];
    };
    vec![folder(CheckId::StateFolder, path, FIX), space(path), logs(&path.join("logs"))]
}

/// Checks whether a private folder exists and can be written to, or can be created. Creates
/// nothing.
pub fn folder(id: CheckId, path: &Path, fix: &str) -> Check {
    let shown = path.display();
    match (files::could_be_private(path), path.symlink_metadata().is_ok()) {
        (Ok(()), true) => Check::pass(id, shown.to_string()),
        (Ok(()), false) => Check::pass(id, format!("{shown} will be created when it is needed")),
        (Err(e), true) => Check::fail(id, format!("{shown}: {e}"), fix),
        (Err(e), false) => {
            let above = files::nearest(path).display();
            Check::fail(id, format!("{shown} cannot be created in {above}: {e}"), fix)
        }
    }
}

fn space(path: &Path) -> Check {
    let id = CheckId::StateSpace;
    let disk = match statvfs(files::nearest(path)) {
        Ok(disk) => disk,
        Err(e) => return Check::skip(id, format!("cannot be determined: {e}")),
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let told = format!("{} MB free", free / (1024 * 1024));
    match free < SPACE {
        true => Check::warn(
            id,
            format!("only {told} on the disk that holds {}", path.display()),
            "free some space there, or choose another folder with GPUCTL_STATE_DIR",
        ),
        false => Check::pass(id, told),
    }
}

fn logs(folder: &Path) -> Check {
    let sizes = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| {
        let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((meta.len(), entry.path()))
    });
    let sizes: Vec<(u64, PathBuf)> = sizes.collect();
    let total: u64 = sizes.iter().map(|(size, _)| size).sum();
    let told = format!("{} MB of logs", total / (1024 * 1024));
    match sizes.iter().max() {
        Some((_, largest)) if total > LOGS => Check::warn(
            CheckId::StateLogs,
            format!("{told}; the largest is {}", largest.display()),
            // A server that is writing to the log goes on at its new end.
            format!("truncate --size 0 {}", largest.display()),
        ),
        _ => Check::pass(CheckId::StateLogs, told),
    }
}

/// Checks whether the kernel is new enough.
pub fn kernel(_: &Examined) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let message = format!("Linux {release}");
    vec![match version < KERNEL {
        true => {
            Check::fail(CheckId::SystemKernel, message, "update it: gpuctl needs 5.11 or later")
        }
        false => Check::pass(CheckId::SystemKernel, message),
    }]
}
