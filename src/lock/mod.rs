//! The GPU lock: one holder at a time, the longest waiting next, and a number (the fence) that
//! rises with every holder. It is kept in Redis or in a file; both make the same promises.

mod file;
mod guard;
mod memory;
mod record;
mod redis;
pub mod watchdog;

#[cfg(any(test, fuzzing))]
pub use file::Stored;
pub use guard::{Guard, Heirloom, Purpose};
pub use record::{Held, Record, name_of};
pub use redis::Server;

use crate::config::{Config, Place};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use crate::world::host::{random_hex, since_boot};
use crate::world::process;
use crate::world::wait::{Handle, Stop, wait};
use memory::Memory;
use std::time::{Duration, Instant};

/// Between two tries at a server that will be ready in a moment.
const UNREADY_PAUSE: Duration = Duration::from_millis(100);

/// Of a lock that is to last, while it is not known to be taken.
const BEFORE_KEPT: Duration = Duration::from_secs(30);

/// A place where the lock is kept.
pub trait Backend: Send {
    /// One try to take the lock, and with `queues` a place in the line for it.
    fn attempt(&mut self, claim: &Claim, queues: bool, stop: &Stop) -> Result<Attempt>;

    /// Sleeps until another try may have another result; after one that found the lock busy.
    fn wait_for_change(&mut self, claim: &Claim, stop: &Stop, deadline: Instant) -> Result<()>;

    /// Gives a lock that is still the claim's its full time again, and the record its new content;
    /// false where it is not the claim's any more.
    fn renew(&mut self, claim: &Claim) -> Result<bool>;

    /// Gives up the lock or the place in the line; without a token whatever lock there is. Tells
    /// whether there was such a lock.
    fn release(&mut self, token: Option<&str>) -> Result<bool>;

    /// Who holds it; one that is proved to be over is held by nobody.
    fn look(&mut self) -> Result<Option<Held>>;
}

/// Who wants the lock, for what, and for how long.
pub struct Claim {
    pub holder: String,
    /// Its fence is 0 until the lock is taken.
    pub record: Record,
    pub ttl: Duration,
    /// The fence has to be above it.
    pub floor: u64,
    memory: Memory,
}

/// What came of a try.
pub enum Attempt {
    /// With its fence.
    Taken(u64),
    Busy(Busy),
    /// The server is there and will be ready soon.
    Unready(Failure),
}

pub struct Busy {
    /// `None` where it is free for a moment, for another one who waits.
    pub held: Option<Held>,
    /// How many are before us in the line.
    pub ahead: usize,
}

impl Busy {
    /// "held by comfyui (nora:1234, 29 s left), 2 waiting before us".
    pub fn describe(&self) -> String {
        let mut text = match &self.held {
            Some(held) => format!("held by {}", held.describe()),
            None => "about to be taken by another".to_owned(),
        };
        if self.ahead > 0 {
            text.push_str(&format!(", {} waiting before us", self.ahead));
        }
        text
    }
}

/// The place that the configuration names.
pub fn open(config: &Config) -> Result<Box<dyn Backend>> {
    Ok(match &config.lock.place {
        Place::Redis(url) => Box::new(redis::Redis::new(url, &config.lock.key)),
        Place::File(path) => Box::new(file::File::new(path.clone())),
        Place::Nowhere => {
            let message = "no place for the lock: XDG_RUNTIME_DIR is not set and /run/user has no folder of yours";
            return Err(Failure::new(Code::Config, message)
                .hint("set lock.url, for instance to \"file:///home/me/.gpuctl/lock\""));
        }
    })
}

/// The server at a Redis URL.
pub fn server(url: &str) -> Result<Server> {
    redis::Redis::new(url, "").server()
}

/// The lock that the caller holds, by the token that it has put into the environment.
pub fn joined(backend: &mut dyn Backend, token: &str) -> Result<Held> {
    backend.look()?.filter(|held| held.is_of(token)).ok_or_else(|| {
        Failure::new(
            Code::LockLost,
            "the lock that GPUCTL_LOCK_TOKEN names is not held any more: it has ended or was released",
        )
        .hint("unset GPUCTL_LOCK_TOKEN, or take the lock again")
    })
}

impl Claim {
    /// A claim with a token of its own. `pid`: the process that the lock ends with.
    pub fn new(
        config: &Config,
        holder: &str,
        services: &[String],
        pid: Option<Pid>,
        ttl: Duration,
    ) -> Result<Claim> {
        let Some(record) = Record::new(random_hex::<16>()?, pid, services) else {
            let pid = pid.unwrap_or_default();
            return Err(Failure::new(Code::NotFound, format!("there is no process {pid}")));
        };
        let memory = Memory::new(config);
        Ok(Claim { holder: holder.to_owned(), record, ttl, floor: 0, memory })
    }

    /// Takes the lock, waiting in line for so long; gives the time since boot at which it ends
    /// unless it is renewed. `tell` is told who is in the way, once for each.
    pub fn acquire(
        &mut self,
        backend: &mut dyn Backend,
        patience: Duration,
        stop: &Stop,
        mut tell: impl FnMut(&str),
    ) -> Result<Duration> {
        let deadline = Instant::now() + patience;
        let taken = self.take_in_turn(backend, patience, stop, &mut tell);
        let taken = taken.and_then(|valid_until| {
            self.await_last_command(backend, valid_until, deadline, stop, &mut tell)
        });
        let cannot_be_asked =
            taken.as_ref().is_err_and(|failure| failure.code == Code::Unavailable);
        let left_nothing = patience.is_zero() && self.record.fence == 0;
        if taken.is_err() && !left_nothing && !cannot_be_asked {
            // The place in the line or the lock, which are forgotten by themselves where this fails.
            let _ = backend.release(Some(&self.record.token));
        }
        taken
    }

    /// As `acquire`, for a lock that outlives us. It ends with us until it is known to be taken:
    /// where the answer is lost, nobody has the token that would release it. Gives a warning.
    pub fn acquire_to_keep(
        &mut self,
        backend: &mut dyn Backend,
        patience: Duration,
        stop: &Stop,
        tell: impl FnMut(&str),
    ) -> Result<Option<String>> {
        let me = std::process::id() as Pid;
        let Record { pid, pid_start, .. } = self.record;
        let ttl = self.ttl;
        (self.record.pid, self.record.pid_start) =
            (Some(me), process::Id::of(me).map(|me| me.start));
        self.ttl = ttl.min(BEFORE_KEPT);
        let taken = self.acquire(backend, patience, stop, tell);
        (self.record.pid, self.record.pid_start, self.ttl) = (pid, pid_start, ttl);
        taken?;
        // Before the lock is confirmed: where it is forgotten after that, the next one knows.
        let warning = self.keep_fence();
        match backend.renew(self)? {
            true => Ok(warning),
            false => Err(lost_at_once()),
        }
    }

    /// Keeps the fence where this machine will find it; gives a warning.
    pub fn keep_fence(&self) -> Option<String> {
        self.memory.keep_fence(self.record.fence)
    }

    /// Has the lock, and this machine, know the command that is about to work under it; false where
    /// the lock is not the claim's any more.
    pub fn name_command(
        &mut self,
        backend: &mut dyn Backend,
        command: process::Id,
    ) -> Result<bool> {
        self.record.command = Some(command);
        // Before the lock is confirmed: where it is forgotten after that, the next one knows.
        self.memory.keep_command(&self.record);
        backend.renew(self)
    }

    /// It has ended.
    pub fn forget_command(&self) {
        self.memory.forget_command(&self.record);
    }

    /// Where the lock's place has forgotten who works under it, that one has yet to be ended.
    fn await_last_command(
        &self,
        backend: &mut dyn Backend,
        mut valid_until: Duration,
        deadline: Instant,
        stop: &Stop,
        tell: &mut impl FnMut(&str),
    ) -> Result<Duration> {
        let mut is_told = false;
        while let Some(record) = self.memory.command_at_work() {
            let members = record.command_members();
            let pids: Vec<String> = members.iter().map(Pid::to_string).collect();
            let why =
                format!("ours, and a command that lost it still works: PID {}", pids.join(", "));
            if Instant::now() >= deadline {
                return Err(Failure::new(Code::LockBusy, format!("the GPU lock is {why}"))
                    .hint("its gpuctl ends it soon; wait longer with --wait, or end it yourself"));
            }
            if !std::mem::replace(&mut is_told, true) {
                tell(&why);
            }
            let handles: Vec<Handle> = members.into_iter().filter_map(Handle::open).collect();
            let fds: Vec<_> = handles.iter().map(Handle::fd).collect();
            wait(&fds, stop, deadline.min(Instant::now() + self.ttl / 3));
            stop.check()?;
            let asked = since_boot();
            if !backend.renew(self)? {
                return Err(lost_at_once());
            }
            valid_until = asked + self.ttl;
        }
        Ok(valid_until)
    }

    fn take_in_turn(
        &mut self,
        backend: &mut dyn Backend,
        patience: Duration,
        stop: &Stop,
        mut tell: impl FnMut(&str),
    ) -> Result<Duration> {
        let deadline = Instant::now() + patience;
        let queues = !patience.is_zero();
        let mut in_the_way = None;
        loop {
            stop.check()?;
            self.floor = self.memory.fence();
            // The lock's time began at the latest when the server did as it was asked.
            let asked = since_boot();
            match backend.attempt(self, queues, stop)? {
                Attempt::Taken(fence) if fence <= self.memory.fence() => {
                    // It was forgotten, after another one had had this fence.
                    backend.release(Some(&self.record.token))?;
                }
                Attempt::Taken(fence) => {
                    self.record.fence = fence;
                    return Ok(asked + self.ttl);
                }
                Attempt::Unready(failure) if Instant::now() >= deadline => return Err(failure),
                Attempt::Unready(_) => {
                    wait(&[], stop, (Instant::now() + UNREADY_PAUSE).min(deadline));
                }
                Attempt::Busy(busy) if Instant::now() >= deadline => {
                    return Err(refusal(&busy, patience));
                }
                Attempt::Busy(busy) => {
                    let who = busy.held.as_ref().map(|held| (held.holder.clone(), held.owner()));
                    if in_the_way.as_ref() != Some(&who) {
                        tell(&busy.describe());
                        in_the_way = Some(who);
                    }
                    backend.wait_for_change(self, stop, deadline)?;
                }
            }
        }
    }
}

fn lost_at_once() -> Failure {
    Failure::new(Code::LockLost, "the GPU lock was lost as soon as taken")
        .hint("somebody deletes it; look with `gpuctl lock status`")
}

fn refusal(busy: &Busy, patience: Duration) -> Failure {
    let waited = match patience.is_zero() {
        true => String::new(),
        false => format!(", and the wait of {patience:?} is over"),
    };
    let failure =
        Failure::new(Code::LockBusy, format!("the GPU lock is {}{waited}", busy.describe()));
    let Some(held) = &busy.held else {
        return failure.hint("try again, or wait in line with --wait");
    };
    let failure = match held.left {
        Some(_) => failure.hint("wait longer with --wait; `gpuctl lock status` shows the holder"),
        None => failure.hint(
            "it has no time to live, so it is never taken over; if its holder is gone: `gpuctl lock release --force`",
        ),
    };
    failure
        .detail("holder", held.holder.as_str())
        .detail("owner", held.owner())
        .detail("ttl", held.ttl())
}

/// A name as the lock can show it: nothing that a terminal obeys, nor that is part of our record.
pub fn holder_name(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || "|\"".contains(c) { '_' } else { c }).collect()
}
