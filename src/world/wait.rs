//! Waiting for events: deaths of processes, answers of threads, signals to gpuctl itself.
//! Everything that blocks blocks here, so that every wait has a deadline and can be called off.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// One of the watched descriptors has something to say.
    Event,
    TimedOut,
    /// The work was called off; see [`Stop::check`].
    Stopped,
}

/// Tells work to stop: on SIGINT or SIGTERM, or when a parallel step has failed. Once told, it
/// stays told.
#[derive(Clone)]
pub struct Stop {
    signals: Arc<Signals>,
    siblings: Option<Arc<Event>>,
}

struct Signals {
    /// Readable once a signal has come.
    arrived: UnixStream,
    number: Arc<AtomicUsize>,
}

impl Stop {
    /// Installs the handlers. A second signal ends the process at once.
    pub fn on_signals() -> std::io::Result<Stop> {
        let (arrived, sender) = UnixStream::pair()?;
        let number = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let mut signals = vec![SIGINT, SIGTERM];
        // Under `nohup` it stays ignored.
        signals.extend((!is_ignored(SIGHUP)).then_some(SIGHUP));
        for signal in signals {
            signal_hook::flag::register_conditional_default(signal, again.clone())?;
            signal_hook::flag::register(signal, again.clone())?;
            signal_hook::flag::register_usize(signal, number.clone(), signal as usize)?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Stop { signals: Arc::new(Signals { arrived, number }), siblings: None })
    }

    /// The same, and also stopped when `event` happens.
    pub fn or(&self, event: &Arc<Event>) -> Stop {
        Stop { signals: self.signals.clone(), siblings: Some(event.clone()) }
    }

    /// Fails when the work is to stop: asked before every step that changes the world.
    pub fn check(&self) -> Result<()> {
        match self.signals.number.load(Ordering::SeqCst) {
            0 if self.siblings.as_ref().is_some_and(|event| event.happened()) => {
                Err(Failure::new(Code::Internal, "given up because another step failed"))
            }
            0 => Ok(()),
            signal => Err(Failure::new(
                Code::Interrupted(signal as i32),
                format!("interrupted by signal {signal}"),
            )
            .hint("the same command run again goes on from here")),
        }
    }
}

/// Whether the process was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

/// Waits until one of `watched` is readable, the deadline passes or the work is called off.
pub fn wait(watched: &[BorrowedFd], stop: &Stop, deadline: Instant) -> Woken {
    let mut fds: Vec<PollFd> =
        watched.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    fds.push(PollFd::from_borrowed_fd(stop.signals.arrived.as_fd(), PollFlags::IN));
    if let Some(event) = &stop.siblings {
        fds.push(PollFd::from_borrowed_fd(event.reader.as_fd(), PollFlags::IN));
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Woken::TimedOut,
            Ok(_) => {
                let (events, stops) = fds.split_at(watched.len());
                if stops.iter().any(|fd| !fd.revents().is_empty()) {
                    return Woken::Stopped;
                }
                debug_assert!(events.iter().any(|fd| !fd.revents().is_empty()));
                return Woken::Event;
            }
            // A signal handler ran; its pipe is readable now.
            Err(rustix::io::Errno::INTR) => {}
            // Not to be expected of poll(2); a short pause keeps the caller's loop from spinning.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                return Woken::TimedOut;
            }
        }
    }
}

/// Something that happens once and wakes whoever waits for it.
pub struct Event {
    reader: OwnedFd,
    writer: OwnedFd,
    happened: AtomicBool,
}

impl Event {
    pub fn new() -> Result<Arc<Event>> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot make a pipe: {e}")))?;
        Ok(Arc::new(Event { reader, writer, happened: AtomicBool::new(false) }))
    }

    pub fn set(&self) {
        if !self.happened.swap(true, Ordering::SeqCst) {
            // One byte into an empty pipe cannot block, and nobody closes the reader before us.
            let _ = rustix::io::write(&self.writer, &[1]);
        }
    }

    pub fn happened(&self) -> bool {
        self.happened.load(Ordering::SeqCst)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

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

    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
