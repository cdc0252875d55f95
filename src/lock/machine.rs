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
//! honoured until its time, or the process that it was taken for, ends it.

use super::file::{LockFile, RECORD_LIMIT, Written};
use super::keepers::{inherited, keepers};
use super::record::{Ends, Held, Record};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::byte_locks::{self, LockMode, LockOwner};
use crate::world::clock::SinceBoot;
use crate::world::host;
use crate::world::wait::{Aside, Event, Handle, Stop, wait};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use std::fs::File;
use std::io::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// The byte of the file that is locked by who is inside; nothing is ever written for it.
const INSIDE: u64 = RECORD_LIMIT;

/// What others keep locked for microseconds is waited for this long.
const MOMENT: Duration = Duration::from_secs(5);

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

/// The machine's lock, as one who may take it or look at it has it open.
pub struct Machine {
    lock: LockFile,
}

impl Machine {
    /// Opens it to take it.
    pub fn open(path: &Path) -> Result<Machine> {
        Ok(Machine::of(LockFile::open(path)?))
    }

    /// Opens the one that is there, to change its record.
    pub fn find(path: &Path) -> Result<Option<Machine>> {
        Ok(LockFile::there(path, OFlags::RDWR)?.map(Machine::of))
    }

    /// Opens it to look at it only; `None` where there is none, and so nobody has the lock.
    pub fn look_at(path: &Path) -> Result<Option<Machine>> {
        Ok(LockFile::there(path, OFlags::RDONLY)?.map(Machine::of))
    }

    fn of(lock: LockFile) -> Machine {
        Machine { lock }
    }

    /// The descriptor that has the lock, and that whoever is to keep it inherits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.lock.file.as_fd()
    }

    pub fn lock(&self) -> &LockFile {
        &self.lock
    }

    /// Opens the file anew that has been removed.
    pub fn open_again(&mut self) -> Result<()> {
        *self = Machine::open(&self.lock.path)?;
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
        match flock(&*self.lock.file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Some(InTheWay::Door)),
            locked => locked.map_err(|e| self.lock.failed(e))?,
        }
        if self.lock.is_removed()? {
            return Ok(Some(InTheWay::Removed));
        }
        if let Some(written) = self.lock.read()? {
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
        flock(&*self.lock.file, FlockOperation::Unlock).map_err(|e| self.lock.failed(e))
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
        let keeper =
            keepers(&self.lock.file, &self.lock.path).into_iter().find(|one| one.name != "gpuctl");
        Ok(keeper.map(|keeper| Held {
            holder: keeper.describe(),
            record: None,
            ends: Ends::WithProcesses,
            keepers: Vec::new(),
        }))
    }

    /// Sleeps until that is not in the way any more, or may not be.
    pub fn wait_for(&self, obstacle: InTheWay, stop: &Stop, deadline: Instant) -> Result<()> {
        let file = self.lock.file.clone();
        let ended = match obstacle {
            InTheWay::Removed => return Ok(()),
            InTheWay::ByHand { written, left, process } => {
                return self.wait_for_hand(&written, left, process.as_ref(), stop, deadline);
            }
            // One that is left behind ends with this process.
            InTheWay::Door => Aside::begin(move || {
                flock(&*file, FlockOperation::LockExclusive).map_err(Error::from)
            })?,
            InTheWay::Inside => self.alone()?,
        };
        wait(&[ended.ended().fd()], stop, deadline);
        ended.take().transpose().map(drop).map_err(|e| self.lock.failed(e))
    }

    fn wait_for_hand(
        &self,
        written: &Written,
        left: Duration,
        process: Option<&Handle>,
        stop: &Stop,
        deadline: Instant,
    ) -> Result<()> {
        let changed = self.lock.changed(written)?;
        let end = Event::at_since_boot(SinceBoot::now() + left)?;
        let mut watched = vec![changed.ended().fd(), end.fd()];
        watched.extend(process.map(Handle::fd));
        wait(&watched, stop, deadline);
        Ok(())
    }

    /// Goes in through the door, and leaves a record of it with its fence.
    pub fn go_in(&self, holder: &str, record: &mut Record) -> Result<()> {
        if record.fence == 0 {
            let last = self.lock.read()?.map_or(0, |last| last.record.fence);
            record.fence = (host::now().as_microsecond() as u64).max(last + 1);
        }
        self.put_down(holder, record)?;
        self.try_inside(LockMode::Shared).map(drop)
    }

    fn try_inside(&self, mode: LockMode) -> Result<bool> {
        byte_locks::try_lock(&self.lock.file, LockOwner::Description, mode, INSIDE)
            .map_err(|e| self.lock.failed(e))
    }

    /// Whether others hold the lock, who share its byte. One that has the byte alone is about to go in,
    /// or waits at the door, and the record is not its own yet, but that of a holder who is gone.
    pub fn others_are_inside(&self) -> Result<bool> {
        let range = INSIDE..INSIDE + 1;
        let others = byte_locks::any(&self.lock.file, LockOwner::Description, range);
        let others = others.map_err(|e| self.lock.failed(e))?;
        Ok(others.is_some_and(|others| others.mode == LockMode::Shared))
    }

    /// Goes in beside a holder, by its token, and without the door; the record that says so, or
    /// `None` where nobody holds the lock under that token any more.
    pub fn join(&self, token: &str, stop: &Stop) -> Result<Option<Written>> {
        self.slip_in(stop)?;
        let written = self.lock.read()?.filter(|written| written.record.token == token);
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
        // What our caller has passed on to us is for us: what we start keeps the lock by our own
        // descriptor, or not at all.
        for fd in inherited(&self.lock.file).map_err(|e| self.lock.failed(e))? {
            // One that is closed by now is inherited by nobody.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        match self.try_inside(LockMode::Shared)? {
            true => Ok(()),
            false => self.in_a_moment(stop, |file| {
                byte_locks::lock(file, LockOwner::Description, LockMode::Shared, INSIDE)
            }),
        }
    }

    /// Locks what others lock for a moment only.
    fn in_a_moment(
        &self,
        stop: &Stop,
        lock: impl FnOnce(&File) -> std::io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let file = self.lock.file.clone();
        let locking = Aside::begin(move || lock(&file))?;
        wait(&[locking.ended().fd()], stop, Instant::now() + MOMENT);
        stop.check()?;
        let locked = locking.take().transpose().map_err(|e| self.lock.failed(e))?;
        locked.ok_or_else(|| {
            let why = "another gpuctl is just taking the lock, and does not get on";
            Failure::new(Code::LockBusy, why).hint("`gpuctl lock status` shows it")
        })
    }

    /// Happens when nobody else is inside any more, for a moment at least.
    pub fn alone(&self) -> Result<Aside<std::io::Result<()>>> {
        let file = self.lock.file.clone();
        Aside::begin(move || {
            byte_locks::lock(&file, LockOwner::Description, LockMode::Exclusive, INSIDE)?;
            byte_locks::unlock(&file, LockOwner::Description, INSIDE)
        })
    }

    /// Gives up what `join` has taken.
    fn leave(&self) -> Result<()> {
        byte_locks::unlock(&self.lock.file, LockOwner::Description, INSIDE)
            .map_err(|e| self.lock.failed(e))
    }

    /// Closes the descriptors that our caller has passed on to us, in a process that is to keep the
    /// lock no longer.
    pub fn forget_inherited(&self) -> Result<()> {
        for fd in inherited(&self.lock.file).map_err(|e| self.lock.failed(e))? {
            // SAFETY: nothing in this process owns it.
            #[expect(unsafe_code, reason = "it was opened by our caller")]
            drop(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) });
        }
        Ok(())
    }

    /// Who holds the lock; `None`: nobody.
    pub fn held(&self) -> Result<Option<Held>> {
        let written = self.lock.read()?;
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
            Some(Written { holder, record, .. }) => (holder, Some(record)),
            None => (String::new(), None),
        };
        let is_by_itself = record.as_ref().is_some_and(|record| {
            record.until_since_boot_ms.is_none() && !record.process_has_ended()
        });
        let keepers =
            if is_by_itself { Vec::new() } else { keepers(&self.lock.file, &self.lock.path) };
        Held { holder, record, ends: Ends::WithProcesses, keepers }
    }

    /// Writes the record of the lock that we hold.
    pub fn put_down(&self, holder: &str, record: &Record) -> Result<()> {
        self.lock.write(holder, record)
    }

    /// Ends a lock that was taken by hand: the one of that token, or whatever there is. Tells
    /// whether there was one.
    pub fn end_by_hand(&self, token: Option<&str>) -> Result<bool> {
        let is_meant = |written: &Written| {
            token.is_none_or(|token| token == written.record.token)
                && written.record.left().is_some()
        };
        let there = match self.lock.read() {
            // What nobody can read is honoured as a lock until it is cleared: nobody goes in.
            Err(failure) if failure.code == Code::Config && token.is_none() => {
                return self.lock.clear().map(|()| true);
            }
            read => read?,
        };
        if !there.as_ref().is_some_and(is_meant) {
            return Ok(false);
        }
        // For as long as it is there, others have the door for a moment only.
        self.in_a_moment(&Stop::never(), |file| {
            flock(file, FlockOperation::LockExclusive).map_err(Error::from)
        })?;
        let written = self.lock.read()?.filter(is_meant);
        if let Some(mut written) = written.clone() {
            written.record.until_since_boot_ms = Some(0);
            self.lock.write(&written.holder, &written.record)?;
        }
        self.step_back()?;
        Ok(written.is_some())
    }
}

fn held_by_hand(written: Written, left: Duration) -> Held {
    let Written { holder, record, .. } = written;
    Held { holder, record: Some(record), ends: Ends::In(left), keepers: Vec::new() }
}
