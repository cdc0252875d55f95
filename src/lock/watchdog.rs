//! A companion of the gpuctl that runs a command under the lock. It ends the command when that
//! gpuctl dies, or no longer reports that the lock is held; then it does what that gpuctl owed
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

/// Name of the subcommand that runs the watchdog.
const COMMAND: &str = "watchdog";

/// How long before the end of the lock's time the watchdog renews the lock itself, if its gpuctl
/// has not: the time that a renewal may take.
const ASKING: Duration = RENEWAL_LIMIT;

#[derive(Serialize, Deserialize)]
enum Message {
    /// The command to end, and how long it may take before it is killed. The token is a secret,
    /// which is why it is no argument of the watchdog; without a group, the token alone tells which
    /// the command's processes are.
    Command { group: Option<process::Id>, token: String, grace: Duration },
    /// The command has ended.
    Ended,
    /// What has to be done once the command has ended, in the form that `serve` passes on to `pay`.
    Debt(Value),
    /// The lock in Redis, which has to be given back when the last process that keeps the machine's
    /// lock has ended.
    Keep(Kept),
    /// The time since boot until which the lock is held.
    Valid(SinceBoot),
}

/// The watchdog, as seen by the gpuctl that has started it.
pub struct Watchdog {
    companion: Companion,
}

impl Watchdog {
    /// Starts a watchdog. It keeps the machine's lock, by the descriptor `lock`, until its work is
    /// done.
    pub fn start(lock: BorrowedFd, config: &Config) -> Result<Watchdog> {
        let arguments = config.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(Watchdog { companion: Companion::start(COMMAND, &arguments, Some(lock))? })
    }

    /// Starts a watchdog that only keeps the lock in Redis.
    pub fn keep(kept: Kept) -> Result<()> {
        let mut companion = Companion::start(COMMAND, &[], None)?;
        companion.tell(&Message::Keep(kept));
        Ok(())
    }

    /// Tells the watchdog about the lock in Redis that it has to keep.
    pub fn keep_for(&mut self, kept: Kept) {
        self.companion.tell(&Message::Keep(kept));
    }

    /// Tells the watchdog which command it has to end if this gpuctl cannot.
    pub fn watch(&mut self, group: Option<process::Id>, token: &str, grace: Duration) {
        self.companion.tell(&Message::Command { group, token: token.to_owned(), grace });
    }

    /// Tells the watchdog that there is no command any more.
    pub fn command_ended(&mut self) {
        self.companion.tell(&Message::Ended);
    }

    /// Tells the watchdog what it has to do after the command.
    pub fn owe(&mut self, debt: Value) {
        self.companion.tell(&Message::Debt(debt));
    }

    /// Tells the watchdog until when the lock is held.
    pub fn extend(&mut self, valid_until: SinceBoot) {
        self.companion.tell(&Message::Valid(valid_until));
    }

    /// Ends the watchdog, and with it the last process that this gpuctl has started for itself.
    pub fn dismiss(self) {
        self.companion.dismiss();
    }
}

/// Gives back the lock in Redis, for a caller that has the machine's lock no longer. If processes
/// that worked under the token still keep the machine's lock, a watchdog is started that keeps the
/// lock in Redis for them. Returns whether the lock was the token's.
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
            // There is nobody to tell that the lock was lost: if nobody has taken it since, it is
            // not.
            let is_ours = redis.renew(token, TTL, Renewal::Late)?;
            if let Some(kept) = Kept::new(config, token).filter(|_| is_ours) {
                Watchdog::keep(kept)?;
            }
            Ok(is_ours)
        }
        // The lock was taken by hand and is not over.
        Some(_) => redis.renew(token, Duration::ZERO, Renewal::Last),
    }
}

/// Runs the watchdog for the gpuctl with the PID `of`: listens until it has to act or is dismissed,
/// ends the command, and then does what is owed by calling `pay`.
pub fn serve(of: Pid, pay: impl FnOnce(Value) -> Result<()>) -> Result<Answer> {
    let mut listener = Listener::new(of)?;
    let (mut command, mut debt, mut kept, mut valid) = (None, None, None::<Kept>, None);
    // The end of the lock's time before which the watchdog has tried to renew it.
    let mut tried = None;
    loop {
        let is_tried = tried == valid;
        // While nothing works yet, nothing has to be ended.
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
            // A gpuctl that is only stopped keeps the machine's lock, and the one in Redis for as
            // long as nobody wants it. A gpuctl that was suspended together with this process could
            // not renew it.
            Heard::TimedOut => {
                let is_late = valid.is_some_and(|until| (until + LATE).has_come());
                let ask = || kept.as_ref()?.hold_on(is_late);
                let held = if is_tried && !is_late { None } else { ask() };
                let grace = command.as_ref().map(|(.., grace)| *grace);
                match held.zip(grace.or(debt.as_ref().map(|_| Duration::ZERO))) {
                    Some((until, grace)) => valid = Some(until.earlier(grace + MARGIN)),
                    None if is_tried || is_late => {
                        // What is owed cannot be paid when the card may be another's.
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
            // Meanwhile another watchdog renews the lock in Redis, and gives it back when this one
            // has ended.
            let _ = kept.map(Watchdog::keep).transpose();
            pay(debt)?;
        }
        (None, Some(kept)) if !kept.keep()? => kept.end_the_rest()?,
        (None, _) => {}
    }
    Ok(Answer::Yes)
}
