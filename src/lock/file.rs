//! The file of the machine's lock, and the record in it of who took the lock last.
//!
//! Only a process that has the door writes a record, so that a reader meets at most one writer, and
//! that one for microseconds: content that two looks find the same is whole.

use super::record::Record;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::files;
use crate::world::host::{boot_id, random_hex};
use crate::world::wait::Aside;
use crate::world::word::SharedWord;
use rustix::fs::{Access, Mode, OFlags, access};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Greatest length of a record in bytes; the file's bytes behind it are only locked, never written.
pub const RECORD_LIMIT: u64 = 1 << 16;

/// Lowest number of the lock's descriptor: shells keep the first ten descriptors for their scripts,
/// which would close the lock's by using its number.
const BEYOND_SHELLS: i32 = 10;

/// Text at the beginning of a record, before the digits of its number.
const SEQ: &str = "{\"seq\":\"";
const SEQ_AT: usize = SEQ.len();

/// Longest time that a waiter sleeps without a look at the file: a process that changes the file
/// may be killed before it wakes the waiters.
const LOOK: Duration = Duration::from_secs(1);

/// Greatest number of times that a file is read again because its content has changed; content that
/// changes more often is no record of gpuctl.
const MOST_LOOKS: usize = 1000;

/// The content of the lock's file, which says who took the lock last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Number of the record in four hexadecimal digits, one higher than that of the record before.
    /// Waiters sleep on these bytes of the file until they change.
    #[serde(skip)]
    pub seq: [u8; SharedWord::SIZE],
    pub holder: String,
    #[serde(flatten)]
    pub record: Record,
}

impl Written {
    /// Parses the first line; returns `None` for anything but a whole record. Bytes behind the line
    /// are what a gpuctl that was killed has left of a longer record.
    pub fn parse(text: &str) -> Option<Written> {
        let line = text.split_once('\n')?.0;
        let seq = line.as_bytes().get(SEQ_AT..SEQ_AT + SharedWord::SIZE)?.try_into().ok()?;
        Some(Written { seq, ..serde_json::from_str(line).ok()? })
    }

    /// Returns the record as it is written to the file, with the number `seq`.
    pub fn text(&self, seq: u16) -> String {
        let record = serde_json::to_string(self).expect("a record of plain fields");
        format!("{SEQ}{seq:04x}\",{}\n", &record[1..])
    }
}

/// The file of the machine's lock, open.
#[derive(Clone)]
pub struct LockFile {
    pub path: PathBuf,
    pub file: Arc<File>,
}

impl LockFile {
    /// Opens the lock's file for reading and writing; creates it for all users if there is none.
    pub fn open(path: &Path) -> Result<LockFile> {
        let opened = match existing(path, OFlags::RDWR) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make(path).and_then(|()| existing(path, OFlags::RDWR))
            }
            opened => opened,
        };
        opened.map(|file| LockFile::of(path, file)).map_err(|e| unusable(path, &e))
    }

    /// Fails if the lock's file cannot be opened or, if there is none, created.
    pub fn could_open(path: &Path) -> Result<()> {
        if LockFile::there(path, OFlags::RDWR)?.is_none() {
            let folder = files::nearest(path.parent().unwrap_or(Path::new("/")));
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|e| unusable(folder, &e.into()))?;
        }
        Ok(())
    }

    /// Opens the lock's file if there is one; otherwise returns `None`.
    pub fn there(path: &Path, flags: OFlags) -> Result<Option<LockFile>> {
        match existing(path, flags) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unusable(path, &e)),
            Ok(file) => Ok(Some(LockFile::of(path, file))),
        }
    }

    fn of(path: &Path, file: File) -> LockFile {
        LockFile { path: path.to_owned(), file: Arc::new(file) }
    }

    /// Returns a name for this lock that is unique among those of all machines: the boot, device
    /// and inode of its file. The inode number goes to another file only when no process that could
    /// be the holder has this one open any more.
    pub fn place(&self) -> Result<String> {
        let meta = self.file.metadata().map_err(|e| self.failed(e))?;
        Ok(format!("{}:{:x}:{:x}", boot_id(), meta.dev(), meta.ino()))
    }

    /// Reports whether the file was removed: its path names another file by now, or none.
    pub fn is_removed(&self) -> Result<bool> {
        let there = fs::symlink_metadata(&self.path).ok();
        let ours = self.file.metadata().map_err(|e| self.failed(e))?;
        Ok(there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())))
    }

    /// Returns the failure that an error of the file means to a user.
    pub fn failed(&self, error: impl Into<Error>) -> Failure {
        unusable(&self.path, &error.into())
    }

    /// Returns the record of who took the lock last, or `None` if nobody has taken it yet. Fails if
    /// the record is damaged.
    pub fn read(&self) -> Result<Option<Written>> {
        let mut bytes = self.content()?;
        for _ in 0..MOST_LOOKS {
            let before = std::mem::replace(&mut bytes, self.content()?);
            if bytes == before {
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        let written = std::str::from_utf8(&bytes[..end]).ok().and_then(Written::parse);
        written.map(Some).ok_or_else(|| {
            let message = format!("the lock's record {} is damaged", self.path.display());
            Failure::new(Code::Config, message)
                .hint("when nothing uses the GPU: `gpuctl lock release --force` clears it")
        })
    }

    fn content(&self) -> Result<Vec<u8>> {
        let length = self.file.metadata().map_err(|e| self.failed(e))?.len();
        let mut bytes = vec![0; length.min(RECORD_LIMIT) as usize];
        let length = self.file.read_at(&mut bytes, 0).map_err(|e| self.failed(e))?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Writes a record and wakes the processes that wait for one; the caller must have the door.
    /// The record is written in one go, so that the first line is the old one or the new one
    /// whenever this process is killed.
    pub fn write(&self, holder: &str, record: &Record) -> Result<()> {
        let put = || {
            let mut last = [0; SharedWord::SIZE];
            self.file.read_at(&mut last, SEQ_AT as u64)?;
            let last = str::from_utf8(&last).ok().and_then(|seq| u16::from_str_radix(seq, 16).ok());
            let written = Written {
                seq: [0; SharedWord::SIZE],
                holder: holder.to_owned(),
                record: record.clone(),
            };
            let text = written.text(last.map_or(0, |last| last.wrapping_add(1)));
            self.file.write_all_at(text.as_bytes(), 0)?;
            self.file.set_len(text.len() as u64)
        };
        put().map_err(|e| self.failed(e))?;
        // The record is written. If files cannot be mapped, waiters look by themselves.
        if let Ok(word) = SharedWord::of(&self.file, SEQ_AT) {
            word.wake();
        }
        Ok(())
    }

    /// Begins to wait until the file holds another record than `written`. The wait may end without
    /// that, after `LOOK` at the latest: a writer that was killed wakes nobody, and nobody can be
    /// woken if files cannot be mapped.
    pub fn changed(&self, written: &Written) -> Result<Aside<()>> {
        let (word, seq) = (SharedWord::of(&self.file, SEQ_AT), written.seq);
        Aside::begin(move || match word {
            Ok(word) => word.wait(seq, LOOK),
            Err(_) => thread::sleep(LOOK),
        })
    }

    /// Empties the file, to discard a record that cannot be read.
    pub fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(|e| self.failed(e))
    }
}

/// Opens an existing regular file, without following a link and without blocking on another kind of
/// file. Does not create one: the kernel lets nobody open another user's file with `O_CREAT` in a
/// folder that others may write to (fs.protected_regular).
fn existing(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP) => return Err(Error::other("it is a link")),
        opened => opened?,
    };
    // Done before there is a lock: closing a descriptor of a file ends this process's locks on it.
    let file = File::from(fcntl_dupfd_cloexec(&opened, BEYOND_SHELLS).unwrap_or(opened));
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::other("it is not a regular file")),
    }
}

/// Creates an empty file that is open to everybody (mode 666) as soon as it has its name, and a
/// folder for it (mode 700) if there is none. Succeeds if another process has created the file
/// first.
fn make(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let random = random_hex::<8>().map_err(Error::other)?;
    let draft = folder.join(format!(".gpuctl-{random}.new"));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(&draft, flags, Mode::RUSR | Mode::WUSR)?;
    let made = rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666))
        .map_err(Error::from)
        .and_then(|()| fs::hard_link(&draft, path));
    // The first error is the one to report.
    let _ = fs::remove_file(&draft);
    match made {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn unusable(path: &Path, error: &Error) -> Failure {
    let message = format!("the lock {}: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::new(Code::Permission, message).hint(
            "everybody who is to take the lock has to be able to open it (chmod 666); or set lock.url to a file elsewhere",
        ),
        _ => Failure::new(Code::Io, message)
            .hint("mend it, or set lock.url to a file elsewhere: file:///path"),
    }
}
