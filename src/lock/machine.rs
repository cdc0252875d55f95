//! The machine's lock: the kernel's, on one file for everybody on the machine.
//!
//! *The door* is a flock(2) on the whole file. Who has it may go in as soon as nobody is inside.
//! *Inside* is everybody who has a shared lock on the file's first byte: the holder, and commands
//! of gpuctl that work under its token beside it. Both are locks of an open description: they are
//! inherited with the descriptor, and end when the last process that has it does, whatever becomes
//! of the others. So there is nobody to be proved dead, and nothing to be renewed.
//!
//! The file's content is a record of the last holder. It is there for people, with one exception:
//! what `lock acquire` has taken has no process that could hold a lock, so that its record is
//! honoured until its time, or the process that it was taken for, ends it. Only who has the door
//! makes a new record.

use super::keepers::keepers;
use super::record::{Ends, Held, Record};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::byte_locks::{self, LockMode, LockOwner};
use crate::world::files;
use crate::world::host::{boot_id, random_hex, since_boot, since_epoch};
use crate::world::wait::{Aside, Handle, Stop, Timer, wait};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{Access, FlockOperation, Mode, OFlags, access, flock, inotify};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the file that are locked; nothing is ever written for it.
const INSIDE: u64 = 1 << 16;
const RECORD: u64 = INSIDE + 1;

/// No record is longer.
const RECORD_LIMIT: u64 = INSIDE;

/// For what others keep locked for microseconds.
const MOMENT: Duration = Duration::from_secs(5);

/// Shells keep the first ten descriptors for their scripts, which would close ours by using it.
const BEYOND_SHELLS: i32 = 10;

/// The content of the lock's file: who has taken the lock last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub holder: String,
    #[serde(flatten)]
    pub record: Record,
}

impl Written {
    /// From its first line; `None` for anything but a whole record. What stands behind it is left
    /// of a longer one, by a gpuctl that was killed.
    pub fn parse(text: &str) -> Option<Written> {
        serde_json::from_str(text.split_once('\n')?.0).ok()
    }

    pub fn text(&self) -> String {
        format!("{}\n", serde_json::to_string(self).expect("a record of plain fields"))
    }
}

/// What keeps one from going in that is first in the line.
pub enum InTheWay {
    /// Somebody has the door.
    Door,
    /// Somebody is inside.
    Inside,
    /// A lock that was taken by hand.
    ByHand { written: Box<Written>, left: Duration, process: Option<Handle> },
    /// Somebody has removed the file.
    Removed,
}

/// The lock's file, opened.
pub struct Machine {
    path: PathBuf,
    file: Arc<File>,
    /// Tells of every change of the record. Kept, since the kernel takes 20 ms to close it.
    changes: Option<OwnedFd>,
}

impl Machine {
    /// Opens the lock's file, which is made for everybody where there is none.
    pub fn open(path: &Path) -> Result<Machine> {
        let open = || match existing(path, OFlags::RDWR) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make(path)?;
                existing(path, OFlags::RDWR)
            }
            opened => opened,
        };
        Ok(Machine::of(path, open().map_err(|e| unusable(path, &e))?))
    }

    /// Whether it can be opened, or be made where there is none.
    pub fn could_open(path: &Path) -> Result<()> {
        if Machine::find(path)?.is_none() {
            let folder = files::nearest(path.parent().unwrap_or(Path::new("/")));
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|e| unusable(folder, &e.into()))?;
        }
        Ok(())
    }

    /// Opens the one that is there, to change its record.
    pub fn find(path: &Path) -> Result<Option<Machine>> {
        Machine::there(path, OFlags::RDWR)
    }

    /// Opens it to look at it only; `None` where there is none, and so nobody has the lock.
    pub fn look_at(path: &Path) -> Result<Option<Machine>> {
        Machine::there(path, OFlags::RDONLY)
    }

    fn there(path: &Path, flags: OFlags) -> Result<Option<Machine>> {
        match existing(path, flags) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unusable(path, &e)),
            Ok(file) => Ok(Some(Machine::of(path, file))),
        }
    }

    fn of(path: &Path, file: File) -> Machine {
        let file = Arc::new(file);
        Machine { path: path.to_owned(), file, changes: None }
    }

    /// The descriptor that has the lock, and that whoever is to keep it inherits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What names this lock among all machines'. Another file of the same name is made anew only
    /// when nobody has this one open any more, who could be its holder.
    pub fn place(&self) -> Result<String> {
        let meta = self.file.metadata().map_err(|e| self.failed(e))?;
        Ok(format!("{}:{:x}:{:x}", boot_id(), meta.dev(), meta.ino()))
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn failed(&self, error: impl Into<Error>) -> Failure {
        unusable(&self.path, &error.into())
    }

    /// Opens the file anew that has been removed.
    pub fn open_again(&mut self) -> Result<()> {
        *self = Machine::open(&self.path)?;
        Ok(())
    }

    /// Takes the door and the right to be inside alone, if that can be done now; otherwise neither.
    pub fn try_door(&self) -> Result<Option<InTheWay>> {
        let obstacle = self.look_through_door()?;
        if obstacle.is_some() {
            self.step_back()?;
        }
        Ok(obstacle)
    }

    fn look_through_door(&self) -> Result<Option<InTheWay>> {
        match flock(&*self.file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Some(InTheWay::Door)),
            locked => locked.map_err(|e| self.failed(e))?,
        }
        let there = fs::symlink_metadata(&self.path).ok();
        let ours = self.file.metadata().map_err(|e| self.failed(e))?;
        if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
            return Ok(Some(InTheWay::Removed));
        }
        if let Some(written) = self.read()? {
            // Opened first: one that ends after that wakes us.
            let process = written.record.process();
            if let Some(left) = written.record.left() {
                return Ok(Some(InTheWay::ByHand { written: Box::new(written), left, process }));
            }
        }
        Ok((!self.try_inside(LockMode::Exclusive)?).then_some(InTheWay::Inside))
    }

    /// Gives up the door, and what it had led to.
    pub fn step_back(&self) -> Result<()> {
        self.leave()?;
        flock(&*self.file, FlockOperation::Unlock).map_err(|e| self.failed(e))
    }

    /// Who is in the way; `None`: one that is about to take the lock.
    pub fn held_beyond(&self, obstacle: &InTheWay, is_first: bool) -> Result<Option<Held>> {
        if let InTheWay::ByHand { written, left, .. } = obstacle {
            return Ok(Some(held_by_hand(Written::clone(written), *left)));
        }
        let held = self.held()?;
        if held.is_some() || !is_first {
            return Ok(held);
        }
        // Who has locked the file, and is no gpuctl.
        let keeper = keepers(&self.file, &self.path).into_iter().find(|one| one.name != "gpuctl");
        Ok(keeper.map(|keeper| Held {
            holder: keeper.describe(),
            record: None,
            ends: Ends::WithProcesses,
            keepers: Vec::new(),
        }))
    }

    /// Sleeps until that is not in the way any more, or may not be.
    pub fn wait_for(&mut self, obstacle: InTheWay, stop: &Stop, deadline: Instant) -> Result<()> {
        let file = self.file.clone();
        let ended = match obstacle {
            InTheWay::Removed => return Ok(()),
            InTheWay::ByHand { left, process, .. } => {
                return self.wait_for_hand(left, process.as_ref(), stop, deadline);
            }
            // One that is left behind ends with this process.
            InTheWay::Door => Aside::begin(move || {
                flock(&*file, FlockOperation::LockExclusive).map_err(Error::from)
            })?,
            InTheWay::Inside => self.alone()?,
        };
        wait(&[ended.ended().fd()], stop, deadline);
        ended.take().transpose().map(drop).map_err(|e| self.failed(e))
    }

    fn wait_for_hand(
        &mut self,
        left: Duration,
        process: Option<&Handle>,
        stop: &Stop,
        deadline: Instant,
    ) -> Result<()> {
        let Some(changes) = &self.changes else {
            // What has changed before it is watched is seen by one more look.
            self.changes = Some(watch(&self.path).map_err(|e| self.failed(e))?);
            return Ok(());
        };
        let end = Timer::at(since_boot() + left)?;
        let mut watched = vec![changes.as_fd(), end.fd()];
        watched.extend(process.map(Handle::fd));
        wait(&watched, stop, deadline);
        let mut events = [0; 4096];
        while rustix::io::read(changes, &mut events).is_ok_and(|count| count > 0) {}
        Ok(())
    }

    /// Goes in through the door, and leaves a record of it with its fence.
    pub fn go_in(&self, holder: &str, record: &mut Record) -> Result<()> {
        if record.fence == 0 {
            let last = self.read()?.map_or(0, |last| last.record.fence);
            record.fence = (since_epoch().as_micros() as u64).max(last + 1);
        }
        self.put_down(holder, record)?;
        self.try_inside(LockMode::Shared).map(drop)
    }

    fn try_inside(&self, mode: LockMode) -> Result<bool> {
        byte_locks::try_lock(&self.file, LockOwner::Description, mode, INSIDE)
            .map_err(|e| self.failed(e))
    }

    pub fn others_are_inside(&self) -> Result<bool> {
        let range = INSIDE..INSIDE + 1;
        let others = byte_locks::any(&self.file, LockOwner::Description, range);
        Ok(others.map_err(|e| self.failed(e))?.is_some())
    }

    /// Goes in beside a holder, by its token, and without the door; the record that says so, or
    /// `None` where nobody holds the lock under that token any more.
    pub fn join(&self, token: &str, stop: &Stop) -> Result<Option<Written>> {
        self.slip_in(stop)?;
        let written = self.read()?.filter(|written| written.record.token == token);
        let is_held = match &written {
            Some(written) if written.record.until_since_boot_ms.is_some() => {
                written.record.left().is_some()
            }
            _ => self.others_are_inside()?,
        };
        if written.is_none() || !is_held {
            self.leave()?;
            return Ok(None);
        }
        Ok(written)
    }

    /// Keeps others out, beside whoever is inside.
    pub fn slip_in(&self, stop: &Stop) -> Result<()> {
        self.keep_others_from_inheriting()?;
        let deadline = Instant::now() + MOMENT;
        if !self.at_once(INSIDE, LockMode::Shared, stop, deadline)? {
            let why = "another gpuctl is just taking the lock, and does not get on";
            return Err(Failure::new(Code::LockBusy, why).hint("`gpuctl lock status` shows it"));
        }
        Ok(())
    }

    /// Happens when nobody else is inside any more, for a moment at least.
    pub fn alone(&self) -> Result<Aside<std::io::Result<()>>> {
        let file = self.file.clone();
        Aside::begin(move || {
            byte_locks::lock(&file, LockOwner::Description, LockMode::Exclusive, INSIDE)?;
            byte_locks::unlock(&file, LockOwner::Description, INSIDE)
        })
    }

    /// Gives up what `join` has taken.
    fn leave(&self) -> Result<()> {
        byte_locks::unlock(&self.file, LockOwner::Description, INSIDE).map_err(|e| self.failed(e))
    }

    /// The descriptors of this file that our caller has passed on to us are for us: what we start
    /// keeps the lock by our own, or not at all.
    fn keep_others_from_inheriting(&self) -> Result<()> {
        for number in self.inherited()? {
            // SAFETY: it was open just now, and we only mark it.
            #[expect(unsafe_code, reason = "it was opened by our caller")]
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            // One that is closed by now is inherited by nobody.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        Ok(())
    }

    /// Closes them, in a process that is to keep the lock no longer.
    pub fn forget_inherited(&self) -> Result<()> {
        for number in self.inherited()? {
            // SAFETY: nothing in this process owns it.
            #[expect(unsafe_code, reason = "it was opened by our caller")]
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
        Ok(())
    }

    fn inherited(&self) -> Result<Vec<i32>> {
        let ours = self.file.metadata().map_err(|e| self.failed(e))?;
        let entries = fs::read_dir("/proc/self/fd").map_err(|e| self.failed(e))?;
        let numbers = entries.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let meta = fs::metadata(entry.path()).ok()?;
            let is_it = (meta.dev(), meta.ino()) == (ours.dev(), ours.ino());
            (is_it && number > 2 && number != self.file.as_raw_fd()).then_some(number)
        });
        Ok(numbers.collect())
    }

    /// Who holds the lock; `None`: nobody.
    pub fn held(&self) -> Result<Option<Held>> {
        let written = self.read()?;
        if let Some(written) = &written
            && let Some(left) = written.record.left()
        {
            return Ok(Some(held_by_hand(written.clone(), left)));
        }
        if !self.others_are_inside()? {
            return Ok(None);
        }
        Ok(Some(self.kept(written)))
    }

    /// A lock that processes keep: those of the record, or what they have left.
    fn kept(&self, written: Option<Written>) -> Held {
        let (holder, record) = match written {
            Some(Written { holder, record }) => (holder, Some(record)),
            None => (String::new(), None),
        };
        let is_by_itself = record.as_ref().is_some_and(|record| {
            record.until_since_boot_ms.is_none() && !record.process_has_ended()
        });
        let keepers = if is_by_itself { Vec::new() } else { keepers(&self.file, &self.path) };
        Held { holder, record, ends: Ends::WithProcesses, keepers }
    }

    /// Writes the record of the lock that we hold.
    pub fn put_down(&self, holder: &str, record: &Record) -> Result<()> {
        self.write(Some(&Written { holder: holder.to_owned(), record: record.clone() }))
    }

    /// Ends a lock that was taken by hand: the one of that token, or whatever there is. Tells
    /// whether there was one.
    pub fn end_by_hand(&self, token: Option<&str>) -> Result<bool> {
        let _entered = self.enter_record(LockMode::Exclusive)?;
        let written = match self.read_within() {
            // What nobody can read is honoured as a lock until it is cleared.
            Err(failure) if failure.code == Code::Config && token.is_none() => {
                self.write_within(None)?;
                return Ok(true);
            }
            read => read?,
        };
        let Some(mut written) = written else { return Ok(false) };
        let is_meant = token.is_none_or(|token| token == written.record.token);
        if !is_meant || written.record.left().is_none() {
            return Ok(false);
        }
        written.record.until_since_boot_ms = Some(0);
        self.write_within(Some(&written))?;
        Ok(true)
    }

    fn read(&self) -> Result<Option<Written>> {
        let _entered = self.enter_record(LockMode::Shared)?;
        self.read_within()
    }

    fn read_within(&self) -> Result<Option<Written>> {
        let length = self.file.metadata().map_err(|e| self.failed(e))?.len();
        let mut bytes = vec![0; length.min(RECORD_LIMIT) as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(|e| self.failed(e))?;
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

    fn write(&self, written: Option<&Written>) -> Result<()> {
        let _entered = self.enter_record(LockMode::Exclusive)?;
        self.write_within(written)
    }

    /// In one go, so that the first line is the old one or the new one, whenever we are killed.
    fn write_within(&self, written: Option<&Written>) -> Result<()> {
        let text = written.map_or_else(String::new, Written::text);
        let put = || {
            self.file.write_all_at(text.as_bytes(), 0)?;
            self.file.set_len(text.len() as u64)
        };
        put().map_err(|e| self.failed(e))
    }

    /// The right to read or to change the record, until the result is dropped.
    fn enter_record(&self, mode: LockMode) -> Result<Entered<'_>> {
        match self.at_once(RECORD, mode, &Stop::never(), Instant::now() + MOMENT)? {
            true => Ok(Entered(&self.file)),
            false => {
                let message = format!(
                    "another process has kept the record of the lock {} for {MOMENT:?}",
                    self.path.display()
                );
                Err(Failure::new(Code::Unavailable, message)
                    .hint("only a gpuctl that is stopped keeps it so long: continue it, or end it"))
            }
        }
    }

    /// Locks what others lock for a moment only; false where they do not let go.
    fn at_once(&self, at: u64, mode: LockMode, stop: &Stop, deadline: Instant) -> Result<bool> {
        let owner = LockOwner::Description;
        if byte_locks::try_lock(&self.file, owner, mode, at).map_err(|e| self.failed(e))? {
            return Ok(true);
        }
        let file = self.file.clone();
        let locking = Aside::begin(move || byte_locks::lock(&file, owner, mode, at))?;
        wait(&[locking.ended().fd()], stop, deadline);
        stop.check()?;
        let locked = locking.take().transpose();
        Ok(locked.map_err(|e| self.failed(e))?.is_some())
    }
}

/// The right to the record.
struct Entered<'a>(&'a File);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // It ends with the descriptor where it cannot be given back.
        let _ = byte_locks::unlock(self.0, LockOwner::Description, RECORD);
    }
}

fn held_by_hand(written: Written, left: Duration) -> Held {
    let Written { holder, record } = written;
    Held { holder, record: Some(record), ends: Ends::In(left), keepers: Vec::new() }
}

/// Without following links, and without waiting for what is no file. Not to be made if need be:
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

fn watch(path: &Path) -> rustix::io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)?;
    Ok(fd)
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
