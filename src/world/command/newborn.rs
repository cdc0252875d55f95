//! What a new process does between fork and exec, before it becomes the program that it was made
//! for.

use crate::world::caller;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::{FdFlags, fcntl_setfd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes a command leave gpuctl's session, with default actions for the signals that gpuctl ignores
/// and without the descriptors that it has open.
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

/// Marks all descriptors but the first three so that a program which replaces this process does not
/// inherit them. They are marked rather than closed, because the standard library reports a failed
/// exec through one of them. Async-signal-safe.
pub fn close_on_exec() -> std::io::Result<()> {
    // SAFETY: a plain system call.
    #[expect(unsafe_code, reason = "no crate of ours has it")]
    let all =
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if all == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes a command inherit a descriptor, which must stay open until the command is started.
pub fn inherit(command: &mut Command, fd: BorrowedFd) {
    let number = fd.as_raw_fd();
    let keep = move || {
        // SAFETY: in the new process, the number is a copy of a descriptor that is open in gpuctl.
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

/// Makes a command do `work` in its new process before it becomes the program.
///
/// # Safety
///
/// The new process has only one of gpuctl's threads, and whatever the others were doing stays as it
/// was. So `work` must make only calls that are safe in a signal handler (signal-safety(7)): it
/// must neither allocate nor free, take no lock, and not panic.
#[expect(unsafe_code, reason = "process groups and sessions are made between fork and exec")]
pub unsafe fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the caller answers for `work`.
    unsafe { command.pre_exec(work) };
}
