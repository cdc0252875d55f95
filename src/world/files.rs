//! Files that concern gpuctl alone: they are private, never opened through a link, and replaced as
//! a whole.

use super::wait::{Aside, Stop, wait};
use rustix::fs::{Access, FlockOperation, Mode, OFlags, access, flock};
use std::fs::{self, DirBuilder, File};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Creates a folder of mode 0700. If there is one already, makes sure that it belongs to this user
/// and that nobody else may write to it (`PermissionDenied`).
pub fn private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made?,
    }
    is_private(path)
}

/// Makes sure that a folder belongs to this user and that nobody else may write to it, without
/// creating it.
pub fn is_private(path: &Path) -> Result<()> {
    let meta = path.symlink_metadata()?;
    if !meta.is_dir() {
        return Err(Error::new(ErrorKind::NotADirectory, "it is not a folder, or a link to one"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        let why = "it belongs to another user, or others may write to it";
        return Err(Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Makes sure that a private folder exists and may be written to, or that it could be created,
/// without creating it.
pub fn could_be_private(path: &Path) -> Result<()> {
    let may_write = |folder: &Path| access(folder, Access::WRITE_OK | Access::EXEC_OK);
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(may_write(nearest(path))?),
        Err(e) => Err(e),
        Ok(_) => is_private(path).and_then(|()| Ok(may_write(path)?)),
    }
}

/// Returns the path itself if it exists, else the nearest folder above it that does.
pub fn nearest(path: &Path) -> &Path {
    let there = path.ancestors().find(|above| above.exists());
    there.unwrap_or(Path::new(if path.is_absolute() { "/" } else { "." }))
}

/// Opens a regular file in a private folder. If there is none, creates it with mode 0600.
pub fn open(path: &Path, flags: OFlags) -> Result<File> {
    regular(path, flags | OFlags::CREATE)
}

/// Opens an existing regular file for reading.
pub fn existing(path: &Path) -> Result<File> {
    regular(path, OFlags::RDONLY)
}

/// Makes sure that a regular file could be opened for writing, or that there is none yet, without
/// creating it.
pub fn could_be_written(path: &Path) -> Result<()> {
    match regular(path, OFlags::WRONLY) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        opened => opened.map(drop),
    }
}

/// Opens a regular file without following a link or blocking: a FIFO in its place would never open
/// otherwise.
fn regular(path: &Path, flags: OFlags) -> Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// A file that is locked by flock(2) until this is dropped. The lock ends even if a process that
/// was forked meanwhile has inherited the file and has not executed another program yet.
pub struct Locked(pub File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file does the same if no other process has it open.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Replaces the content of a file. A reader sees the old content or the new one, whenever gpuctl is
/// killed. The caller has to keep two writers apart.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, |_| Ok(()))
}

/// Replaces the content of a file so that it stays replaced even if the machine loses its power.
pub fn replace_durably(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, File::sync_all)?;
    sync_folder(path)
}

fn put(path: &Path, content: &[u8], finish: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let new = draft(path);
    let written = fill(&new, content, finish).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Writes a file that belongs to the user, such as the configuration, as a new file of mode 0600,
/// and creates missing folders. This is safe even if others may create files of any name beside it.
pub fn put_in_place(path: &Path, content: &[u8]) -> Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = draft(&path.with_extension(std::process::id().to_string()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let written = rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::from)
        .and_then(|file| {
            let mut file = File::from(file);
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Creates a file along with its content, so that nobody sees the file without it. Fails if the
/// file exists (`AlreadyExists`).
pub fn create(path: &Path, content: &[u8]) -> Result<()> {
    let new = draft(path);
    // A draft that was left over may be another name of the existing file.
    let _ = fs::remove_file(&new);
    let made = fill(&new, content, |_| Ok(())).and_then(|()| fs::hard_link(&new, path));
    // The first error is the one to report.
    let _ = fs::remove_file(&new);
    made
}

/// Removes a file so that it stays removed even if the machine loses its power. A missing file is
/// no error.
pub fn remove_durably(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => sync_folder(path),
    }
}

/// Appends a whole line to a file. A line that was cut short before stays a line of its own.
pub fn append_line(path: &Path, line: &str) -> Result<()> {
    append(path, line).map(drop)
}

/// Appends a whole line to a file. Once this returns, the line stays there even if the machine
/// loses its power.
pub fn append_line_durably(path: &Path, line: &str) -> Result<()> {
    append(path, line)?.sync_all()?;
    sync_folder(path)
}

fn append(path: &Path, line: &str) -> Result<File> {
    let mut file = open(path, OFlags::RDWR | OFlags::APPEND)?;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    let before = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{before}{line}\n").as_bytes())?;
    Ok(file)
}

fn fill(new: &Path, content: &[u8], finish: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let mut file = open(new, OFlags::WRONLY | OFlags::TRUNC)?;
    file.write_all(content)?;
    finish(&file)
}

fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Locks a file, which gives the right to change what lies beside it until the result is dropped.
/// Returns `None` if another process holds the lock for longer than `limit`, or if `stop` happens
/// first.
pub fn lock(path: &Path, limit: Duration, stop: &Stop) -> Result<Option<Locked>> {
    // Opened for reading, so that a process that watches the folder is not woken.
    let file = open(path, OFlags::RDONLY)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Some(Locked(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(e) => return Err(e.into()),
    }
    let locking = Aside::begin(move || {
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Locked(file))
    });
    let locking = locking.map_err(Error::other)?;
    wait(&[locking.ended().fd()], stop, Instant::now() + limit);
    locking.take().transpose()
}
