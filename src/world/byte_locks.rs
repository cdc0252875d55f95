//! The kernel's locks on single bytes of a file (fcntl(2)). A lock of a process ends with it and is
//! not inherited by its children; a lock of an open file description ends with the last descriptor
//! of that description.

use crate::model::Pid;
use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The kind of owner that a lock belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOwner {
    /// This process, which loses the lock as soon as it closes any descriptor of the file.
    Process,
    /// The open file description, shared by all processes that have inherited the descriptor.
    Description,
}

/// The kind of lock, which decides what others can lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// A lock that keeps others from an exclusive lock only.
    Shared,
    /// A lock that keeps others from any lock.
    Exclusive,
}

/// A lock that another owner holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The locked bytes, cut to the range that was asked for.
    pub bytes: Range<u64>,
    pub mode: LockMode,
    /// PID of the process that holds the lock; 0 if it is outside this PID namespace, -1 if an open
    /// file description holds the lock.
    pub pid: Pid,
}

/// Takes a lock on a byte, or changes the mode of the lock already held on it. `false` if another
/// owner's lock prevents that now.
pub fn try_lock(file: &File, owner: LockOwner, mode: LockMode, at: u64) -> Result<bool> {
    match set(file, owner, kind(mode), at, false) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes a lock on a byte, or changes the mode of the lock already held on it, and waits for as
/// long as that takes.
pub fn lock(file: &File, owner: LockOwner, mode: LockMode, at: u64) -> Result<()> {
    set(file, owner, kind(mode), at, true)
}

/// Releases the lock on a byte.
pub fn unlock(file: &File, owner: LockOwner, at: u64) -> Result<()> {
    set(file, owner, libc::F_UNLCK, at, false)
}

/// Returns a lock, of either mode, that others hold within a range, or `None` if there is none. If
/// there are several, it can be any of them.
pub fn any(file: &File, owner: LockOwner, range: Range<u64>) -> Result<Option<Taken>> {
    let command = match owner {
        LockOwner::Process => libc::F_GETLK,
        LockOwner::Description => libc::F_OFD_GETLK,
    };
    let mut lock = request(libc::F_WRLCK, range.start, range.end - range.start);
    call(file, command, &mut lock)?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = range.start.max(lock.l_start as u64);
    // A length of 0 means that the lock has no end.
    let end = match lock.l_len {
        0 => range.end,
        length => range.end.min((lock.l_start + length) as u64),
    };
    let mode = match i32::from(lock.l_type) {
        libc::F_RDLCK => LockMode::Shared,
        _ => LockMode::Exclusive,
    };
    Ok(Some(Taken { bytes: start..end, mode, pid: lock.l_pid }))
}

fn kind(mode: LockMode) -> i32 {
    match mode {
        LockMode::Shared => libc::F_RDLCK,
        LockMode::Exclusive => libc::F_WRLCK,
    }
}

fn set(file: &File, owner: LockOwner, kind: i32, at: u64, waits: bool) -> Result<()> {
    let command = match (owner, waits) {
        (LockOwner::Process, false) => libc::F_SETLK,
        (LockOwner::Process, true) => libc::F_SETLKW,
        (LockOwner::Description, false) => libc::F_OFD_SETLK,
        (LockOwner::Description, true) => libc::F_OFD_SETLKW,
    };
    call(file, command, &mut request(kind, at, 1))
}

fn request(kind: i32, start: u64, length: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: length as libc::off_t,
        l_pid: 0,
    }
}

fn call(file: &File, command: i32, lock: &mut libc::flock) -> Result<()> {
    loop {
        // SAFETY: a plain system call on a descriptor that is open and a value of our own.
        #[expect(unsafe_code, reason = "no crate of ours has locks of single bytes")]
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        match result {
            -1 => match Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINTR) => {}
                e => return Err(e),
            },
            _ => return Ok(()),
        }
    }
}
