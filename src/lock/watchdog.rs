//! A companion of the gpuctl that runs a command under the lock. It ends the command when that
//! gpuctl dies, or has stopped telling that the lock is still held.

use crate::error::Result;
use crate::exit::Answer;
use crate::model::Pid;
use crate::world::companion::{Companion, Heard, Listener};
use crate::world::ending::{FirstMove, end};
use crate::world::group;
use crate::world::process;
use crate::world::wait::Stop;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The subcommand that it is called with.
const COMMAND: &str = "watchdog";

#[derive(Serialize, Deserialize)]
enum Message {
    /// What to end, and how long it may take before it is killed. The token is a secret, which is
    /// why it is no argument; without a group it is what tells the command's processes.
    Command { group: Option<process::Id>, token: String, grace: Duration },
    /// The lock is held until then, since boot.
    Valid(Duration),
}

/// Our side of it.
pub struct Watchdog {
    companion: Companion,
}

impl Watchdog {
    /// It keeps the machine's lock by this descriptor, until it has done what it is for.
    pub fn start(lock: BorrowedFd) -> Result<Watchdog> {
        Ok(Watchdog { companion: Companion::start(COMMAND, &[], lock)? })
    }

    pub fn watch(
        &mut self,
        group: Option<process::Id>,
        token: &str,
        grace: Duration,
        valid_until: Option<Duration>,
    ) {
        valid_until.into_iter().for_each(|until| self.extend(until));
        self.companion.tell(&Message::Command { group, token: token.to_owned(), grace });
    }

    pub fn extend(&mut self, valid_until: Duration) {
        self.companion.tell(&Message::Valid(valid_until));
    }

    /// It ends, and with it the last process that is ours.
    pub fn dismiss(self) {
        self.companion.dismiss();
    }
}

/// The other side: listens until it has to act, or is dismissed.
pub fn serve(of: Pid) -> Result<Answer> {
    let mut listener = Listener::new(of)?;
    let (mut command, mut valid) = (None, None);
    loop {
        match listener.next(valid)? {
            Heard::Message(Message::Command { group, token, grace }) => {
                command = Some((group, token, grace));
            }
            Heard::Message(Message::Valid(until)) => valid = Some(until),
            Heard::Gone | Heard::TimedOut => break,
        }
    }
    if let Some((group, token, grace)) = command {
        end_command(group, &token, grace)?;
    }
    Ok(Answer::Yes)
}

/// Ends a command and all that works with its token.
pub fn end_command(leader: Option<process::Id>, token: &str, grace: Duration) -> Result<bool> {
    end("the command", || group::members(leader, token), FirstMove::Term, grace, &Stop::never())
}
