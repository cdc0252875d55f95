//! What calls work off: a signal, a step that failed, a lock that is lost, a client that is gone.

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

/// Tells work to stop: on SIGINT or SIGTERM, when a parallel step has failed, or when the lock
/// that it is done under is lost. Once told, it stays told.
#[derive(Clone)]
pub struct Stop {
    signals: Option<Arc<Signals>>,
    events: Vec<Arc<Event>>,
    lease: Option<Arc<Lease>>,
    gone: Option<Arc<Event>>,
}

struct Signals {
    /// Readable once a signal has come.
    arrived: UnixStream,
    number: Arc<AtomicUsize>,
    /// These make a second signal end the process at once.
    last_resort: Vec<SigId>,
}

impl Stop {
    /// Installs the handlers. A second signal ends the process at once.
    pub fn on_signals() -> std::io::Result<Stop> {
        let (arrived, sender) = UnixStream::pair()?;
        let number = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let mut last_resort = Vec::new();
        let mut signals = vec![SIGINT, SIGTERM];
        // Under `nohup` it stays ignored.
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

    /// Makes one for work that nothing calls off but its deadline.
    pub fn never() -> Stop {
        Stop { signals: None, events: Vec::new(), lease: None, gone: None }
    }

    /// Returns it so that it is also stopped when `event` happens.
    pub fn or(&self, event: &Arc<Event>) -> Stop {
        let mut stop = self.clone();
        stop.events.push(event.clone());
        stop
    }

    /// Returns it so that it is also stopped when the lock is lost.
    pub fn under(&self, lease: &Arc<Lease>) -> Stop {
        Stop { lease: Some(lease.clone()), ..self.clone() }
    }

    /// Returns it so that it is also stopped when the client goes away that waits for the answer.
    pub fn or_gone(&self, gone: &Arc<Event>) -> Stop {
        Stop { gone: Some(gone.clone()), ..self.clone() }
    }

    /// Returns it without the signals from now on, which somebody else takes: they neither stop
    /// this work nor end the process.
    pub fn without_signals(self) -> Stop {
        for id in self.signals.iter().flat_map(|signals| &signals.last_resort) {
            signal_hook::low_level::unregister(*id);
        }
        Stop { signals: None, ..self }
    }

    /// Fails when the work is to stop: asked before every step that changes the world.
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

    /// Readable once the work is to stop.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signals = self.signals.iter().map(|signals| signals.arrived.as_fd());
        let events = self.events.iter().map(|event| event.fd());
        let lost = self.lease.iter().map(|lease| lease.fd());
        signals.chain(events).chain(lost).chain(self.gone.iter().map(|gone| gone.fd()))
    }
}

/// Whether the process was started with a signal ignored.
#[expect(unsafe_code, reason = "no crate of ours asks for a disposition")]
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: it is only asked for, and what zeros say, where that fails, is the default.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
