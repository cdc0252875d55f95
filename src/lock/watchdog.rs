//! A gpuctl beside the one that runs a command under the lock, in a session of its own. It ends the
//! command when that gpuctl dies, or has stopped telling that the lock is still held; the two talk
//! over a pipe, whose end the kernel tells of.

use super::Group;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::world::command::start_companion;
use crate::world::ending::{FirstMove, end};
use crate::world::wait::{Stop, Timer, wait};
use rustix::fd::{AsFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::Write;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The subcommand that it is called with.
pub const COMMAND: &str = "watchdog";

/// One line of JSON each.
#[derive(Serialize, Deserialize)]
enum Message {
    /// What to end, and how long it may take before it is killed. The token is a secret, which is
    /// why it is no argument.
    Command { group: Group, token: String, grace: Duration },
    /// The lock is held until then, since boot.
    Valid(Duration),
}

/// Our side of it.
pub struct Watchdog {
    pipe: std::fs::File,
    child: Child,
}

impl Watchdog {
    pub fn start() -> Result<Watchdog> {
        let (input, pipe) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot make a pipe: {e}")))?;
        let child = start_companion(&[COMMAND], input)?;
        Ok(Watchdog { pipe: pipe.into(), child })
    }

    pub fn watch(&mut self, group: Group, token: &str, grace: Duration, valid_until: Duration) {
        self.tell(&Message::Valid(valid_until));
        self.tell(&Message::Command { group, token: token.to_owned(), grace });
    }

    pub fn extend(&mut self, valid_until: Duration) {
        self.tell(&Message::Valid(valid_until));
    }

    /// It ends, and with it the last process that is ours.
    pub fn dismiss(mut self) {
        // Before the pipe is closed, which tells it to act. It has nothing to tell itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn tell(&mut self, message: &Message) {
        let mut line = serde_json::to_vec(message).expect("a message of plain fields");
        line.push(b'\n');
        // Where it has been killed, we end the command ourselves.
        let _ = self.pipe.write_all(&line);
    }
}

/// The other side: listens on `input` until it may go or has to act.
pub fn serve(input: OwnedFd) -> Result<Answer> {
    // What ends gpuctl politely is passed on to the command, which may take its time.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|e| Failure::new(Code::Internal, format!("cannot handle signals: {e}")))?;
    }
    let mut heard: Vec<u8> = Vec::new();
    let mut command = None;
    let mut valid = None;
    loop {
        let timer = valid.map(Timer::at).transpose()?;
        let mut watched = vec![input.as_fd()];
        watched.extend(timer.iter().map(Timer::fd));
        wait(&watched, &Stop::never(), Instant::now() + Duration::from_secs(24 * 60 * 60));
        let mut part = [0; 4096];
        // Whether there is anything to read is asked last, so that a renewal counts that has come.
        match read_if_any(&input, &mut part) {
            Some(0) => break,
            Some(count) => heard.extend_from_slice(&part[..count]),
            None if valid.is_some_and(|end| crate::world::host::since_boot() >= end) => break,
            None => {}
        }
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Message::Command { group, token, grace }) => {
                    command = Some((group, token, grace));
                }
                Ok(Message::Valid(until)) => valid = Some(until),
                Err(e) => {
                    let message = format!("the watchdog was told something it does not know: {e}");
                    return Err(Failure::new(Code::Internal, message));
                }
            }
        }
    }
    if let Some((group, token, grace)) = command {
        end_command(group, &token, grace)?;
    }
    Ok(Answer::Yes)
}

/// Ends a command and all that works with its token.
pub fn end_command(group: Group, token: &str, grace: Duration) -> Result<bool> {
    end("the command", || group.members(token), FirstMove::Term, grace, &Stop::never())
}

/// `None` where nothing has come.
fn read_if_any(input: &OwnedFd, part: &mut [u8]) -> Option<usize> {
    let woken = wait(&[input.as_fd()], &Stop::never(), Instant::now());
    (woken == crate::world::wait::Woken::Event).then(|| rustix::io::read(input, part).unwrap_or(0))
}
