//! Waiting for events: the end of a process, the answer of a thread, a signal to gpuctl itself.
//! Everything that blocks does so here, so that every wait has a deadline and can be called off.

mod aside;
mod event;
mod handle;
mod lease;
mod stop;

pub use aside::Aside;
pub use event::Event;
pub use handle::Handle;
pub use lease::{LATE, Lease};
pub use stop::{Stop, is_ignored};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

/// Reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// At least one of the watched descriptors is readable.
    Event,
    TimedOut,
    /// The work was called off; [`Stop::check`] says why.
    Stopped,
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

/// Reports whether a descriptor is readable now.
fn is_readable(fd: BorrowedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
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
