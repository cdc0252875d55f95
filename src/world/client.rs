//! The HTTP client at the other end of stdin and stdout, which are one socket, or two pipes.

use super::wait::{Event, Stop, Woken, wait};
use crate::error::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrAny, getpeername, shutdown};
use rustix::stdio::{dup2_stderr, stderr, stdin, stdout};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a client that reads nothing, while the answer is written and after its last
/// part.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of bytes that can be written without blocking to anything that poll(2) calls writable.
const PART: usize = 4096;
/// Limit in bytes on what is read and thrown away of what a client still sends after the answer.
const REST: usize = 1024 * 1024;

/// Whether the client is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client on this machine: over the loopback or a Unix socket, or a caller that uses no
    /// socket at all.
    Local,
    Remote,
}

/// What came of waiting for more of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    More,
    /// The client sends no more.
    End,
    Late,
}

/// Reports where the client is; a socket that does not reveal it counts as remote.
pub fn peer() -> Peer {
    let is_local = |address: &SocketAddrAny| {
        let is_unix = address.address_family() == AddressFamily::UNIX;
        let ip =
            SocketAddr::try_from(address.clone()).ok().map(|address| address.ip().to_canonical());
        is_unix || ip.is_some_and(|ip| ip.is_loopback())
    };
    match getpeername(stdin()) {
        Err(Errno::NOTSOCK) => Peer::Local,
        // A Unix socket without a name has no address at all.
        Ok(None) => Peer::Local,
        Ok(Some(address)) if is_local(&address) => Peer::Local,
        Ok(_) | Err(_) => Peer::Remote,
    }
}

/// Redirects stderr to /dev/null if it is a socket, as inetd passes one: the client at its other
/// end must read nothing but the answer.
pub fn keep_stderr_apart() {
    let is_socket = |kind| FileType::from_raw_mode(kind) == FileType::Socket;
    if fstat(stderr()).is_ok_and(|it| is_socket(it.st_mode))
        && let Ok(null) = rustix::fs::open("/dev/null", OFlags::WRONLY, Mode::empty())
    {
        // If this fails, the client also reads what is printed there.
        let _ = dup2_stderr(null);
    }
}

/// Reads what has arrived, at most `most` bytes, and appends it to `into`. Waits for something to
/// arrive until the deadline.
pub fn read(into: &mut Vec<u8>, most: usize, deadline: Instant) -> std::io::Result<Arrival> {
    if wait(&[stdin()], &Stop::never(), deadline) == Woken::TimedOut {
        return Ok(Arrival::Late);
    }
    let mut part = [0; PART];
    let most = most.min(PART);
    match rustix::io::read(stdin(), &mut part[..most])? {
        0 => Ok(Arrival::End),
        count => {
            into.extend_from_slice(&part[..count]);
            Ok(Arrival::More)
        }
    }
}

/// Writes all bytes; fails if the client reads nothing for `PATIENCE`.
pub fn write(bytes: &[u8]) -> std::io::Result<()> {
    for mut rest in bytes.chunks(PART) {
        while !rest.is_empty() {
            if !becomes(PollFd::from_borrowed_fd(stdout(), PollFlags::OUT), Some(PATIENCE)) {
                return Err(Errno::TIMEDOUT.into());
            }
            match rustix::io::write(stdout(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// Ends the answer and waits, at most for `PATIENCE`, until the client has taken it: closing a
/// socket that holds unread data resets it, and the answer is lost. Fails if the client had gone
/// away before.
pub fn hang_up() -> std::io::Result<()> {
    match shutdown(stdout(), Shutdown::Write) {
        Err(Errno::NOTSOCK) => return Ok(()),
        result => result?,
    }
    let (mut unread, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while unread.len() < REST && read(&mut unread, REST, deadline)? == Arrival::More {}
    Ok(())
}

/// Returns an event that happens when the client has closed the connection or its half of it;
/// `None` if there is no connection to watch.
pub fn watch() -> Result<Option<Arc<Event>>> {
    if getpeername(stdin()) == Err(Errno::NOTSOCK) {
        return Ok(None);
    }
    let event = Event::new()?;
    let gone = event.clone();
    // The thread ends with the process.
    thread::spawn(move || {
        becomes(PollFd::from_borrowed_fd(stdin(), PollFlags::RDHUP), None);
        gone.set();
    });
    Ok(Some(event))
}

/// Waits until a descriptor is in the requested state or broken; `false` if that takes longer than
/// `limit`.
fn becomes(fd: PollFd, limit: Option<Duration>) -> bool {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [fd.clone()], timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}
