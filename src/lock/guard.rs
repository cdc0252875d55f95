//! Holding the lock while gpuctl acts. The machine's lock ends with the last process that has its
//! descriptor. The lock in Redis is renewed by a thread every third of its time; its loss calls off
//! the work, and it is released whatever the work comes to.

use super::claim::{Claim, MARGIN, RENEWAL, RETRY, Releaser, Renewal, TTL};
use super::entry::enter;
use super::keep::Kept;
use super::line::WaitingLine;
use super::machine::Machine;
use super::redis::Redis;
use super::watchdog::{Watchdog, give_back};
use super::{Held, Patience, Record, not_held, redis, shown};
use crate::config::{Config, Span};
use crate::error::Result;
use crate::progress::{Progress, Waiting};
use crate::world::clock::SinceBoot;
use crate::world::host::random_hex;
use crate::world::process;
use crate::world::wait::{Event, Lease, Stop, wait};
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The lock, held until the guard is released or dropped.
pub struct Guard {
    renewed: Option<Renewed>,
    /// The machine's lock, or `None` once it is given up.
    machine: Option<Machine>,
    config: Config,
    /// Whether other processes may keep the machine's lock too: those that this process has
    /// started, or has found when it joined.
    has_company: AtomicBool,
    lease: Arc<Lease>,
    /// The watchdog beside a command that works under the lock, if there is one.
    watchdog: Arc<Mutex<Option<Watchdog>>>,
    fence: u64,
    token: String,
}

/// The lock in Redis, with the thread that renews it.
struct Renewed {
    hold: Arc<Mutex<Hold>>,
    quit: Arc<Event>,
    thread: JoinHandle<()>,
}

struct Hold {
    redis: Redis,
    token: String,
    /// How long before the end of its time the lock counts as lost, so that there is time to end
    /// what works under it.
    margin: Duration,
    /// Time since boot at which the lock ends unless it is renewed.
    until: SinceBoot,
    watchdog: Arc<Mutex<Option<Watchdog>>>,
}

/// A lock in Redis that its holder hands on to a companion.
#[derive(Serialize, Deserialize)]
pub struct Heirloom {
    token: String,
    fence: u64,
}

/// What a command of gpuctl wants the lock for.
pub struct Purpose<'a> {
    /// Name that the lock shows for its holder, such as that of the service or phase that the
    /// command acts for.
    pub holder: &'a str,
    /// What gpuctl was called for, such as `run render.sh`.
    pub command: &'a str,
    /// Names of the services that the command acts for.
    pub services: &'a [String],
    /// How long to wait for the lock.
    pub patience: Duration,
    /// Time that it takes to end the command when the lock is lost, or `None` if nothing but gpuctl
    /// works under the lock.
    pub margin: Option<Duration>,
}

impl Guard {
    /// Takes the lock, or joins the lock that the caller of gpuctl holds and whose token it has put
    /// into the environment.
    pub fn take(
        config: &Config,
        purpose: &Purpose,
        stop: &Stop,
        progress: &Progress,
    ) -> Result<Guard> {
        let machine = Machine::open(&config.lock.place.file)?;
        if let Some(token) = &config.lock.token {
            return Guard::join(config, purpose, machine, token, stop);
        }
        let mut waiting = Waiting::new(progress, purpose.patience);
        let guard = Guard::enter(config, machine, purpose, stop, &mut |busy| waiting.tell(busy))?;
        waiting.done();
        log::debug!("the GPU lock is held for {}, fence {}", purpose.holder, guard.fence);
        Ok(guard)
    }

    fn enter(
        config: &Config,
        mut machine: Machine,
        purpose: &Purpose,
        stop: &Stop,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Guard> {
        let holder = shown(purpose.holder);
        let record = Record::ours(random_hex::<16>()?, purpose.command, purpose.services)?;
        let mut claim = Claim::new(&holder, record, TTL, &machine)?;
        let patience = Patience::new(purpose.patience);
        let mut redis = redis(config);
        // The watchdog comes up while this process waits.
        let watchdog = purpose.margin.map(|_| Watchdog::start(machine.fd(), config)).transpose()?;
        let place = machine.lock().place()?;
        let entered =
            enter(config, &mut machine, redis.as_mut(), &mut claim, &patience, stop, tell);
        // The lock's file that the watchdog has open may have been removed meanwhile.
        let is_kept = entered.is_ok() && machine.lock().place()? == place;
        let (watchdog, idle) = if is_kept { (watchdog, None) } else { (None, watchdog) };
        idle.into_iter().for_each(Watchdog::dismiss);
        let valid_until = entered?;
        let mut guard = Guard::of(config, machine, &claim.record)?;
        *lock(&guard.watchdog) = watchdog;
        if let Some((redis, until)) = redis.zip(valid_until) {
            guard.renew(redis, purpose.margin.unwrap_or_default(), until)?;
        }
        Ok(guard)
    }

    /// Goes on with the lock in Redis of a gpuctl that has died, whose machine's lock this process
    /// has inherited. Returns `None` if the lock in Redis is not the dead gpuctl's any more, or no
    /// Redis is configured.
    pub fn adopt(config: &Config, heirloom: &Heirloom) -> Result<Option<Guard>> {
        let Some(mut redis) = redis(config) else { return Ok(None) };
        let mut record = Record::ours(heirloom.token.clone(), "guardian", &[])?;
        record.fence = heirloom.fence;
        let asked = SinceBoot::now();
        if !redis.renew(&record.token, TTL, Renewal::InTime)? {
            return Ok(None);
        }
        let machine = Machine::open(&config.lock.place.file)?;
        let mut guard = Guard::of(config, machine, &record)?;
        guard.renew(redis, Duration::ZERO, asked + TTL)?;
        Ok(Some(guard))
    }

    /// Returns what a companion needs to go on with the lock in Redis, or `None` if no Redis is
    /// configured.
    pub fn heirloom(&self) -> Option<Heirloom> {
        let heirloom = || Heirloom { token: self.token.clone(), fence: self.fence };
        self.renewed.as_ref().map(|_| heirloom())
    }

    fn join(
        config: &Config,
        purpose: &Purpose,
        machine: Machine,
        token: &str,
        stop: &Stop,
    ) -> Result<Guard> {
        let not_held = || not_held(&config.lock.place);
        let Some(mut redis) = redis(config) else {
            let record = machine.join(token, stop)?.ok_or_else(not_held)?.record;
            return Guard::of(config, machine, &record);
        };
        // Done before Redis is asked, so that nobody comes in between.
        let is_here = machine.join(token, stop)?.is_some();
        if !is_here {
            machine.slip_in(stop)?;
        }
        let place = machine.lock().place()?;
        let is_held = |held: &Held| held.is_of(token) && (is_here || !held.was_in(&place));
        let held = redis.look()?.filter(is_held).ok_or_else(not_held)?;
        let asked = SinceBoot::now();
        if !redis.renew(token, TTL, Renewal::InTime)? {
            return Err(not_held());
        }
        let mut guard = Guard::of(config, machine, &held.record.ok_or_else(not_held)?)?;
        guard.has_company.store(true, Ordering::Relaxed);
        guard.renew(redis, purpose.margin.unwrap_or_default(), asked + TTL)?;
        Ok(guard)
    }

    fn of(config: &Config, machine: Machine, record: &Record) -> Result<Guard> {
        Ok(Guard {
            renewed: None,
            machine: Some(machine),
            config: config.clone(),
            has_company: AtomicBool::new(false),
            lease: Lease::endless()?,
            watchdog: Arc::default(),
            fence: record.fence,
            token: record.token.clone(),
        })
    }

    /// Starts to renew the lock in Redis, which ends at `until`. The lock counts as lost `margin`
    /// and another `MARGIN` before its end.
    fn renew(&mut self, redis: Redis, margin: Duration, until: SinceBoot) -> Result<()> {
        let (token, watchdog) = (self.token.clone(), self.watchdog.clone());
        let hold = Hold { redis, token, margin: margin + MARGIN, until, watchdog };
        let lease = Lease::until(hold.end(), self.config.lock.place.by_chance())?;
        let (quit, hold) = (Event::new()?, Arc::new(Mutex::new(hold)));
        lease.when_late({
            let hold = hold.clone();
            move || lock(&hold).confirm().ok().flatten()
        });
        let thread = thread::spawn({
            let (hold, lease, quit) = (hold.clone(), lease.clone(), quit.clone());
            move || keep(&hold, &lease, &quit)
        });
        self.lease = lease;
        self.renewed = Some(Renewed { hold, quit, thread });
        Ok(())
    }

    /// Returns the descriptor that keeps the machine's lock, for a command that works under the
    /// lock.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.machine.as_ref().expect("it is given up in the end only").fd()
    }

    /// Returns the lease by which work under the lock notices that the lock is lost.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub fn fence(&self) -> u64 {
        self.fence
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Makes the watchdog end a command, and all processes that bear `token`, once this process no
    /// longer can. Without a `group`, the command is one that is not there yet, and its processes
    /// are those that bear the token. The watchdog keeps the machine's lock until it has ended
    /// them. Fails if the lock is lost.
    pub fn watch_over(
        &self,
        group: Option<process::Id>,
        token: &str,
        grace: Duration,
    ) -> Result<()> {
        self.stand_by()?;
        lock(&self.watchdog).iter_mut().for_each(|watchdog| watchdog.watch(group, token, grace));
        self.lease.check()
    }

    /// Starts the watchdog, if there is none yet, and tells it about the lock.
    pub fn stand_by(&self) -> Result<()> {
        self.has_company.store(true, Ordering::Relaxed);
        let mut place = lock(&self.watchdog);
        let watchdog = match &mut *place {
            Some(watchdog) => watchdog,
            None => place.insert(Watchdog::start(self.descriptor(), &self.config)?),
        };
        self.lease.valid_until().into_iter().for_each(|until| watchdog.extend(until));
        let kept = Kept::new(&self.config, &self.token);
        kept.into_iter().for_each(|kept| watchdog.keep_for(kept));
        Ok(())
    }

    /// Tells the watchdog what it has to do after the command if this process cannot do it any
    /// more.
    pub fn owe(&self, debt: &Value) {
        lock(&self.watchdog).iter_mut().for_each(|watchdog| watchdog.owe(debt.clone()));
    }

    /// Tells the watchdog that the command has ended and that what is owed is still to be done.
    pub fn command_ended(&self) {
        lock(&self.watchdog).iter_mut().for_each(Watchdog::command_ended);
    }

    /// Renews the lock in Redis now and fails if it is lost, for a step that must not rely on the
    /// next renewal.
    pub fn confirm(&self) -> Result<()> {
        if let Some(renewed) = &self.renewed
            && lock(&renewed.hold).confirm()?.is_none()
        {
            self.lease.lose("it is not ours any more");
        }
        self.lease.check()
    }

    /// Dismisses the watchdog, because the command has ended and nothing is owed.
    pub fn forget_command(&self) {
        lock(&self.watchdog).take().into_iter().for_each(Watchdog::dismiss);
    }

    /// Gives the lock back. Fails if it was lost before, so that others may have acted too.
    pub fn release(mut self, progress: &Progress) -> Result<()> {
        let released = self.end();
        self.lease.check()?;
        match released {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.lease.lose("it was not ours any more in the end");
                self.lease.check()
            }
            Err(failure) => {
                let message = format!(
                    "the GPU lock could not be released and ends by itself within {}: {failure}",
                    Span(TTL)
                );
                progress.warning(&message);
                Ok(())
            }
        }
    }

    /// Stops renewing the lock and gives it back; returns whether it was still ours.
    fn end(&mut self) -> Result<bool> {
        // The watchdog may be that of a command that never began.
        self.forget_command();
        let Some(renewed) = self.renewed.take() else { return Ok(true) };
        renewed.quit.set();
        // The thread returns nothing, and a panic in it has been reported already.
        let _ = renewed.thread.join();
        let mut hold = lock(&renewed.hold);
        let has_company = self.has_company.load(Ordering::Relaxed);
        let is_ours = !(has_company || hold.is_late()) || hold.confirm()?.is_some();
        let by = Releaser::Holder(&self.token);
        if !has_company {
            let next = |machine: &Machine| WaitingLine::next(machine.lock()).ok().flatten();
            let next = self.machine.as_ref().and_then(next);
            return Ok(hold.redis.release(by, next.as_ref())? && is_ours);
        }
        // Once the machine's lock is given up, a process that still has it is not this one, and a
        // process that takes it takes over the lock in Redis.
        self.machine = None;
        give_back(&self.config, &mut hold.redis, by)?;
        Ok(is_ours)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The work has failed already and reports why; a lock that is not given back ends by
        // itself.
        let _ = self.end();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Renews the lock in Redis until `quit` happens or the lock is lost.
fn keep(shared: &Mutex<Hold>, lease: &Lease, quit: &Event) {
    let mut pause = RENEWAL;
    loop {
        // The work asks the lease before every step, even if no timer can be had.
        let end = lease.valid_until().and_then(|until| Event::at_since_boot(until).ok());
        let mut watched = vec![quit.fd()];
        watched.extend(end.iter().map(|end| end.fd()));
        wait(&watched, &Stop::never(), Instant::now() + pause);
        if quit.happened() || lease.check().is_err() {
            return;
        }
        let mut hold = lock(shared);
        match hold.confirm() {
            Ok(Some(end)) => {
                lease.extend(end);
                pause = RENEWAL;
            }
            Ok(None) => {
                let now = hold.redis.look().ok().flatten();
                // A lock under our own token is only what is left of it in the second record.
                let now = now.filter(|held| !held.is_of(&hold.token));
                let now = now.map_or("nobody holds it".to_owned(), |held| {
                    format!("it is held by {}", held.describe())
                });
                lease.lose(&format!("{now} now"));
                return;
            }
            Err(failure) => {
                log::warn!("the GPU lock could not be renewed: {failure}");
                pause = RETRY;
            }
        }
    }
}

impl Hold {
    /// Returns the time since boot at which the lock counts as lost.
    fn end(&self) -> SinceBoot {
        self.until.earlier(self.margin)
    }

    fn is_late(&self) -> bool {
        self.until.has_come()
    }

    /// Renews the lock. Returns the time since boot at which it now counts as lost, or `None` if it
    /// is not ours any more.
    fn confirm(&mut self) -> Result<Option<SinceBoot>> {
        let asked = SinceBoot::now();
        let how = if self.is_late() { Renewal::Late } else { Renewal::InTime };
        if !self.redis.renew(&self.token, TTL, how)? {
            return Ok(None);
        }
        self.until = asked + TTL;
        let end = self.end();
        lock(&self.watchdog).iter_mut().for_each(|watchdog| watchdog.extend(end));
        Ok(Some(end))
    }
}
