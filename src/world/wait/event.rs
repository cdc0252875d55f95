//! Events that wake their waiters, either because they are set or because their time has come.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::clock::SinceBoot;
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that happens and wakes all that wait for it. An event that has happened stays so until
/// it is cleared.
pub struct Event {
    /// Descriptor that is readable once the event has happened.
    fd: OwnedFd,
}

impl Event {
    /// Creates an event that happens when it is set.
    pub fn new() -> Result<Arc<Event>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Event::of(fd)
    }

    /// Creates an event that happens at `deadline`, whether or not it is set. Time for which the
    /// machine is suspended does not count.
    pub fn at(deadline: Instant) -> Result<Arc<Event>> {
        let left = deadline.saturating_duration_since(Instant::now());
        Event::of(timer(TimerfdClockId::Monotonic, TimerfdTimerFlags::empty(), left))
    }

    /// Creates an event that happens at a time since boot, even if the machine is suspended past
    /// that time.
    pub fn at_since_boot(moment: SinceBoot) -> Result<Arc<Event>> {
        Event::of(timer(TimerfdClockId::Boottime, TimerfdTimerFlags::ABSTIME, moment.time()))
    }

    fn of(fd: rustix::io::Result<OwnedFd>) -> Result<Arc<Event>> {
        let failed = |e| Failure::new(Code::Internal, format!("cannot make an event: {e}"));
        Ok(Arc::new(Event { fd: fd.map_err(failed)? }))
    }

    /// Makes the event happen; has no effect on an event that waits for a time.
    pub fn set(&self) {
        // The write fails on a timer, or if the event has been set more often than its counter can
        // hold.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Marks the event as not happened, until it happens again.
    pub fn clear(&self) {
        // The read fails if the event has not happened.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    /// Reports whether the event has happened.
    pub fn happened(&self) -> bool {
        super::is_readable(self.fd())
    }

    /// Returns a descriptor that is readable once the event has happened.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn timer(
    clock: TimerfdClockId,
    flags: TimerfdTimerFlags,
    at: Duration,
) -> rustix::io::Result<OwnedFd> {
    let fd = timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    // Zero would disarm the timer.
    let at = at.max(Duration::from_nanos(1));
    // A time that is too far away to be expressed never comes.
    let at = Timespec::try_from(at).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    timerfd_settime(&fd, flags, &Itimerspec { it_interval: never, it_value: at })?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::wait::{Stop, Woken, wait};

    #[test]
    fn an_event_has_happened_once_it_is_told_or_its_time_has_come_and_not_before() {
        let told = Event::new().expect("an event");
        assert!(!told.happened());
        told.set();
        told.set();
        assert!(told.happened() && told.happened());
        told.clear();
        assert!(!told.happened());
        let far = Duration::from_secs(3600);
        let later = [Event::at(Instant::now() + far), Event::at_since_boot(SinceBoot::now() + far)];
        assert!(later.map(|event| event.expect("a timer")).iter().all(|it| !it.happened()));
        let never = Event::at_since_boot(SinceBoot::after_boot(Duration::MAX)).expect("a timer");
        assert!(!never.happened());
        let now = [Event::at(Instant::now()), Event::at_since_boot(SinceBoot::default())];
        for event in now.map(|event| event.expect("a timer")) {
            let woken = wait(&[event.fd()], &Stop::never(), Instant::now() + far);
            assert_eq!(woken, Woken::Event);
            assert!(event.happened());
        }
    }
}
