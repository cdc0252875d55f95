//! What a new process does before it becomes the program that it was made for: between fork and exec.

use crate::world::caller;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::{FdFlags, fcntl_setfd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a command leave our session, and what we ignore and have open.
pub(super) fn detach(command: &mut Command) {
    let leave = || {
        rustix::process::setsid()?;
        // SAFETY: this is between fork and exec.
        #[expect(unsafe_code, reason = "what a service ignores is its own matter")]
        unsafe {
            caller::reset_ignored()
        };
        close_on_exec()
    };
    // SAFETY: plain system calls.
    #[expect(unsafe_code, reason = "a session is made between fork and exec")]
    unsafe {
        before_exec(command, leave)
    };
}

/// Has no program that takes our place inherit a descriptor, but for the first three. Marked rather
/// than closed: the standard library reports a failed exec through one. Async-signal-safe.
pub fn close_on_exec() -> std::io::Result<()> {
    // SAFETY: a plain system call.
    #[expect(unsafe_code, reason = "no crate of ours has it")]
    let all =
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if all == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Has a command inherit a descriptor, which has to stay open until it is started.
pub fn inherit(command: &mut Command, fd: BorrowedFd) {
    let number = fd.as_raw_fd();
    let keep = move || {
        // SAFETY: the copy in the new process of what is open in ours.
        #[expect(unsafe_code, reason = "a closure that outlives the call can borrow nothing")]
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        Ok(fcntl_setfd(fd, FdFlags::empty())?)
    };
    // SAFETY: a plain system call.
    #[expect(unsafe_code, reason = "a descriptor is handed down between fork and exec")]
    unsafe {
        before_exec(command, keep)
    };
}

/// Has a command do something in its new process before it becomes the program.
///
/// # Safety
///
/// The new process has one thread of all that gpuctl has, and whatever the others were at stays as
/// it was. So `work` makes only calls that are safe in a signal handler (signal-safety(7)): it
/// neither allocates nor frees, takes no lock, and does not panic.
#[expect(unsafe_code, reason = "process groups and sessions are made between fork and exec")]
pub unsafe fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the caller answers for `work`.
    unsafe { command.pre_exec(work) };
}
