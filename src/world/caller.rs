//! What a caller hands down to gpuctl: signals that it blocks or ignores, and limits. None of it is
//! to reach a service.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGKILL, SIGPIPE, SIGSTOP, SIGXFSZ};
use std::sync::mpsc;
use std::thread;

/// The highest signal number on Linux.
const LAST_SIGNAL: i32 = 64;
/// Files that gpuctl has open at once at most, with a few services.
const FILES: u64 = 64;
/// Threads and processes that it has at once at most, with a few services.
const TASKS: usize = 32;
/// A limit above this is none that gpuctl could meet.
const MANY_TASKS: u64 = 4096;

/// Unblocks all signals and gives those that the caller ignores their defaults back, but for SIGHUP,
/// which nohup(1) ignores for good reason, and for SIGPIPE, which Rust ignores itself. A file that may
/// not grow any more is told by the write that fails, and ends nobody.
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

/// Gives a new process the default for what gpuctl itself ignores.
///
/// # Safety
/// It is for the time between fork and exec: two system calls, and nothing else.
#[expect(unsafe_code, reason = "as above")]
pub unsafe fn reset_ignored() {
    // SAFETY: plain system calls, safe in a signal handler.
    unsafe {
        libc::signal(SIGHUP, libc::SIG_DFL);
        libc::signal(SIGXFSZ, libc::SIG_DFL);
    }
}

/// Raises the limits that the caller has set, as far as it may, and makes sure that what is left is
/// enough: whoever finds that out in the middle has stopped services for nothing.
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

/// Lifts a limit that is too low: for good where that is allowed, else to the highest that is.
fn lift(resource: Resource) {
    let limit = getrlimit(resource);
    // The usual limits of a machine are no caller's doing.
    let (enough, wanted) = match resource {
        Resource::Nofile => (FILES, Some(4096)),
        Resource::Nproc => (MANY_TASKS, None),
        _ => (u64::MAX, None),
    };
    if limit.current.is_none_or(|current| current >= enough) {
        return;
    }
    if setrlimit(resource, Rlimit { current: wanted, maximum: wanted }).is_err() {
        // Without it, what needs more says so itself.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Whether so many threads can be there at once.
fn may_begin(count: usize) -> bool {
    let (end, ended) = mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    let begin = || {
        let ended = ended.clone();
        // It goes when the other end of the channel does.
        thread::Builder::new().spawn(move || ended.lock().is_ok_and(|it| it.recv().is_ok()))
    };
    let begun: Vec<_> = (0..count).map_while(|_| begin().ok()).collect();
    drop(end);
    let all = begun.len() == count;
    begun.into_iter().for_each(|thread| drop(thread.join()));
    all
}
