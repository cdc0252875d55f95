//! A hold on one process that does not pass to another process when the PID is reused.

use crate::model::Pid;
use crate::world::process;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A handle on a process that keeps referring to this process when its PID is given to another.
pub struct Handle {
    pub pid: Pid,
    fd: OwnedFd,
}

impl Handle {
    /// Opens a handle on the process that has this PID now; `None` if there is none.
    pub fn open(pid: Pid) -> Option<Handle> {
        let target = rustix::process::Pid::from_raw(pid)?;
        let fd = pidfd_open(target, PidfdFlags::empty()).ok()?;
        Some(Handle { pid, fd })
    }

    /// Opens a handle on exactly this process; `None` if it is gone.
    pub fn of(id: process::Id) -> Option<Handle> {
        let handle = Handle::open(id.pid)?;
        // If this process has the PID now, it also had the PID when the handle was opened.
        (process::Id::of(id.pid) == Some(id)).then_some(handle)
    }

    /// Sends a signal to the process; succeeds too if the process has ended in the meantime.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns a descriptor that is readable once the process has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reports whether the process has ended.
    pub fn has_ended(&self) -> bool {
        super::is_readable(self.fd())
    }
}
