//! Waiting for events: deaths of processes, answers of threads, signals to gpuctl itself.
//! Everything that blocks blocks here, so that every wait has a deadline and can be called off.

use super::host::since_boot;
use super::process;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
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

    /// The same, and also stopped when the client goes away that waits for the answer.
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
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signals = self.signals.iter().map(|signals| signals.arrived.as_fd());
        let events = self.events.iter().map(|event| event.fd());
        let lost = self.lease.iter().map(|lease| lease.lost.fd());
        signals.chain(events).chain(lost).chain(self.gone.iter().map(|gone| gone.fd()))
    }
}

/// Who comes so long after a time that it has waited for was stopped or suspended meanwhile.
pub const LATE: Duration = Duration::from_secs(1);

/// Asks whether a lock whose time may be over is still ours, and until when.
type Late = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// How long a lock is ours: until a time that only a renewal moves, or until it is seen to be
/// another's. It is told by the clock since boot, which also runs while gpuctl is stopped or the
/// machine sleeps.
pub struct Lease {
    lost: Arc<Event>,
    late: OnceLock<Late>,
    /// Milliseconds since boot.
    valid_until: AtomicU64,
    why: OnceLock<String>,
    /// Where the lock is, as far as that is to be told.
    place: String,
}

impl Lease {
    /// `place` is told after "the GPU lock is lost".
    pub fn until(valid_until: Duration, place: String) -> Result<Arc<Lease>> {
        let valid_until = AtomicU64::new(valid_until.as_millis() as u64);
        let (late, why) = (OnceLock::new(), OnceLock::new());
        Ok(Arc::new(Lease { lost: Event::new()?, late, valid_until, why, place }))
    }

    /// One that needs no renewal.
    pub fn endless() -> Result<Arc<Lease>> {
        Lease::until(Duration::from_millis(u64::MAX), String::new())
    }

    /// Who was stopped beyond its end asks first.
    pub fn when_late(&self, ask: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
        let _ = self.late.set(Box::new(ask));
    }

    /// A renewal has moved its end.
    pub fn extend(&self, valid_until: Duration) {
        self.valid_until.store(valid_until.as_millis() as u64, Ordering::SeqCst);
    }

    /// Tells until when it is valid, in time since boot; `None` if it needs no renewal.
    pub fn valid_until(&self) -> Option<Duration> {
        let until = self.valid_until.load(Ordering::SeqCst);
        (until != u64::MAX).then(|| Duration::from_millis(until))
    }

    /// It is another's now, or nobody's.
    pub fn lose(&self, why: &str) {
        // The first reason is the one that counts.
        let _ = self.why.set(why.to_owned());
        self.lost.set();
    }

    pub fn check(&self) -> Result<()> {
        let is_past = |by: Duration| {
            let until = self.valid_until().filter(|_| !self.lost.happened());
            until.is_some_and(|until| since_boot() >= until + by)
        };
        if is_past(LATE)
            && let Some(end) = self.late.get().and_then(|ask| ask())
        {
            self.extend(end);
        }
        if is_past(Duration::ZERO) {
            self.lose("it was not renewed in time, so that others may have taken it");
        }
        match self.why.get() {
            None => Ok(()),
            Some(why) => {
                let text = format!("the GPU lock is lost{}: {why}", self.place);
                Err(Failure::new(Code::LockLost, text).hint(
                    "nothing has been done since; check `gpuctl status`, then run the command again",
                ))
            }
        }
    }
}

/// Whether the process was started with a signal ignored.
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

/// Waits until one of `watched` is readable, the deadline passes or the work is called off.
pub fn wait(watched: &[BorrowedFd], stop: &Stop, deadline: Instant) -> Woken {
    let mut fds: Vec<PollFd> = watched
        .iter()
        .copied()
        .chain(stop.fds())
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
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
                thread::sleep(Duration::from_millis(10));
                return Woken::TimedOut;
            }
        }
    }
}

/// Work on a thread of its own, for calls that have no deadline themselves: whoever waits for it
/// can be called off, and leaves it behind then.
pub struct Aside<T> {
    ended: Arc<Event>,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

impl<T: Send + 'static> Aside<T> {
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Result<Aside<T>> {
        let aside = Aside { ended: Event::new()?, result: Arc::default() };
        let (ended, sink) = (aside.ended.clone(), aside.result.clone());
        thread::spawn(move || {
            // A panic is told to whoever waits, who would wait for nothing.
            let result = catch_unwind(AssertUnwindSafe(work));
            *sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            ended.set();
        });
        Ok(aside)
    }

    /// Happens when the work has ended.
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Returns what came of it; `None` while it is under way, and once it has been taken. Panics
    /// where the work has.
    pub fn take(&self) -> Option<T> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
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

    /// One that happens at a time, whatever else does.
    pub fn at(deadline: Instant) -> Result<Arc<Event>> {
        let event = Event::new()?;
        let due = event.clone();
        thread::spawn(move || {
            wait(&[due.fd()], &Stop::never(), deadline);
            due.set();
        });
        Ok(event)
    }

    pub fn happened(&self) -> bool {
        self.happened.load(Ordering::SeqCst)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Something that happens again and again, and wakes whoever waits for it.
pub struct Bell {
    fd: OwnedFd,
}

impl Bell {
    pub fn new() -> Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot make an eventfd: {e}")))?;
        Ok(Bell { fd })
    }

    pub fn ring(&self) {
        // It fails where it rings already, more often than a number can count.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Silences it until it rings again.
    pub fn hush(&self) {
        // It fails where it does not ring.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Wakes at a time since boot, also when the machine has slept past it.
pub struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub fn at(since_boot: Duration) -> Result<Timer> {
        let set = || {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let fd = timerfd_create(TimerfdClockId::Boottime, flags)?;
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            // Zero would disarm it.
            let at = since_boot.max(Duration::from_nanos(1));
            let it_value =
                Timespec { tv_sec: at.as_secs() as i64, tv_nsec: at.subsec_nanos().into() };
            timerfd_settime(
                &fd,
                TimerfdTimerFlags::ABSTIME,
                &Itimerspec { it_interval: never, it_value },
            )?;
            Ok(fd)
        };
        let failed =
            |e: rustix::io::Errno| Failure::new(Code::Internal, format!("cannot set a timer: {e}"));
        Ok(Timer { fd: set().map_err(failed)? })
    }

    /// Readable when the time has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stops_for_each_of_the_events_that_it_was_given() {
        for happening in 0..2 {
            let events = [(); 2].map(|()| Event::new().expect("a pipe"));
            let stop = Stop::never().or(&events[0]).or(&events[1]);
            assert!(stop.check().is_ok());
            assert_eq!(wait(&[], &stop, Instant::now()), Woken::TimedOut);
            events[happening].set();
            assert!(stop.check().is_err(), "{happening}");
            assert_eq!(wait(&[], &stop, Instant::now()), Woken::Stopped, "{happening}");
        }
    }
}
