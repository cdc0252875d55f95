//! The file of the machine's lock, and the record in it of who has taken the lock last.
//!
//! Only who has the door writes a record, so that a reader meets no more than one writer, and that
//! one for microseconds: what two looks find the same is whole.

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

/// No record is longer; bytes behind it are locked only.
pub const RECORD_LIMIT: u64 = 1 << 16;

/// Shells keep the first ten descriptors for their scripts, which would close ours by using it.
const BEYOND_SHELLS: i32 = 10;

/// A record begins with this, and its number.
const SEQ: &str = "{\"seq\":\"";
const SEQ_AT: usize = SEQ.len();

/// Nobody sleeps longer without a look at the file: a change may be made by one that is killed
/// before it tells of it.
const LOOK: Duration = Duration::from_secs(1);

/// A content that changes more often is no record of ours.
const MOST_LOOKS: usize = 1000;

/// The content of the lock's file: who has taken the lock last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// It stands where who sleeps on the file is told of a change: the digits of a number that
    /// rises with every record.
    #[serde(skip)]
    pub seq: [u8; SharedWord::SIZE],
    pub holder: String,
    #[serde(flatten)]
    pub record: Record,
}

impl Written {
    /// Parses the first line; `None` for anything but a whole record. What stands behind it is left
    /// of a longer one, by a gpuctl that was killed.
    pub fn parse(text: &str) -> Option<Written> {
        let line = text.split_once('\n')?.0;
        let seq = line.as_bytes().get(SEQ_AT..SEQ_AT + SharedWord::SIZE)?.try_into().ok()?;
        Some(Written { seq, ..serde_json::from_str(line).ok()? })
    }

    /// Returns it as the file has it, with its number.
    pub fn text(&self, seq: u16) -> String {
        let record = serde_json::to_string(self).expect("a record of plain fields");
        format!("{SEQ}{seq:04x}\",{}\n", &record[1..])
    }
}

/// The lock's file, opened.
#[derive(Clone)]
pub struct LockFile {
    pub path: PathBuf,
    pub file: Arc<File>,
}

impl LockFile {
    /// Opens the lock's file, which is made for everybody where there is none.
    pub fn open(path: &Path) -> Result<LockFile> {
        let opened = match existing(path, OFlags::RDWR) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make(path).and_then(|()| existing(path, OFlags::RDWR))
            }
            opened => opened,
        };
        opened.map(|file| LockFile::of(path, file)).map_err(|e| unusable(path, &e))
    }

    /// Whether it can be opened, or be made where there is none.
    pub fn could_open(path: &Path) -> Result<()> {
        if LockFile::there(path, OFlags::RDWR)?.is_none() {
            let folder = files::nearest(path.parent().unwrap_or(Path::new("/")));
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|e| unusable(folder, &e.into()))?;
        }
        Ok(())
    }

    /// Opens the one that is there.
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

    /// What names this lock among all machines'. Another file of the same name is made anew only
    /// when nobody has this one open any more, who could be its holder.
    pub fn place(&self) -> Result<String> {
        let meta = self.file.metadata().map_err(|e| self.failed(e))?;
        Ok(format!("{}:{:x}:{:x}", boot_id(), meta.dev(), meta.ino()))
    }

    /// Whether its name is another file's by now, or nobody's.
    pub fn is_removed(&self) -> Result<bool> {
        let there = fs::symlink_metadata(&self.path).ok();
        let ours = self.file.metadata().map_err(|e| self.failed(e))?;
        Ok(there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())))
    }

    pub fn failed(&self, error: impl Into<Error>) -> Failure {
        unusable(&self.path, &error.into())
    }

    /// The record of who has taken the lock last; `None`: nobody has yet.
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

    /// Writes a record, by who has the door, and wakes who waits for that. In one go, so that the
    /// first line is the old one or the new one, whenever we are killed.
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
        // It is written. Where files cannot be mapped, who waits looks by itself.
        if let Ok(word) = SharedWord::of(&self.file, SEQ_AT) {
            word.wake();
        }
        Ok(())
    }

    /// Happens when another record than this one is written. It may happen without that: one that
    /// was killed wakes nobody, nor can anybody where files cannot be mapped.
    pub fn changed(&self, written: &Written) -> Result<Aside<()>> {
        let (word, seq) = (SharedWord::of(&self.file, SEQ_AT), written.seq);
        Aside::begin(move || match word {
            Ok(word) => word.wait(seq, LOOK),
            Err(_) => thread::sleep(LOOK),
        })
    }

    /// Empties it, where it holds what nobody can read.
    pub fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(|e| self.failed(e))
    }
}

/// Opens a file that is there, without following links or waiting for what is no file. It does not make one:
/// where others may write too, the kernel lets nobody open the file of another in that way
/// (fs.protected_regular).
fn existing(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP) => return Err(Error::other("it is a link")),
        opened => opened?,
    };
    // Before there is a lock: to close a descriptor ends those of this process.
    let file = File::from(fcntl_dupfd_cloexec(&opened, BEYOND_SHELLS).unwrap_or(opened));
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::other("it is not a regular file")),
    }
}

/// Makes an empty file that everybody may open, all at once, and the folder of one's own for it.
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
    // The first error is the one to tell.
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
