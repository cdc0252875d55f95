//! The lock on one machine, without a server. Beside the lock's file, which is only ever locked by
//! flock(2) for a moment and never removed, lie the record and a folder of tickets: one FIFO for
//! each who waits, locked as long as its owner lives, so that the kernel tells of every death, and
//! written to when it is the owner's turn. (To close an inotify descriptor takes the kernel 20 ms.)
//!
//! Layout: `PATH` is locked while the others are changed; `PATH.json` the record, replaced whole;
//! `PATH.queue/NUMBER-PID` the tickets.

use super::record::{Held, Record};
use super::{Attempt, Backend, Busy, Claim};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use crate::world::host::{self, since_boot, since_epoch};
use crate::world::process;
use crate::world::wait::{Aside, Handle, Stop, wait};
use crate::world::{files, group};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, flock, mknodat};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The lock's file is locked for microseconds; who keeps it longer is stopped.
const MUTEX_LIMIT: Duration = Duration::from_secs(5);

/// Nothing wakes us when one who waits before us is stopped by a signal.
const LOOK: Duration = Duration::from_secs(1);

pub struct File {
    path: PathBuf,
    ticket: Option<Ticket>,
    /// `None`: not known yet.
    obstacle: Option<Obstacle>,
}

/// What a waiter waits for.
enum Obstacle {
    /// Another waiter: the end of its hold on its ticket.
    Waiter { ticket: PathBuf, end: Aside<()> },
    /// The holder: its release, the end of a process, or of the lock's time.
    Holder { living: Vec<Handle>, end: Option<Instant> },
}

/// A place in the line: locked as long as this process lives, and removed with it.
struct Ticket {
    path: PathBuf,
    fifo: OwnedFd,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Who finds it left over sees that nobody locks it.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the record's file holds: the highest fence, and the lock where somebody holds it.
pub struct Stored {
    fence: u64,
    locked: Option<Locked>,
}

#[derive(Serialize, Deserialize)]
struct Locked {
    holder: String,
    #[serde(flatten)]
    record: Record,
    /// When it ends, in milliseconds since the boot that the record names.
    until_since_boot_ms: u64,
    /// The same in milliseconds since 1970, for a reader of another boot.
    until_ms: u64,
}

impl Locked {
    fn new(claim: &Claim) -> Locked {
        let until = |now: Duration| (now + claim.ttl).as_millis() as u64;
        Locked {
            holder: claim.holder.clone(),
            record: claim.record.clone(),
            until_since_boot_ms: until(since_boot()),
            until_ms: until(since_epoch()),
        }
    }

    fn left(&self) -> Duration {
        let (until, now) = match self.record.boot == host::boot_id() {
            true => (self.until_since_boot_ms, since_boot()),
            false => (self.until_ms, since_epoch()),
        };
        Duration::from_millis(until).saturating_sub(now)
    }

    fn held(&self) -> Held {
        let (holder, record) = (self.holder.clone(), Some(self.record.clone()));
        Held { holder, record, left: Some(self.left()) }
    }

    /// Whether the lock may be taken: its holder is gone or its time is over, and its command gone.
    fn is_over(&self) -> bool {
        let command_is_gone = || {
            self.record
                .command
                .is_none_or(|leader| group::members(Some(leader), &self.record.token).is_empty())
        };
        self.held().is_over() || (self.left().is_zero() && command_is_gone())
    }
}

impl File {
    pub fn new(path: PathBuf) -> File {
        File { path, ticket: None, obstacle: None }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn unusable(&self, path: &Path, error: &Error) -> Failure {
        let message = format!("the lock {}: {error}", path.display());
        match error.kind() {
            ErrorKind::PermissionDenied => Failure::new(Code::Permission, message)
                .hint("the lock's folder must be yours, and writable for nobody else (chmod go-w); or set lock.url to a file elsewhere"),
            _ => Failure::new(Code::Io, message)
                .hint("mend it, or set lock.url to a file elsewhere: file:///path"),
        }
    }

    /// The right to change the record and the line, until the result is dropped.
    fn enter(&self, stop: &Stop) -> Result<files::Locked> {
        files::private_dir(self.folder()).map_err(|e| self.unusable(self.folder(), &e))?;
        let locked = files::lock(&self.path, MUTEX_LIMIT, stop);
        if let Some(file) = locked.map_err(|e| self.unusable(&self.path, &e))? {
            return Ok(file);
        }
        stop.check()?;
        let message =
            format!("the lock's file {} has been locked for {MUTEX_LIMIT:?}", self.path.display());
        Err(Failure::new(Code::Unavailable, message).hint(
            "only a gpuctl that is stopped keeps it so long; `fuser -v` on that file names it",
        ))
    }

    fn read(&self) -> Result<Stored> {
        let path = self.beside(".json");
        let text = match files::existing(&path).and_then(std::io::read_to_string) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok(Stored { fence: 0, locked: None });
            }
            // Not text at all.
            Err(e) if e.kind() == ErrorKind::InvalidData => String::new(),
            Err(e) => return Err(self.unusable(&path, &e)),
        };
        Stored::parse(&text).ok_or_else(|| {
            let message = format!("the lock's record {} is damaged", path.display());
            Failure::new(Code::Config, message)
                .hint("when nothing uses the GPU: `gpuctl lock release --force` clears it")
        })
    }

    fn write(&self, stored: &Stored) -> Result<()> {
        let path = self.beside(".json");
        files::replace(&path, stored.text().as_bytes()).map_err(|e| self.unusable(&path, &e))
    }

    /// The tickets of the line in its order.
    fn tickets(&self) -> Result<Vec<PathBuf>> {
        let folder = self.beside(".queue");
        let list = || -> std::io::Result<Vec<PathBuf>> {
            files::private_dir(&folder)?;
            fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect()
        };
        let mut tickets = list().map_err(|e| self.unusable(&folder, &e))?;
        // Those that are left over get removed, and nothing else.
        tickets.retain(|path| number_and_pid(path).0 > 0);
        tickets.sort();
        Ok(tickets)
    }

    /// The waiter next before us that is there and not stopped; how many there may be in all.
    fn waiter_before_us(&self, tickets: &[PathBuf]) -> (Option<PathBuf>, usize) {
        let is_ours =
            |path: &PathBuf| self.ticket.as_ref().is_some_and(|ticket| ticket.path == *path);
        let mine = tickets.iter().position(is_ours);
        let before = &tickets[..mine.unwrap_or(tickets.len())];
        for (index, path) in before.iter().enumerate().rev() {
            let Ok(fifo) = open_ticket(path, OFlags::RDONLY) else { continue };
            match flock(&fifo, FlockOperation::NonBlockingLockShared) {
                Err(rustix::io::Errno::WOULDBLOCK) if !is_suspended(path) => {
                    return (Some(path.clone()), index + 1);
                }
                Err(_) => {}
                // Left over by one that was killed.
                Ok(()) => drop(fs::remove_file(path)),
            }
        }
        (None, 0)
    }

    fn queue_up(&mut self, tickets: &[PathBuf]) -> Result<()> {
        let number = tickets.last().map_or(0, |path| number_and_pid(path).0) + 1;
        let path = self.beside(".queue").join(format!("{number:020}-{}", std::process::id()));
        let make = || {
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            let fifo = open_ticket(&path, OFlags::RDWR)?;
            flock(&fifo, FlockOperation::NonBlockingLockExclusive)?;
            Ok(fifo)
        };
        let fifo = make().map_err(|e: Error| self.unusable(&path, &e))?;
        self.ticket = Some(Ticket { path, fifo });
        Ok(())
    }

    /// Remembers what has to change before another try is worth it.
    fn note_obstacle(&mut self, before: Option<PathBuf>, held: Option<&Held>) -> Result<()> {
        self.obstacle = match (before, self.obstacle.take()) {
            (Some(path), Some(Obstacle::Waiter { ticket, end })) if ticket == path => {
                Some(Obstacle::Waiter { ticket, end })
            }
            (Some(path), _) => {
                let opened = open_ticket(&path, OFlags::RDONLY);
                let end = Aside::begin(move || {
                    // That it cannot be opened or locked shows at the next try.
                    let _ = opened.map(|fifo| flock(&fifo, FlockOperation::LockShared));
                })?;
                Some(Obstacle::Waiter { ticket: path, end })
            }
            (None, _) => {
                let left = held.and_then(|held| held.left).filter(|left| !left.is_zero());
                let end = left.map(|left| Instant::now() + left);
                let living = held.map_or_else(Vec::new, Held::living);
                Some(Obstacle::Holder { living, end })
            }
        };
        Ok(())
    }

    /// Wakes the first in the line, and those before it that are stopped; unwoken they look later.
    fn wake_next(&self) {
        for path in self.tickets().unwrap_or_default() {
            // Fails where nobody has it open; one that is full has been written to.
            let Ok(fifo) = open_ticket(&path, OFlags::WRONLY) else { continue };
            let _ = rustix::io::write(&fifo, &[1]);
            if !is_suspended(&path) {
                return;
            }
        }
    }
}

impl Stored {
    /// `None` for anything but a whole record: a lock that cannot be read is not free.
    pub fn parse(text: &str) -> Option<Stored> {
        let document: Value = serde_json::from_str(text).ok()?;
        let fence = document.get("fence")?.as_u64()?;
        let locked = match document.as_object()?.len() {
            1 => None,
            _ => Some(serde_json::from_value(document).ok()?),
        };
        Some(Stored { fence, locked })
    }

    pub fn text(&self) -> String {
        let mut document = match &self.locked {
            Some(locked) => serde_json::to_value(locked).expect("a record of plain fields"),
            None => serde_json::json!({}),
        };
        document["fence"] = self.fence.into();
        format!("{document:#}\n")
    }

    fn is_of(&self, token: &str) -> bool {
        self.locked.as_ref().is_some_and(|locked| locked.record.token == token)
    }

    /// Whether there is a lock whose time has not ended it.
    fn is_there(&self) -> bool {
        self.locked.as_ref().is_some_and(|locked| !locked.left().is_zero() || !locked.is_over())
    }
}

/// Without waiting for the other end.
fn open_ticket(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn number_and_pid(ticket: &Path) -> (u64, Pid) {
    let name = ticket.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (number, pid) = name.split_once('-').unwrap_or_default();
    (number.parse().unwrap_or(0), pid.parse().unwrap_or(0))
}

/// Whether the owner of a ticket is stopped, as by Ctrl-Z: it holds up nobody.
fn is_suspended(ticket: &Path) -> bool {
    process::is_suspended(number_and_pid(ticket).1)
}

impl Backend for File {
    fn attempt(&mut self, claim: &Claim, queues: bool, stop: &Stop) -> Result<Attempt> {
        let _entered = self.enter(stop)?;
        let stored = self.read()?;
        let held = stored.locked.as_ref().filter(|locked| !locked.is_over()).map(Locked::held);
        let tickets = self.tickets()?;
        let (before, ahead) = self.waiter_before_us(&tickets);
        if held.is_none() && before.is_none() {
            let fence = stored.fence.max(claim.floor) + 1;
            let mut locked = Locked::new(claim);
            locked.record.fence = fence;
            self.write(&Stored { fence, locked: Some(locked) })?;
            (self.ticket, self.obstacle) = (None, None);
            return Ok(Attempt::Taken(fence));
        }
        if queues && self.ticket.is_none() {
            self.queue_up(&tickets)?;
        }
        if queues {
            self.note_obstacle(before, held.as_ref())?;
        }
        Ok(Attempt::Busy(Busy { held, ahead }))
    }

    fn wait_for_change(&mut self, _: &Claim, stop: &Stop, deadline: Instant) -> Result<()> {
        let Some(ticket) = &self.ticket else { return Ok(()) };
        let mut watched = vec![ticket.fifo.as_fd()];
        let mut look = deadline.min(Instant::now() + LOOK);
        match &self.obstacle {
            Some(Obstacle::Waiter { end, .. }) => watched.push(end.ended().fd()),
            Some(Obstacle::Holder { living, end }) => {
                watched.extend(living.iter().map(Handle::fd));
                look = end.map_or(look, |end| end.min(look));
            }
            None => {}
        }
        wait(&watched, stop, look);
        while rustix::io::read(&ticket.fifo, &mut [0; 64]).is_ok_and(|count| count > 0) {}
        Ok(())
    }

    fn renew(&mut self, claim: &Claim) -> Result<bool> {
        let _entered = self.enter(&Stop::never())?;
        let stored = self.read()?;
        let is_ours = stored.is_of(&claim.record.token);
        if is_ours {
            self.write(&Stored { locked: Some(Locked::new(claim)), ..stored })?;
        }
        Ok(is_ours)
    }

    fn release(&mut self, token: Option<&str>) -> Result<bool> {
        self.ticket = None;
        // Nobody else writes our token, so this holds also where the lock's file cannot be had.
        if token.is_some_and(|token| self.read().is_ok_and(|stored| !stored.is_of(token))) {
            return Ok(false);
        }
        let entered = self.enter(&Stop::never())?;
        let (fence, is_there) = match (self.read(), token) {
            (Ok(stored), Some(token)) => (stored.fence, stored.is_of(token) && stored.is_there()),
            (Ok(stored), None) => (stored.fence, stored.is_there()),
            (Err(failure), None) if failure.code == Code::Config => (0, true),
            (Err(failure), _) => return Err(failure),
        };
        if is_there && let Err(failure) = self.write(&Stored { fence, locked: None }) {
            // A full disk must not keep the lock; the state folder remembers the fence too.
            fs::remove_file(self.beside(".json")).map_err(|_| failure)?;
        }
        drop(entered);
        if is_there {
            self.wake_next();
        }
        Ok(is_there)
    }

    fn look(&mut self) -> Result<Option<Held>> {
        match self.folder().symlink_metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            _ => files::is_private(self.folder()).map_err(|e| self.unusable(self.folder(), &e))?,
        }
        let locked = self.read()?.locked;
        Ok(locked.filter(|locked| !locked.is_over()).as_ref().map(Locked::held))
    }
}
