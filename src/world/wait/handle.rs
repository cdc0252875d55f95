//! A hold on one process, whoever gets its number later.

use crate::model::Pid;
use crate::world::process;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A handle on a process that stays that process when its PID is given to another.
pub struct Handle {
    pub pid: Pid,
    fd: OwnedFd,
}

impl Handle {
    /// `None` when the process is gone.
    pub fn open(pid: Pid) -> Option<Handle> {
        let target = rustix::process::Pid::from_raw(pid)?;
        let fd = pidfd_open(target, PidfdFlags::empty()).ok()?;
        Some(Handle { pid, fd })
    }

    /// A handle on this process and no other; `None` when it is gone.
    pub fn of(id: process::Id) -> Option<Handle> {
        let handle = Handle::open(id.pid)?;
        // What bears the number now had it before the handle was opened.
        (process::Id::of(id.pid) == Some(id)).then_some(handle)
    }

    /// Sends a signal; one that has ended in the meantime counts as sent.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Readable when the process has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Tells whether the process has ended.
    pub fn has_ended(&self) -> bool {
        super::is_readable(self.fd())
    }
}
