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

/// How long a client that reads nothing is written to, and waited for until it has read the last of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many bytes go into anything that poll(2) calls writable without blocking.
const PART: usize = 4096;
/// What a client still sends after it was answered is thrown away up to this size.
const REST: usize = 1024 * 1024;

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It is on this machine: on the loopback, at a Unix socket, or whoever called us with no socket at all.
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

/// Where the client is; a socket that does not tell is nobody of this machine.
pub fn peer() -> Peer {
    let is_local = |address: &SocketAddrAny| {
        let is_unix = address.address_family() == AddressFamily::UNIX;
        let ip =
            SocketAddr::try_from(address.clone()).ok().map(|address| address.ip().to_canonical());
        is_unix || ip.is_some_and(|ip| ip.is_loopback())
    };
    match getpeername(stdin()) {
        Err(Errno::NOTSOCK) => Peer::Local,
        // Of a Unix socket without a name there is no address at all.
        Ok(None) => Peer::Local,
        Ok(Some(address)) if is_local(&address) => Peer::Local,
        Ok(_) | Err(_) => Peer::Remote,
    }
}

/// A socket as stderr is the client's, who is to read nothing but the answer: inetd gives us one.
pub fn keep_stderr_apart() {
    let is_socket = |kind| FileType::from_raw_mode(kind) == FileType::Socket;
    if fstat(stderr()).is_ok_and(|it| is_socket(it.st_mode))
        && let Ok(null) = rustix::fs::open("/dev/null", OFlags::WRONLY, Mode::empty())
    {
        // Where it fails, what is told there is lost with the connection.
        let _ = dup2_stderr(null);
    }
}

/// Reads what there is, at most so much; waits for it until the deadline.
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

/// Writes all of it, for as long as the client goes on reading.
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

/// Ends the answer, and waits until the client has taken it: a socket that is closed while something
/// in it is unread is reset, and the answer is lost. Fails where the client had gone away before.
pub fn hang_up() -> std::io::Result<()> {
    match shutdown(stdout(), Shutdown::Write) {
        Err(Errno::NOTSOCK) => return Ok(()),
        result => result?,
    }
    let (mut unread, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while unread.len() < REST && read(&mut unread, REST, deadline)? == Arrival::More {}
    Ok(())
}

/// Happens when the client has closed the connection, or its half of it; `None` where there is none.
pub fn watch() -> Result<Option<Arc<Event>>> {
    if getpeername(stdin()) == Err(Errno::NOTSOCK) {
        return Ok(None);
    }
    let event = Event::new()?;
    let gone = event.clone();
    // It ends with the process.
    thread::spawn(move || {
        becomes(PollFd::from_borrowed_fd(stdin(), PollFlags::RDHUP), None);
        gone.set();
    });
    Ok(Some(event))
}

/// Waits until a descriptor is as asked, or broken.
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
