//! Holding the lock while gpuctl acts. The machine's ends with the last process that has its
//! descriptor. That of Redis is renewed by a thread at a third of its time, its loss calls off the
//! work, and it is released whatever the work comes to.

use super::claim::Claim;
use super::entry::enter;
use super::machine::Machine;
use super::redis::Redis;
use super::watchdog::Watchdog;
use super::{Ends, Held, Patience, Record, not_held, redis, shown};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::progress::{Progress, Waiting};
use crate::world::host::{random_hex, since_boot};
use crate::world::process;
use crate::world::wait::{Event, Lease, Stop, Timer, wait};
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Of a lock that is renewed: how long a holder that has vanished may hold up others elsewhere.
const TTL: Duration = Duration::from_secs(30);

/// Between two tries to renew at a server that cannot be reached.
const RETRY: Duration = Duration::from_secs(1);

/// Of a lock that has no end, for arithmetic.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The lock, held. Dropping it releases it.
pub struct Guard {
    /// Given up before the machine's.
    renewed: Option<Renewed>,
    machine: Machine,
    lease: Arc<Lease>,
    /// Beside a command that works under the lock.
    watchdog: Arc<Mutex<Option<Watchdog>>>,
    fence: u64,
    token: String,
}

/// What has to be renewed: the lock in Redis.
struct Renewed {
    hold: Arc<Mutex<Hold>>,
    quit: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

struct Hold {
    redis: Redis,
    title: Title,
    /// So much before the end of its time the lock counts as lost, for what has to be ended first.
    margin: Duration,
    watchdog: Arc<Mutex<Option<Watchdog>>>,
}

/// By what right the lock is ours.
enum Title {
    Own(Box<Claim>),
    /// The caller's, who renews and releases it; with its token.
    Borrowed(String),
}

/// A lock in Redis that is handed on.
#[derive(Serialize, Deserialize)]
pub struct Heirloom {
    token: String,
    fence: u64,
}

/// What a command wants the lock for.
pub struct Purpose<'a> {
    /// The service or phase that it acts for.
    pub holder: &'a str,
    /// What gpuctl was called for: "run render.sh".
    pub command: &'a str,
    pub services: &'a [String],
    /// How long to wait for it.
    pub patience: Duration,
    /// What ending the work takes when the lock is lost.
    pub margin: Duration,
}

impl Guard {
    /// Takes the lock, or joins the one that the caller holds and has named in the environment.
    pub fn take(
        config: &Config,
        purpose: &Purpose,
        stop: &Stop,
        progress: &Progress,
    ) -> Result<Guard> {
        let machine = Machine::open(&config.lock.place.file)?;
        if let Some(token) = &config.lock.token {
            return Guard::join(config, machine, token, stop);
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
        let record = ours(random_hex::<16>()?, purpose.command, purpose.services)?;
        let mut claim = Claim::new(&holder, record, TTL);
        let patience = Patience::new(purpose.patience);
        let mut redis = redis(config);
        let valid_until =
            enter(config, &mut machine, redis.as_mut(), &mut claim, &patience, stop, tell)?;
        let mut guard = Guard::of(machine, Lease::endless()?, &claim.record);
        if let Some((redis, valid_until)) = redis.zip(valid_until) {
            let margin = purpose.margin.min(TTL / 3);
            guard.renew(redis, Title::Own(Box::new(claim)), margin, valid_until)?;
        }
        Ok(guard)
    }

    /// Goes on with the lock in Redis of a gpuctl that has died, where it still is that one's; the
    /// machine's we have inherited.
    pub fn adopt(
        config: &Config,
        holder: &str,
        services: &[String],
        heirloom: &Heirloom,
    ) -> Result<Option<Guard>> {
        let Some(mut redis) = redis(config) else { return Ok(None) };
        let mut record = ours(heirloom.token.clone(), "guardian", services)?;
        record.fence = heirloom.fence;
        let claim = Claim::new(&shown(holder), record, TTL);
        let asked = since_boot();
        if !redis.renew(&claim)? {
            return Ok(None);
        }
        let machine = Machine::open(&config.lock.place.file)?;
        let mut guard = Guard::of(machine, Lease::endless()?, &claim.record);
        guard.renew(redis, Title::Own(Box::new(claim)), Duration::ZERO, asked + TTL)?;
        Ok(Some(guard))
    }

    /// What a companion needs to go on with the lock in Redis; nothing where it is the caller's.
    pub fn heirloom(&self) -> Option<Heirloom> {
        let is_own = self
            .renewed
            .as_ref()
            .is_some_and(|renewed| matches!(lock(&renewed.hold).title, Title::Own(_)));
        is_own.then(|| Heirloom { token: self.token.clone(), fence: self.fence })
    }

    fn join(config: &Config, machine: Machine, token: &str, stop: &Stop) -> Result<Guard> {
        let Some(mut redis) = redis(config) else {
            let record = machine.join(token, stop)?.ok_or_else(not_held)?.record;
            return Ok(Guard::of(machine, Lease::endless()?, &record));
        };
        // Before it is asked for, so that nobody comes in between.
        machine.slip_in(stop)?;
        let asked = since_boot();
        let held = redis.look()?.filter(|held| held.is_of(token)).ok_or_else(not_held)?;
        let valid_until = asked + left(&held);
        let record = held.record.ok_or_else(not_held)?;
        let mut guard = Guard::of(machine, Lease::endless()?, &record);
        guard.renew(redis, Title::Borrowed(token.to_owned()), Duration::ZERO, valid_until)?;
        Ok(guard)
    }

    fn of(machine: Machine, lease: Arc<Lease>, record: &Record) -> Guard {
        let (fence, token) = (record.fence, record.token.clone());
        Guard { renewed: None, machine, lease, watchdog: Arc::default(), fence, token }
    }

    /// Has the lock in Redis renewed from now on.
    fn renew(
        &mut self,
        redis: Redis,
        title: Title,
        margin: Duration,
        valid_until: Duration,
    ) -> Result<()> {
        let lease = Lease::until(valid_until.saturating_sub(margin))?;
        let hold = Hold { redis, title, margin, watchdog: self.watchdog.clone() };
        let (quit, hold) = (Event::new()?, Arc::new(Mutex::new(hold)));
        let thread = thread::spawn({
            let (hold, lease, quit) = (hold.clone(), lease.clone(), quit.clone());
            move || keep(&hold, &lease, &quit)
        });
        self.lease = lease;
        self.renewed = Some(Renewed { hold, quit, thread: Some(thread) });
        Ok(())
    }

    /// The descriptor that keeps the machine's lock, for a command that works under it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.machine.fd()
    }

    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub fn fence(&self) -> u64 {
        self.fence
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Has the lock name the command that works under it, and has a watchdog end the command, and
    /// whatever bears its token, when we cannot any more.
    pub fn name_command(&self, group: process::Id, token: &str, grace: Duration) -> Result<()> {
        self.watch_over(Some(group), token, grace)?;
        self.name_group(group)
    }

    /// The watchdog alone; without a group for a command that is not there yet, and begins to work
    /// as soon as it is: its processes are those that bear the token. It keeps the machine's lock
    /// until it has ended them.
    pub fn watch_over(
        &self,
        group: Option<process::Id>,
        token: &str,
        grace: Duration,
    ) -> Result<()> {
        let mut watchdog = Watchdog::start(self.descriptor())?;
        watchdog.watch(group, token, grace, self.lease.valid_until());
        *lock(&self.watchdog) = Some(watchdog);
        Ok(())
    }

    /// Has the lock in Redis name processes that act for its holder and may outlive it: who takes
    /// it over waits for their end.
    pub fn name_group(&self, group: process::Id) -> Result<()> {
        if let Some(renewed) = &self.renewed
            && let Hold { redis, title: Title::Own(claim), .. } = &mut *lock(&renewed.hold)
            && !claim.name_command(redis, group)?
        {
            self.lease.lose("it is not ours any more");
        }
        self.lease.check()
    }

    /// Asks whether the lock is still ours, where more than the next renewal hangs on it.
    pub fn confirm(&self) -> Result<()> {
        if let Some(renewed) = &self.renewed
            && lock(&renewed.hold).confirm()?.is_none()
        {
            self.lease.lose("it is not ours any more");
        }
        self.lease.check()
    }

    /// The command has ended.
    pub fn forget_command(&self) {
        if let Some(watchdog) = lock(&self.watchdog).take() {
            watchdog.dismiss();
        }
    }

    /// From now on it is neither renewed nor released: what works under it cannot be ended, and who
    /// takes it over has to wait for that.
    pub fn let_run_out(&self) {
        if let Some(renewed) = &self.renewed {
            lock(&renewed.hold).title = Title::Borrowed(self.token.clone());
        }
    }

    /// Gives the lock back; fails where it was lost before, so that others may have acted too.
    pub fn release(mut self, progress: &Progress) -> Result<()> {
        let released = self.renewed.as_mut().map_or(Ok(true), Renewed::end);
        self.renewed = None;
        self.lease.check()?;
        match released {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.lease.lose("it was not ours any more in the end");
                self.lease.check()
            }
            Err(failure) => {
                let message = format!(
                    "the GPU lock could not be released and ends by itself within {TTL:?}: {failure}"
                );
                progress.warning(&message);
                Ok(())
            }
        }
    }
}

impl Renewed {
    /// Renews it no more, and releases it; tells whether it was still ours.
    fn end(&mut self) -> Result<bool> {
        self.quit.set();
        match self.thread.take() {
            Some(thread) => {
                // It has nothing to tell, and a panic of it has told of itself.
                let _ = thread.join();
                lock(&self.hold).release()
            }
            None => Ok(true),
        }
    }
}

impl Drop for Renewed {
    fn drop(&mut self) {
        // The work has failed already, and tells why; the lock ends by itself.
        let _ = self.end();
    }
}

/// A record of what this process does.
fn ours(token: String, command: &str, services: &[String]) -> Result<Record> {
    let record = Record::new(token, command, Some(std::process::id() as i32), services);
    record.ok_or_else(|| {
        Failure::new(Code::Unavailable, "the process table in /proc cannot be read")
            .hint("mount it: mount -t proc proc /proc")
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn left(held: &Held) -> Duration {
    match held.ends {
        Ends::In(left) => left,
        Ends::WithProcesses | Ends::Never => ENDLESS,
    }
}

/// Renews until told to quit, or until the lock is lost.
fn keep(shared: &Mutex<Hold>, lease: &Lease, quit: &Event) {
    let mut pause = TTL / 3;
    loop {
        // Also where no timer can be had, the work asks the lease before every step.
        let end = lease.valid_until().and_then(|until| Timer::at(until).ok());
        let mut watched = vec![quit.fd()];
        watched.extend(end.iter().map(Timer::fd));
        wait(&watched, &Stop::never(), Instant::now() + pause);
        if quit.happened() || lease.check().is_err() {
            return;
        }
        let asked = since_boot();
        let mut hold = lock(shared);
        match hold.confirm() {
            Ok(Some(left)) => {
                let end = (asked + left).saturating_sub(hold.margin);
                lease.extend(end);
                lock(&hold.watchdog).iter_mut().for_each(|watchdog| watchdog.extend(end));
                pause = (left / 3).min(TTL / 3);
            }
            Ok(None) => {
                let now = hold.redis.look().ok().flatten();
                // What is left of ours is the command.
                let now = now.filter(|held| !held.is_of(hold.title.token()));
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

impl Title {
    fn token(&self) -> &str {
        match self {
            Title::Own(claim) => &claim.record.token,
            Title::Borrowed(token) => token,
        }
    }
}

impl Hold {
    /// Tells whether it was still ours.
    fn release(&mut self) -> Result<bool> {
        match &self.title {
            Title::Own(claim) => self.redis.release(Some(&claim.record.token)),
            Title::Borrowed(_) => Ok(true),
        }
    }

    /// How long the lock is ours from now on; `None` where it is not any more.
    fn confirm(&mut self) -> Result<Option<Duration>> {
        match &self.title {
            Title::Own(claim) => Ok(self.redis.renew(claim)?.then_some(claim.ttl)),
            Title::Borrowed(token) => {
                let held = self.redis.look()?.filter(|held| held.is_of(token));
                Ok(held.as_ref().map(left))
            }
        }
    }
}
