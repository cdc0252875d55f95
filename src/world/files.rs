//! Files that are nobody's business but ours: made private, never through a link, replaced whole.

use super::wait::{Aside, Stop, wait};
use rustix::fs::{Access, FlockOperation, Mode, OFlags, access, flock};
use std::fs::{self, DirBuilder, File};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Makes a folder of mode 0700, or makes sure that the one that is there is ours alone
/// (`PermissionDenied`).
pub fn private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made?,
    }
    is_private(path)
}

/// Makes sure that a folder is ours alone, and makes none.
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

/// Makes sure that a private folder is there that may be written to, or that one could be made, and
/// makes none.
pub fn could_be_private(path: &Path) -> Result<()> {
    let may_write = |folder: &Path| access(folder, Access::WRITE_OK | Access::EXEC_OK);
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(may_write(nearest(path))?),
        Err(e) => Err(e),
        Ok(_) => is_private(path).and_then(|()| Ok(may_write(path)?)),
    }
}

/// The nearest folder above that is there.
pub fn nearest(path: &Path) -> &Path {
    let there = path.ancestors().find(|above| above.exists());
    there.unwrap_or(Path::new(if path.is_absolute() { "/" } else { "." }))
}

/// Opens a regular file of mode 0600 in a private folder, made if need be.
pub fn open(path: &Path, flags: OFlags) -> Result<File> {
    regular(path, flags | OFlags::CREATE)
}

/// Opens one that is there for reading.
pub fn existing(path: &Path) -> Result<File> {
    regular(path, OFlags::RDONLY)
}

/// Makes sure that one could be opened for writing, or could be made, and makes none.
pub fn could_be_written(path: &Path) -> Result<()> {
    match regular(path, OFlags::WRONLY) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        opened => opened.map(drop),
    }
}

/// Opens a regular file without blocking: a FIFO in its place would never open otherwise.
fn regular(path: &Path, flags: OFlags) -> Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// A file that is locked by flock(2) until this is dropped, also where a process has inherited it
/// that was forked meanwhile and has not become another program yet.
pub struct Locked(pub File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing it does the same where nobody else has it.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Gives a file new content: a reader sees the old one or the new one, whenever we are killed.
/// Two writers at once have to be kept apart by the caller.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, |_| Ok(()))
}

/// Replaces a file's content so that it also stays replaced when the machine loses its power.
pub fn replace_durably(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, File::sync_all)?;
    sync_folder(path)
}

fn put(path: &Path, content: &[u8], finish: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let new = draft(path);
    let written = fill(&new, content, finish).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Gives a file of a person's its content, private as a new one, in folders that are made if need be:
/// also where others may make files of any name beside it.
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
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Makes a file with its content, or fails where there is one (`AlreadyExists`): nobody sees it
/// without.
pub fn create(path: &Path, content: &[u8]) -> Result<()> {
    let new = draft(path);
    // One that was left over may be another name of the file that is there.
    let _ = fs::remove_file(&new);
    let made = fill(&new, content, |_| Ok(())).and_then(|()| fs::hard_link(&new, path));
    // The first error is the one to tell.
    let _ = fs::remove_file(&new);
    made
}

/// Removes a file, so that it stays removed when the machine loses its power.
pub fn remove_durably(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => sync_folder(path),
    }
}

/// Adds a whole line to a file. One that was cut short before stays a line of its own.
pub fn append_line(path: &Path, line: &str) -> Result<()> {
    append(path, line).map(drop)
}

/// Adds a whole line to a file, which stays there once this returns, also when the machine loses its power.
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

/// The right to change what lies beside a file, until the result is dropped: `None` where another
/// process has had it for longer than `limit`.
pub fn lock(path: &Path, limit: Duration, stop: &Stop) -> Result<Option<Locked>> {
    // Opened for reading: who watches the folder is not to be woken by it.
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
