//! Output of native services: one file each under the state folder, private, never through a
//! link; and the tail that a failed start shows.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::fs::{Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 * 1024;

pub fn path_of(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join("logs").join(format!("{service}.log"))
}

/// Opens a service's log for appending, and tells its length so far.
pub fn open(state_dir: &Path, service: &str) -> Result<(File, u64)> {
    private_dir(state_dir)?;
    private_dir(&state_dir.join("logs"))?;
    let path = path_of(state_dir, service);
    let failed = |e: std::io::Error| unwritable(&path, &e);
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(unwritable(&path, &"it is not a regular file"));
    }
    Ok((file, meta.len()))
}

/// Makes a folder of mode 0700, or makes sure that the one that is there is ours.
fn private_dir(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| unwritable(path, &e);
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed)?,
    }
    let meta = path.symlink_metadata().map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() {
        return Err(unwritable(path, &"it is not a folder, or a link to one"));
    }
    if meta.uid() != me || meta.mode() & 0o022 != 0 {
        return Err(unwritable(path, &"it belongs to another user, or others may write to it"));
    }
    Ok(())
}

fn unwritable(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Io, format!("cannot use {} for logs: {why}", path.display()))
        .hint("mend it, or choose another folder with GPUCTL_STATE_DIR")
}

/// Gives a failure what a service has written to its log after `from`.
pub fn attach_file(failure: Failure, path: &Path, from: u64) -> Failure {
    attach(failure, tail(path, from)).hint(format!("its log: {}", path.display()))
}

fn tail(path: &Path, from: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_BYTES))))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    // A log that cannot be read must not hide the failure that it would explain.
    last_lines(&read().unwrap_or_default())
}

/// The last lines of a command's output, for logs that a manager keeps.
pub fn last_lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| line.chars().filter(|c| !c.is_control() || *c == '\t').collect())
        .collect()
}

/// Gives a failure the last lines of a log: the last one in its message, and all of them as hints
/// where there are more.
pub fn attach(mut failure: Failure, lines: Vec<String>) -> Failure {
    if let Some(last) = lines.last() {
        failure.message = format!("{}; its last output was: {last}", failure.message);
    }
    if lines.len() > 1 {
        failure.hints.extend(lines.iter().map(|line| format!("log: {line}")));
    }
    failure.detail("log", lines)
}
