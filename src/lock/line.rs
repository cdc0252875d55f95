//! The line of the processes that wait for the machine's lock, the longest waiting first.
//!
//! A place in the line is a lock of the kernel on one byte of the lock's file, the byte whose
//! offset is the time since boot at which the place's owner came. So the places stand in the order
//! of arrival, no two are the same, and a place is gone at the moment at which its owner ends,
//! however it ends: nothing can be left over. A waiter sleeps in the kernel until the one before it
//! has left, so that each is woken once, when it may be its turn. A waiter that is stopped keeps
//! its place and holds up nobody.

use super::file::LockFile;
use crate::error::Result;
use crate::model::Pid;
use crate::world::byte_locks::{self, LockMode, LockOwner};
use crate::world::clock::SinceBoot;
use crate::world::process;
use crate::world::wait::{Aside, Stop, wait};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Offset of the first byte that can be a place in the line; the bytes before it are for the record
/// and for the lock of those inside.
const FIRST: u64 = 1 << 20;

/// Longest sleep of a waiter between two looks at the line: the kernel reports to nobody that a
/// waiter ahead was stopped by a signal.
const LOOK: Duration = Duration::from_secs(1);

/// The line, as seen by a process that waits in it or is about to.
pub struct WaitingLine {
    file: Arc<File>,
    /// This process's own place, or `None` if it has none and so stands behind everybody.
    place: Option<u64>,
    /// The place that this process waits for, and the thread that waits until that place is given
    /// up.
    before: Option<(u64, Aside<std::io::Result<()>>)>,
}

/// The waiters ahead of this process.
pub struct Ahead {
    /// Number of waiters ahead, including those that are stopped.
    pub count: usize,
    /// Place of the nearest waiter ahead that is not stopped, or `None` if it is this process's
    /// turn.
    pub next: Option<u64>,
}

/// The waiter that has the machine's lock next, and for how long it has waited.
pub struct NextHere {
    /// Name of that machine's lock, by which Redis knows it (`LockFile::place`).
    pub place: String,
    pub waited: Duration,
}

impl WaitingLine {
    pub fn new(file: &Arc<File>) -> WaitingLine {
        WaitingLine { file: file.clone(), place: None, before: None }
    }

    /// Returns the longest waiting process that is not stopped, or `None` if there is none; for a
    /// caller that has no place in the line itself.
    pub fn next(lock: &LockFile) -> Result<Option<NextHere>> {
        let waited = WaitingLine::longest_wait(&lock.file).map_err(|e| lock.failed(e))?;
        waited.map(|waited| Ok(NextHere { place: lock.place()?, waited })).transpose()
    }

    fn longest_wait(file: &File) -> std::io::Result<Option<Duration>> {
        let mut from = FIRST;
        loop {
            let (mut first, mut end) = (None, i64::MAX as u64);
            while let Some(taken) = byte_locks::any(file, LockOwner::Process, from..end)? {
                end = taken.bytes.start;
                first = Some(taken);
            }
            match first {
                None => return Ok(None),
                Some(stopped) if process::is_suspended(stopped.pid) => from = stopped.bytes.end,
                Some(next) => {
                    let came = Duration::from_nanos(next.bytes.start - FIRST);
                    return Ok(Some(SinceBoot::after_boot(came).elapsed()));
                }
            }
        }
    }

    /// Takes a place at the end of the line, if this process has none yet; returns whether the
    /// place is new.
    pub fn queue_up(&mut self) -> std::io::Result<bool> {
        if self.place.is_some() {
            return Ok(false);
        }
        let mut place = FIRST + SinceBoot::now().time().as_nanos() as u64;
        while !byte_locks::try_lock(&self.file, LockOwner::Process, LockMode::Exclusive, place)? {
            place += 1;
        }
        self.place = Some(place);
        Ok(true)
    }

    /// Returns the waiters ahead of this process: all of them, if it has no place.
    pub fn ahead(&self) -> std::io::Result<Ahead> {
        let end = self.place.unwrap_or(i64::MAX as u64);
        let mut places = self.taken(FIRST..end)?;
        places.sort_unstable();
        let is_in_the_way = |(_, pid): &&(u64, Pid)| !process::is_suspended(*pid);
        let next = places.iter().rev().find(is_in_the_way).map(|(place, _)| *place);
        Ok(Ahead { count: places.len(), next })
    }

    /// Returns every place within a range that is taken, with its owner. The kernel names one of
    /// them at a time, in no particular order.
    fn taken(&self, range: Range<u64>) -> std::io::Result<Vec<(u64, Pid)>> {
        let (mut found, mut unasked) = (Vec::new(), vec![range]);
        while let Some(range) = unasked.pop() {
            if range.is_empty() {
                continue;
            }
            if let Some(taken) = byte_locks::any(&self.file, LockOwner::Process, range.clone())? {
                found.push((taken.bytes.start, taken.pid));
                unasked.push(range.start..taken.bytes.start);
                unasked.push(taken.bytes.end..range.end);
            }
        }
        Ok(found)
    }

    /// Sleeps until `place` is given up, or until `LOOK` has passed, since its owner may have been
    /// stopped.
    pub fn wait_for(&mut self, place: u64, stop: &Stop, deadline: Instant) -> Result<()> {
        let before = match self.before.take().filter(|(before, _)| *before == place) {
            Some((_, before)) => before,
            None => {
                let file = self.file.clone();
                Aside::begin(move || {
                    byte_locks::lock(&file, LockOwner::Process, LockMode::Shared, place)?;
                    byte_locks::unlock(&file, LockOwner::Process, place)
                })?
            }
        };
        wait(&[before.ended().fd()], stop, deadline.min(Instant::now() + LOOK));
        // A place that cannot be locked shows at the next look.
        if before.take().is_none() {
            self.before = Some((place, before));
        }
        Ok(())
    }

    /// Gives up this process's place, which wakes the next waiter.
    pub fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            // A place that cannot be given up ends with this process.
            let _ = byte_locks::unlock(&self.file, LockOwner::Process, place);
        }
    }
}

impl Drop for WaitingLine {
    fn drop(&mut self) {
        self.leave();
    }
}
