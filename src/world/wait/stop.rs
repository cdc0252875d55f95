//! What calls work off: a signal, a step that failed, a lock that was lost, a client that went
//! away.

use super::event::Event;
use super::lease::Lease;
use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::fd::{AsFd, BorrowedFd};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Calls work off: on SIGINT, SIGTERM or SIGHUP, when a parallel step has failed, when the lock
/// that the work is done under is lost, or when the client has gone away. Work that was called off
/// stays called off.
#[derive(Clone)]
pub struct Stop {
    signals: Option<Arc<Signals>>,
    events: Vec<Arc<Event>>,
    lease: Option<Arc<Lease>>,
    gone: Option<Arc<Event>>,
}

struct Signals {
    /// Readable once a signal has arrived.
    arrived: UnixStream,
    number: Arc<AtomicUsize>,
    /// Handlers that make a second signal end the process at once.
    last_resort: Vec<SigId>,
}

impl Stop {
    /// Installs the signal handlers. A second signal ends the process at once.
    pub fn on_signals() -> std::io::Result<Stop> {
        let (arrived, sender) = UnixStream::pair()?;
        let number = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let mut last_resort = Vec::new();
        let mut signals = vec![SIGINT, SIGTERM];
        // Under nohup(1), SIGHUP stays ignored.
        signals.extend((!is_ignored(SIGHUP)).then_some(SIGHUP));
        for signal in signals {
            let at_once = signal_hook::flag::register_conditional_default(signal, again.clone())?;
            last_resort.push(at_once);
            signal_hook::flag::register(signal, again.clone())?;
            signal_hook::flag::register_usize(signal, number.clone(), signal as usize)?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        let signals = Signals { arrived, number, last_resort };
        Ok(Stop { signals: Some(Arc::new(signals)), events: Vec::new(), lease: None, gone: None })
    }

    /// Creates a `Stop` that never calls work off, for work that ends by its deadline only.
    pub fn never() -> Stop {
        Stop { signals: None, events: Vec::new(), lease: None, gone: None }
    }

    /// Returns a copy that also calls work off when `event` happens.
    pub fn or(&self, event: &Arc<Event>) -> Stop {
        let mut stop = self.clone();
        stop.events.push(event.clone());
        stop
    }

    /// Returns a copy that also calls work off when the lock is lost.
    pub fn under(&self, lease: &Arc<Lease>) -> Stop {
        Stop { lease: Some(lease.clone()), ..self.clone() }
    }

    /// Returns a copy that also calls work off when the client that waits for the answer goes away.
    pub fn or_gone(&self, gone: &Arc<Event>) -> Stop {
        Stop { gone: Some(gone.clone()), ..self.clone() }
    }

    /// Returns a `Stop` that no signal calls off, for when other code takes the signals. From now
    /// on, a second signal does not end the process either.
    pub fn without_signals(self) -> Stop {
        for id in self.signals.iter().flat_map(|signals| &signals.last_resort) {
            signal_hook::low_level::unregister(*id);
        }
        Stop { signals: None, ..self }
    }

    /// Fails if the work has been called off; called before every step that changes anything
    /// outside gpuctl.
    pub fn check(&self) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), |lease| lease.check())?;
        if self.gone.as_ref().is_some_and(|gone| gone.happened()) {
            let why = "the client went away before its turn came; nothing was done";
            return Err(Failure::new(Code::LockBusy, why));
        }
        let signals = self.signals.as_ref();
        match signals.map_or(0, |signals| signals.number.load(Ordering::SeqCst)) {
            0 if self.events.iter().any(|event| event.happened()) => {
                Err(Failure::new(Code::Internal, "abandoned because another step failed"))
            }
            0 => Ok(()),
            signal => Err(Failure::new(
                Code::Interrupted(signal as i32),
                format!("interrupted by signal {signal}"),
            )
            .hint("run the same command again to continue from here")),
        }
    }

    /// Returns descriptors of which at least one is readable once the work has been called off.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signals = self.signals.iter().map(|signals| signals.arrived.as_fd());
        let events = self.events.iter().map(|event| event.fd());
        let lost = self.lease.iter().map(|lease| lease.fd());
        signals.chain(events).chain(lost).chain(self.gone.iter().map(|gone| gone.fd()))
    }
}

/// Reports whether this process ignores a signal, as the caller may have arranged (nohup(1)).
#[expect(unsafe_code, reason = "no crate of ours asks for a disposition")]
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the disposition is only read; if that fails, the zeroes stand for the default.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
