//! The lock by hand: taken to be kept when gpuctl ends, and given back by its token.

use super::claim::{Claim, Releaser, Renewal, TTL};
use super::entry::enter;
use super::machine::Machine;
use super::record::{Held, Record};
use super::redis::Redis;
use super::watchdog::give_back;
use super::{Patience, look, not_held, redis, shown};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use crate::world::clock::SinceBoot;
use crate::world::host::random_hex;
use crate::world::wait::Stop;
use std::time::Duration;

/// The terms of a lock to be taken by hand: its holder, its time, and perhaps a process.
pub struct Wanted<'a> {
    pub holder: &'a str,
    pub ttl: Duration,
    /// Process that the lock ends with, if that process ends before the lock's time is over.
    pub pid: Option<Pid>,
}

impl Wanted<'_> {
    /// Checks what is wanted: refuses a holder's name that could not be shown, and a lock that
    /// lasts no time.
    pub fn new(holder: &str, ttl: Duration, pid: Option<Pid>) -> Result<Wanted<'_>> {
        let refused = |message: String| Failure::new(Code::Usage, message);
        if holder.is_empty() || holder != shown(holder) {
            return Err(refused(format!("\"{holder}\" cannot be shown as a holder"))
                .hint("a name without |, quotes and control characters"));
        }
        match ttl.is_zero() {
            true => Err(refused("--ttl: a lock without time is no lock".to_owned())),
            false => Ok(Wanted { holder, ttl, pid }),
        }
    }
}

/// A lock taken by hand that this process still holds, and whose token nobody else knows.
pub struct ByHand {
    pub claim: Claim,
    machine: Machine,
    /// The lock in Redis, or `None` if no Redis is configured.
    redis: Option<Redis>,
}

/// Takes the lock by hand. The machine's lock ends with this process until `ByHand::leave` has
/// succeeded: before that, nobody has the token that would release the lock.
pub fn acquire(
    config: &Config,
    wanted: &Wanted,
    patience: Duration,
    stop: &Stop,
    tell: &mut dyn FnMut(&str),
) -> Result<ByHand> {
    let record = Record::new(random_hex::<16>()?, "lock acquire", wanted.pid, &[]);
    let record = record.ok_or_else(|| {
        let pid = wanted.pid.unwrap_or_default();
        Failure::new(Code::NotFound, format!("there is no process {pid}"))
    })?;
    let mut machine = Machine::open(&config.lock.place.file)?;
    let mut claim = Claim::new(wanted.holder, record, wanted.ttl.min(TTL), &machine)?;
    let mut redis = redis(config);
    let patience = Patience::new(patience);
    enter(config, &mut machine, redis.as_mut(), &mut claim, &patience, stop, tell)?;
    claim.ttl = wanted.ttl;
    if let Some(redis) = &mut redis
        && !redis.renew(&claim.record.token, claim.ttl, Renewal::Last)?
    {
        let by_chance = config.lock.place.by_chance();
        let why = format!("the GPU lock was lost as soon as taken{by_chance}");
        return Err(Failure::new(Code::LockLost, why)
            .hint("somebody deletes it; look with `gpuctl lock status`"));
    }
    Ok(ByHand { claim, machine, redis })
}

impl ByHand {
    /// Makes the lock outlast this process: from now on it belongs to the bearer of its token.
    pub fn leave(mut self) -> Result<()> {
        let Claim { holder, record, ttl, .. } = &mut self.claim;
        record.until_since_boot_ms = Some((SinceBoot::now() + *ttl).time().as_millis() as u64);
        self.machine.put_down(holder, record)
    }

    /// Gives the lock in Redis back because its token could not be delivered; the machine's lock
    /// ends with this process.
    pub fn give_back(&mut self) -> Result<()> {
        if let Some(redis) = &mut self.redis {
            redis.release(Releaser::Holder(&self.claim.record.token), None)?;
        }
        Ok(())
    }
}

/// Returns the lock that the caller of gpuctl holds under the token that it has put into the
/// environment. Fails if the lock is not held under that token any more.
pub fn joined(config: &Config, token: &str) -> Result<Held> {
    look(config)?.filter(|held| held.is_of(token)).ok_or_else(|| not_held(&config.lock.place))
}

/// Result of a release.
pub enum Release {
    Released,
    /// Nobody holds the lock.
    Free,
    /// The lock is that of a `gpuctl run`, and ends with it.
    LeftToRun(Held),
    /// The lock is held under another token.
    Anothers(Held),
    /// The lock is kept by living processes, and so was not taken away.
    Kept(Held),
}

/// Releases the lock that was taken by hand under `token`. Without a token, releases whatever lock
/// was taken by hand, and in Redis whatever lock no process of this machine keeps.
pub fn release(config: &Config, token: Option<&str>) -> Result<Release> {
    let machine = Machine::find(&config.lock.place.file)?;
    let kept = |machine: &Machine| -> Result<Option<Held>> {
        Ok(machine.held()?.filter(Held::lasts_with_processes))
    };
    // If the lock were given away, the command would work on beside that of the next holder.
    if let Some(token) = token
        && let Some(machine) = &machine
        && let Some(held) = kept(machine).ok().flatten().filter(|held| held.is_of(token))
    {
        return Ok(Release::LeftToRun(held));
    }
    if let (None, Some(machine)) = (token, &machine)
        && machine.others_are_inside()?
    {
        machine.end_by_hand(None)?;
        if let Some(held) = kept(machine)? {
            return Ok(Release::Kept(held));
        }
    }
    let (mut redis, mut released) = (redis(config), false);
    if let (Some(token), Some(redis)) = (token, &mut redis)
        && let Some(held) = redis.look().ok().flatten()
        && held.is_of(token)
        && held.is_renewed()
    {
        // The lock is kept by a `run` on another machine. What a dead `run` has left on this
        // machine is taken away below.
        let place = machine.as_ref().map(|machine| machine.lock().place()).transpose()?;
        if place.is_none_or(|place| !held.was_in(&place)) {
            return Ok(Release::LeftToRun(held));
        }
    }
    // Done before somebody can come in on this machine, whose lock is not meant.
    if let (None, Some(redis)) = (token, &mut redis) {
        released = redis.release(Releaser::Anybody, None)?;
    }
    if let Some(machine) = &machine {
        released |= machine.end_by_hand(token)?;
    }
    if let (Some(token), Some(redis)) = (token, &mut redis) {
        released |= give_back(config, redis, Releaser::Bearer(token))?;
    }
    Ok(match look(config)? {
        _ if released => Release::Released,
        None => Release::Free,
        Some(held) => Release::Anothers(held),
    })
}
