//! The machine's lock, which the kernel keeps, on one file for everybody on the machine.
//!
//! *The door* is a flock(2) on the whole file. A process that has the door may go in as soon as
//! nobody is inside. *Inside* is every process with a shared lock on the byte `INSIDE` of the file:
//! the holder, and commands of gpuctl that work under its token beside it. Both locks belong to an
//! open file description: they are inherited with the descriptor, and end when the last process
//! that has the descriptor ends, whatever becomes of the others. So no process has to be proved
//! dead, and nothing has to be renewed.
//!
//! The file's content is a record of the last holder. It is there for people, with one exception:
//! what `lock acquire` has taken has no process that could hold a lock, so its record is honoured
//! until the record's time, or the process that the lock was taken for, ends.

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

/// Offset of the byte of the file that the processes inside have locked; nothing is ever written
/// there.
const INSIDE: u64 = RECORD_LIMIT;

/// Longest wait for a lock that other processes keep for microseconds only.
const MOMENT: Duration = Duration::from_secs(5);

/// What keeps the process that is first in the line from going in.
pub enum InTheWay {
    /// Another process has the door.
    Door,
    /// Other processes are inside.
    Inside,
    /// A lock that was taken by hand is not over.
    ByHand { written: Box<Written>, left: Duration, process: Option<Handle> },
    /// The file was removed after it was opened.
    Removed,
}

/// The machine's lock, open for a process that may take it or look at it.
pub struct Machine {
    lock: LockFile,
}

impl Machine {
    /// Opens the machine's lock to take it; creates its file if there is none.
    pub fn open(path: &Path) -> Result<Machine> {
        Ok(Machine::of(LockFile::open(path)?))
    }

    /// Opens the machine's lock to change its record. Returns `None` if its file does not exist.
    pub fn find(path: &Path) -> Result<Option<Machine>> {
        Ok(LockFile::there(path, OFlags::RDWR)?.map(Machine::of))
    }

    /// Opens the machine's lock only to look at it. Returns `None` if its file does not exist,
    /// which means that nobody has the lock.
    pub fn look_at(path: &Path) -> Result<Option<Machine>> {
        Ok(LockFile::there(path, OFlags::RDONLY)?.map(Machine::of))
    }

    fn of(lock: LockFile) -> Machine {
        Machine { lock }
    }

    /// Returns the descriptor that has the lock; every process that is to keep the lock has to
    /// inherit it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.lock.file.as_fd()
    }

    pub fn lock(&self) -> &LockFile {
        &self.lock
    }

    /// Opens the lock's file anew, after the file that was open has been removed.
    pub fn open_again(&mut self) -> Result<()> {
        *self = Machine::open(&self.lock.path)?;
        Ok(())
    }

    /// Takes the door, and the right to be inside alone, if both can be had now; otherwise takes
    /// neither and returns what is in the way.
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
            // Opened first, so that a process that ends after the check wakes us.
            let process = written.record.process();
            if let Some(left) = written.record.left() {
                return Ok(Some(InTheWay::ByHand { written: Box::new(written), left, process }));
            }
        }
        Ok((!self.try_inside(LockMode::Exclusive)?).then_some(InTheWay::Inside))
    }

    /// Gives up the door, and the right to be inside.
    pub fn step_back(&self) -> Result<()> {
        self.leave()?;
        flock(&*self.lock.file, FlockOperation::Unlock).map_err(|e| self.lock.failed(e))
    }

    /// Returns the holder behind an obstacle, or `None` if another gpuctl is about to take the
    /// lock. If nobody waits ahead (`is_first`) and no holder is known, a program that has locked
    /// the file and is not gpuctl counts as the holder.
    pub fn held_beyond(&self, obstacle: &InTheWay, is_first: bool) -> Result<Option<Held>> {
        if let InTheWay::ByHand { written, left, .. } = obstacle {
            return Ok(Some(held_by_hand(Written::clone(written), *left)));
        }
        let held = self.held()?;
        if held.is_some() || !is_first {
            return Ok(held);
        }
        // A program that has locked the file and is not gpuctl.
        let keeper =
            keepers(&self.lock.file, &self.lock.path).into_iter().find(|one| one.name != "gpuctl");
        Ok(keeper.map(|keeper| Held {
            holder: keeper.describe(),
            record: None,
            ends: Ends::WithProcesses,
            keepers: Vec::new(),
        }))
    }

    /// Sleeps until `obstacle` is not in the way any more, or may not be.
    pub fn wait_for(&self, obstacle: InTheWay, stop: &Stop, deadline: Instant) -> Result<()> {
        let file = self.lock.file.clone();
        let ended = match obstacle {
            InTheWay::Removed => return Ok(()),
            InTheWay::ByHand { written, left, process } => {
                return self.wait_for_hand(&written, left, process.as_ref(), stop, deadline);
            }
            // A thread that is left behind ends with this process.
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

    /// Goes in through the door and writes the record. A fence that Redis has not set becomes the
    /// time in microseconds, or one more than the last.
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

    /// Reports whether others hold the lock, which means that they share the byte `INSIDE`. A
    /// process that has the byte alone is about to go in, or waits at the door; the record is then
    /// not its own yet, but that of a holder that is gone.
    pub fn others_are_inside(&self) -> Result<bool> {
        let range = INSIDE..INSIDE + 1;
        let others = byte_locks::any(&self.lock.file, LockOwner::Description, range);
        let others = others.map_err(|e| self.lock.failed(e))?;
        Ok(others.is_some_and(|others| others.mode == LockMode::Shared))
    }

    /// Goes in beside a holder by its token, without the door, and returns the holder's record.
    /// Returns `None` if nobody holds the lock under that token any more.
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

    /// Goes in without the door, beside the processes that are inside, to keep others out. Fails if
    /// another process keeps the byte `INSIDE` to itself for longer than `MOMENT`.
    pub fn slip_in(&self, stop: &Stop) -> Result<()> {
        // What our caller has passed on is for this process: what this process starts keeps the
        // lock by our own descriptor, or not at all.
        for fd in inherited(&self.lock.file).map_err(|e| self.lock.failed(e))? {
            // A descriptor that is closed by now is inherited by nobody.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        match self.try_inside(LockMode::Shared)? {
            true => Ok(()),
            false => self.in_a_moment(stop, |file| {
                byte_locks::lock(file, LockOwner::Description, LockMode::Shared, INSIDE)
            }),
        }
    }

    /// Takes a lock that others keep for a moment only; fails if it cannot be had within `MOMENT`.
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

    /// Begins to wait until nobody else is inside any more, for a moment at least.
    pub fn alone(&self) -> Result<Aside<std::io::Result<()>>> {
        let file = self.lock.file.clone();
        Aside::begin(move || {
            byte_locks::lock(&file, LockOwner::Description, LockMode::Exclusive, INSIDE)?;
            byte_locks::unlock(&file, LockOwner::Description, INSIDE)
        })
    }

    /// Gives up the right to be inside, which `join` for instance has taken.
    fn leave(&self) -> Result<()> {
        byte_locks::unlock(&self.lock.file, LockOwner::Description, INSIDE)
            .map_err(|e| self.lock.failed(e))
    }

    /// Closes the descriptors that the caller of gpuctl has passed on, in a process that is to keep
    /// the lock no longer.
    pub fn forget_inherited(&self) -> Result<()> {
        for fd in inherited(&self.lock.file).map_err(|e| self.lock.failed(e))? {
            // SAFETY: nothing in this process owns it.
            #[expect(unsafe_code, reason = "it was opened by our caller")]
            drop(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) });
        }
        Ok(())
    }

    /// Returns who holds the lock, or `None` if nobody does.
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

    /// Describes a lock that processes keep, with these processes unless the record's own process
    /// is alive.
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

    /// Writes the record of the lock that this process holds.
    pub fn put_down(&self, holder: &str, record: &Record) -> Result<()> {
        self.lock.write(holder, record)
    }

    /// Ends the lock that was taken by hand under `token`; without a token, any lock that was taken
    /// by hand, or a damaged record. Returns whether there was one.
    pub fn end_by_hand(&self, token: Option<&str>) -> Result<bool> {
        let is_meant = |written: &Written| {
            token.is_none_or(|token| token == written.record.token)
                && written.record.left().is_some()
        };
        let there = match self.lock.read() {
            // A record that nobody can read counts as a lock until it is cleared: nobody goes in.
            Err(failure) if failure.code == Code::Config && token.is_none() => {
                return self.lock.clear().map(|()| true);
            }
            read => read?,
        };
        if !there.as_ref().is_some_and(is_meant) {
            return Ok(false);
        }
        // While a lock by hand lasts, others have the door for a moment only.
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
