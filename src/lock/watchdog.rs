//! A companion of the gpuctl that runs a command under the lock. It ends the command when that
//! gpuctl dies, or has stopped telling that the lock is still held; it does then what that gpuctl owed
//! others; and it keeps the lock in Redis for what the command has left in the background.

use super::claim::{MARGIN, Releaser, Renewal, TTL};
use super::keep::Kept;
use super::line::WaitingLine;
use super::machine::Machine;
use super::record::Ends;
use super::redis::{RENEWAL_LIMIT, Redis};
use super::rest::end_command;
use crate::config::Config;
use crate::error::Result;
use crate::exit::Answer;
use crate::model::Pid;
use crate::world::clock::SinceBoot;
use crate::world::companion::{Companion, Heard, Listener};
use crate::world::process;
use crate::world::wait::LATE;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// The subcommand that it is called with.
const COMMAND: &str = "watchdog";

/// So long before the end of a lock that its gpuctl does not renew we do.
const ASKING: Duration = RENEWAL_LIMIT;

#[derive(Serialize, Deserialize)]
enum Message {
    /// What to end, and how long it may take before it is killed. The token is a secret, which is
    /// why it is no argument; without a group it is what tells the command's processes.
    Command { group: Option<process::Id>, token: String, grace: Duration },
    /// The command has ended.
    Ended,
    /// What is to be done once the command has ended, in the words of who does it.
    Debt(Value),
    /// The lock in Redis, to be given back when the last process has ended that keeps the machine's.
    Keep(Kept),
    /// The lock is held until then.
    Valid(SinceBoot),
}

/// Our side of it.
pub struct Watchdog {
    companion: Companion,
}

impl Watchdog {
    /// It keeps the machine's lock by this descriptor, until it has done what it is for.
    pub fn start(lock: BorrowedFd, config: &Config) -> Result<Watchdog> {
        let arguments = config.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(Watchdog { companion: Companion::start(COMMAND, &arguments, Some(lock))? })
    }

    /// One that only keeps the lock in Redis.
    pub fn keep(kept: Kept) -> Result<()> {
        let mut companion = Companion::start(COMMAND, &[], None)?;
        companion.tell(&Message::Keep(kept));
        Ok(())
    }

    /// Tells it of the lock in Redis.
    pub fn keep_for(&mut self, kept: Kept) {
        self.companion.tell(&Message::Keep(kept));
    }

    pub fn watch(&mut self, group: Option<process::Id>, token: &str, grace: Duration) {
        self.companion.tell(&Message::Command { group, token: token.to_owned(), grace });
    }

    /// There is no command any more.
    pub fn command_ended(&mut self) {
        self.companion.tell(&Message::Ended);
    }

    /// Tells it what is to be done after the command.
    pub fn owe(&mut self, debt: Value) {
        self.companion.tell(&Message::Debt(debt));
    }

    pub fn extend(&mut self, valid_until: SinceBoot) {
        self.companion.tell(&Message::Valid(valid_until));
    }

    /// It ends, and with it the last process that is ours.
    pub fn dismiss(self) {
        self.companion.dismiss();
    }
}

/// Gives back the lock in Redis, by one who has not the machine's any more, or has it kept for those
/// who have; tells whether it was the token's.
pub fn give_back(config: &Config, redis: &mut Redis, by: Releaser) -> Result<bool> {
    let (Releaser::Holder(token) | Releaser::Bearer(token)) = by else {
        return redis.release(by, None);
    };
    let machine = Machine::find(&config.lock.place.file)?;
    let left = machine.as_ref().and_then(|machine| machine.held().ok().flatten());
    match left.filter(|held| held.is_of(token)) {
        None => {
            let next = machine.and_then(|machine| WaitingLine::next(machine.lock()).ok().flatten());
            redis.release(by, next.as_ref())
        }
        Some(held) if held.ends == Ends::WithProcesses => {
            // Nobody is there who could be told that it was lost: where nobody came, it is not.
            let is_ours = redis.renew(token, TTL, Renewal::Late)?;
            if let Some(kept) = Kept::new(config, token).filter(|_| is_ours) {
                Watchdog::keep(kept)?;
            }
            Ok(is_ours)
        }
        // Taken by hand, and not over.
        Some(_) => redis.renew(token, Duration::ZERO, Renewal::Last),
    }
}

/// The other side: listens until it has to act, or is dismissed. It ends the command, and has what
/// is owed then paid.
pub fn serve(of: Pid, pay: impl FnOnce(Value) -> Result<()>) -> Result<Answer> {
    let mut listener = Listener::new(of)?;
    let (mut command, mut debt, mut kept, mut valid) = (None, None, None::<Kept>, None);
    // The end of the lock's time for which that was tried.
    let mut tried = None;
    loop {
        let is_tried = tried == valid;
        // Where nothing works yet, nothing has to be ended.
        let is_needed = command.is_some() || debt.is_some();
        let until = valid.filter(|_| is_needed).map(|until: SinceBoot| match is_tried {
            true => until,
            false => until.earlier(ASKING),
        });
        match listener.next(until)? {
            Heard::Message(Message::Command { group, token, grace }) => {
                command = Some((group, token, grace));
            }
            Heard::Message(Message::Ended) => command = None,
            Heard::Message(Message::Debt(owed)) => debt = Some(owed),
            Heard::Message(Message::Keep(lock)) => kept = Some(lock),
            Heard::Message(Message::Valid(until)) => valid = Some(until),
            Heard::Gone => break,
            // A gpuctl that is only stopped keeps the machine's lock, and that in Redis for as long
            // as nobody wants it. One that was suspended with us has been kept from renewing it.
            Heard::TimedOut => {
                let is_late = valid.is_some_and(|until| (until + LATE).has_come());
                let ask = || kept.as_ref()?.hold_on(is_late);
                let held = if is_tried && !is_late { None } else { ask() };
                let grace = command.as_ref().map(|(.., grace)| *grace);
                match held.zip(grace.or(debt.as_ref().map(|_| Duration::ZERO))) {
                    Some((until, grace)) => valid = Some(until.earlier(grace + MARGIN)),
                    None if is_tried || is_late => {
                        // What is owed cannot be paid where the card may be another's.
                        (kept, debt) = (None, None);
                        break;
                    }
                    None => tried = valid,
                }
            }
        }
    }
    if let Some((group, token, grace)) = command {
        end_command(group, &token, grace)?;
    }
    match (debt, kept) {
        (Some(debt), kept) => {
            // Meanwhile another one renews the lock in Redis, and gives it back when we have ended.
            let _ = kept.map(Watchdog::keep).transpose();
            pay(debt)?;
        }
        (None, Some(kept)) if !kept.keep()? => kept.end_the_rest()?,
        (None, _) => {}
    }
    Ok(Answer::Yes)
}
