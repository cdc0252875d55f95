//! What gpuctl inherits from its caller: signals that are blocked or ignored, and resource limits.
//! None of it must reach a service.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGKILL, SIGPIPE, SIGSTOP, SIGXFSZ};
use std::sync::mpsc;
use std::thread;

/// The highest signal number on Linux.
const LAST_SIGNAL: i32 = 64;
/// Largest number of files that gpuctl has open at once, with a few services.
const FILES: u64 = 64;
/// Largest number of threads and processes that gpuctl has at once, with a few services.
const TASKS: usize = 32;
/// Limit on processes that gpuctl never reaches: a limit this high is neither raised nor tested.
const MANY_TASKS: u64 = 4096;

/// Unblocks all signals and restores the default action of those that the caller ignores, except
/// SIGHUP, which nohup(1) ignores for good reason, and SIGPIPE, which Rust ignores itself. SIGXFSZ
/// is ignored, so that a file that may not grow any more makes a write fail instead of ending the
/// process.
#[expect(unsafe_code, reason = "no crate of ours sets a mask or a disposition")]
pub fn reset_signals() {
    // SAFETY: plain system calls on values of our own, before there is another thread.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        let kept = [SIGKILL, SIGSTOP, SIGPIPE, SIGHUP];
        for signal in (1..=LAST_SIGNAL).filter(|signal| !kept.contains(signal)) {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::signal(SIGXFSZ, libc::SIG_IGN);
    }
}

/// Restores the default actions of SIGHUP and SIGXFSZ, which gpuctl may ignore, in a new process.
///
/// # Safety
/// Must be called only in a new process, between fork and exec. It makes two system calls, and does
/// nothing else.
#[expect(unsafe_code, reason = "as above")]
pub unsafe fn reset_ignored() {
    // SAFETY: plain system calls, safe in a signal handler.
    unsafe {
        libc::signal(SIGHUP, libc::SIG_DFL);
        libc::signal(SIGXFSZ, libc::SIG_DFL);
    }
}

/// Raises the limits that the caller has set on files and processes, as far as permitted, and fails
/// if what remains is not enough. Finding that out in the middle would mean that services were
/// stopped for nothing.
pub fn lift_limits() -> Result<()> {
    for resource in [Resource::Fsize, Resource::Nofile, Resource::Nproc] {
        lift(resource);
    }
    let refused = |what: &str, flag: &str| {
        Failure::new(
            Code::Permission,
            format!("{what}: the caller has set a limit (ulimit {flag})"),
        )
        .hint(format!("raise it before the call: ulimit {flag} unlimited, or as high as it goes"))
    };
    if getrlimit(Resource::Fsize).current.is_some() {
        return Err(refused("files may not grow as large as services need", "-f"));
    }
    if getrlimit(Resource::Nofile).current.is_some_and(|most| most < FILES) {
        return Err(refused("too few files may be open at once", "-n"));
    }
    let tasks = getrlimit(Resource::Nproc).current.filter(|most| *most < MANY_TASKS);
    if tasks.is_some() && !may_begin(TASKS) {
        return Err(refused("too few processes may run at once", "-u"));
    }
    Ok(())
}

/// Raises a limit that is too low: the hard limit too if that is permitted, otherwise only the soft
/// limit, up to the hard one.
fn lift(resource: Resource) {
    let limit = getrlimit(resource);
    // The usual limits of a machine were not set by the caller.
    let (enough, wanted) = match resource {
        Resource::Nofile => (FILES, Some(4096)),
        Resource::Nproc => (MANY_TASKS, None),
        _ => (u64::MAX, None),
    };
    if limit.current.is_none_or(|current| current >= enough) {
        return;
    }
    if setrlimit(resource, Rlimit { current: wanted, maximum: wanted }).is_err() {
        // If this fails, whatever needs more reports it itself.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Reports whether `count` threads can exist at once.
fn may_begin(count: usize) -> bool {
    let (end, ended) = mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    let begin = || {
        let ended = ended.clone();
        // The thread ends when the other end of the channel is dropped.
        thread::Builder::new().spawn(move || ended.lock().is_ok_and(|it| it.recv().is_ok()))
    };
    let begun: Vec<_> = (0..count).map_while(|_| begin().ok()).collect();
    drop(end);
    let all = begun.len() == count;
    begun.into_iter().for_each(|thread| drop(thread.join()));
    all
}
