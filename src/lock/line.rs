//! The line of those who wait for the machine's lock, the longest waiting first.
//!
//! A place in it is a lock of the kernel's on one byte of the lock's file: the byte that bears the
//! time since boot at which its owner came. So the places stand in the order of arrival, every one
//! is told from every other, and one is gone at the moment in which its owner ends, however that
//! ends: there is nothing that could be left over. Who waits sleeps until the one before it has
//! left, in the kernel, so that each is woken once, when it may be its turn. A waiter that is
//! stopped keeps its place and holds up nobody.

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

/// Before it, the file's bytes mean something else.
const FIRST: u64 = 1 << 20;

/// The kernel tells nobody when one who waits before us is stopped by a signal.
const LOOK: Duration = Duration::from_secs(1);

/// Our part in the line.
pub struct WaitingLine {
    file: Arc<File>,
    /// `None`: we stand behind everybody.
    place: Option<u64>,
    /// The place that is waited for, and the thread that does it.
    before: Option<(u64, Aside<std::io::Result<()>>)>,
}

/// Who waits before us.
pub struct Ahead {
    pub count: usize,
    /// The place of the next before us that is not stopped; `None`: it is our turn.
    pub next: Option<u64>,
}

/// Who has the machine's lock next, and for how long it has waited.
pub struct NextHere {
    pub place: String,
    pub waited: Duration,
}

impl WaitingLine {
    pub fn new(file: &Arc<File>) -> WaitingLine {
        WaitingLine { file: file.clone(), place: None, before: None }
    }

    /// Who is next, for one who has no place in it.
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

    /// Takes a place at the end, where we have none yet; tells whether that is new.
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

    pub fn ahead(&self) -> std::io::Result<Ahead> {
        let end = self.place.unwrap_or(i64::MAX as u64);
        let mut places = self.taken(FIRST..end)?;
        places.sort_unstable();
        let is_in_the_way = |(_, pid): &&(u64, Pid)| !process::is_suspended(*pid);
        let next = places.iter().rev().find(is_in_the_way).map(|(place, _)| *place);
        Ok(Ahead { count: places.len(), next })
    }

    /// Every place within a range, with its owner. The kernel names one at a time, any of them.
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

    /// Sleeps until a place is given up, or its owner may have been stopped.
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
        // That it cannot be locked shows at the next look.
        if before.take().is_none() {
            self.before = Some((place, before));
        }
        Ok(())
    }

    /// Gives up our place; the next one is woken.
    pub fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            // It ends with this process where it cannot be given up.
            let _ = byte_locks::unlock(&self.file, LockOwner::Process, place);
        }
    }
}

impl Drop for WaitingLine {
    fn drop(&mut self) {
        self.leave();
    }
}
