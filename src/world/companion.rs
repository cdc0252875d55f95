//! A second gpuctl process, in a session of its own, that goes on when the first one dies. It
//! receives messages over a pipe, one line of JSON each, and the kernel reports to it that the
//! first process has ended.

use super::clock::SinceBoot;
use super::command::{close_on_exec, start_companion};
use super::wait::{Event, Handle, Stop, Woken, wait};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::Write;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a process may take to end after its descriptors have been closed.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The starting process's side of a companion. When this is dropped, the companion takes that
/// process for dead.
pub struct Companion {
    pipe: std::fs::File,
    child: Child,
}

impl Companion {
    /// Starts gpuctl with a subcommand that takes this process's PID, and with `arguments`. The
    /// companion keeps the descriptor `keeps`, if any, for as long as it lives.
    pub fn start(
        subcommand: &str,
        arguments: &[&str],
        keeps: Option<BorrowedFd>,
    ) -> Result<Companion> {
        let (input, pipe) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot make a pipe: {e}")))?;
        let me = std::process::id().to_string();
        let child = start_companion(&[&[subcommand, &me], arguments].concat(), input, keeps)?;
        Ok(Companion { pipe: pipe.into(), child })
    }

    pub fn pid(&self) -> Pid {
        self.child.id() as Pid
    }

    /// Sends a message to the companion; the message is lost if the companion has been killed.
    pub fn tell(&mut self, message: &impl Serialize) {
        let mut line = serde_json::to_vec(message).expect("a message of plain fields");
        line.push(b'\n');
        let _ = self.pipe.write_all(&line);
    }

    /// Ends a companion that is no longer needed, before it can take this process for dead.
    pub fn dismiss(mut self) {
        // The companion's exit status does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The companion's side, which receives messages from the process that started it.
pub struct Listener {
    input: OwnedFd,
    other: Option<Handle>,
    heard: Vec<u8>,
}

/// What came of waiting for a message.
pub enum Heard<M> {
    Message(M),
    /// The process that started the companion has ended.
    Gone,
    TimedOut,
}

impl Listener {
    /// Listens on stdin to `other`, the process that started this one.
    pub fn new(other: Pid) -> Result<Listener> {
        close_on_exec()
            .map_err(|e| Failure::new(Code::Internal, format!("cannot mark descriptors: {e}")))?;
        let input = rustix::io::dup(rustix::stdio::stdin())
            .map_err(|e| Failure::new(Code::Io, format!("cannot read from stdin: {e}")))?;
        // A polite request to end is meant for the other process, which says when this one may end.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::default())
                .map_err(|e| Failure::new(Code::Internal, format!("cannot handle signals: {e}")))?;
        }
        Ok(Listener { input, other: Handle::open(other), heard: Vec::new() })
    }

    /// Returns `Gone` once the other process has ended: its pipe is closed a moment before that,
    /// when others do not see its end yet.
    fn gone<M>(&self) -> Heard<M> {
        if let Some(other) = &self.other {
            wait(&[other.fd()], &Stop::never(), Instant::now() + END_LIMIT);
        }
        Heard::Gone
    }

    /// Returns the next message, waiting for it until the moment `until`, or without a limit if
    /// that is `None`.
    pub fn next<M: DeserializeOwned>(&mut self, until: Option<SinceBoot>) -> Result<Heard<M>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                let message = serde_json::from_slice(&line).map_err(|e| {
                    Failure::new(Code::Internal, format!("received something unknown: {e}"))
                })?;
                return Ok(Heard::Message(message));
            }
            let timer = until.map(Event::at_since_boot).transpose()?;
            let mut watched = vec![self.input.as_fd()];
            watched.extend(timer.iter().map(|timer| timer.fd()));
            let far = Instant::now() + Duration::from_secs(24 * 60 * 60);
            wait(&watched, &Stop::never(), far);
            // A message that was sent in time counts, even if it is read too late.
            if wait(&[self.input.as_fd()], &Stop::never(), Instant::now()) == Woken::Event {
                let mut part = [0; 4096];
                match rustix::io::read(&self.input, &mut part) {
                    Ok(count @ 1..) => self.heard.extend_from_slice(&part[..count]),
                    Err(rustix::io::Errno::INTR) => {}
                    Ok(0) | Err(_) => return Ok(self.gone()),
                }
            } else if until.is_some_and(SinceBoot::has_come) {
                return Ok(Heard::TimedOut);
            }
        }
    }
}
