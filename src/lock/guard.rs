//! Holding the lock while gpuctl acts: a thread renews it at a third of its time, its loss calls
//! off the work, and it is released whatever the work comes to.

use super::watchdog::Watchdog;
use super::{Backend, Claim, Held, Record, holder_name, joined, open};
use crate::config::Config;
use crate::error::Result;
use crate::progress::{Progress, Waiting};
use crate::world::host::since_boot;
use crate::world::process;
use crate::world::wait::{Event, Lease, Stop, Timer, wait};
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
    shared: Arc<Mutex<Hold>>,
    lease: Arc<Lease>,
    quit: Arc<Event>,
    renewal: Option<JoinHandle<()>>,
    fence: u64,
    token: String,
}

struct Hold {
    backend: Box<dyn Backend>,
    title: Title,
    /// So much before the end of its time the lock counts as lost, for what has to be ended first.
    margin: Duration,
    /// Beside a command that works under the lock.
    watchdog: Option<Watchdog>,
}

/// By what right the lock is ours.
enum Title {
    Own(Box<Claim>),
    /// The caller's, who renews and releases it; with its token.
    Borrowed(String),
}

/// A lock that is handed on.
#[derive(Serialize, Deserialize)]
pub struct Heirloom {
    token: String,
    fence: u64,
}

/// What a command wants the lock for.
pub struct Purpose<'a> {
    /// The service or phase that it acts for.
    pub holder: &'a str,
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
        let mut backend = open(config)?;
        if let Some(token) = &config.lock.token {
            return Guard::join(backend, token);
        }
        let pid = Some(std::process::id() as i32);
        let name = holder_name(purpose.holder);
        let mut claim = Claim::new(config, &name, purpose.services, pid, TTL)?;
        let mut waiting = Waiting::new(progress, purpose.patience);
        let taken =
            claim.acquire(backend.as_mut(), purpose.patience, stop, |busy| waiting.tell(busy));
        let valid_until = taken?;
        waiting.done();
        if let Some(warning) = claim.keep_fence() {
            progress.warning(&warning);
        }
        let Record { fence, token, .. } = claim.record.clone();
        log::debug!("the GPU lock is held for {name}, fence {fence}");
        let margin = purpose.margin.min(TTL / 3);
        let hold = Hold { backend, title: Title::Own(Box::new(claim)), margin, watchdog: None };
        Guard::watch(hold, fence, token, valid_until)
    }

    /// Goes on with the lock of a gpuctl that has died, where it still is that one's.
    pub fn adopt(
        config: &Config,
        holder: &str,
        services: &[String],
        claim: &Heirloom,
    ) -> Result<Option<Guard>> {
        let mut backend = open(config)?;
        let pid = Some(std::process::id() as i32);
        let mut adopted = Claim::new(config, &holder_name(holder), services, pid, TTL)?;
        adopted.record.token.clone_from(&claim.token);
        adopted.record.fence = claim.fence;
        let asked = since_boot();
        if !backend.renew(&adopted)? {
            return Ok(None);
        }
        let (fence, token) = (claim.fence, claim.token.clone());
        let title = Title::Own(Box::new(adopted));
        let hold = Hold { backend, title, margin: Duration::ZERO, watchdog: None };
        Guard::watch(hold, fence, token, asked + TTL).map(Some)
    }

    /// What a companion needs to go on with this lock; nothing where it is the caller's.
    pub fn heirloom(&self) -> Option<Heirloom> {
        let is_own = matches!(lock(&self.shared).title, Title::Own(_));
        is_own.then(|| Heirloom { token: self.token.clone(), fence: self.fence })
    }

    fn join(mut backend: Box<dyn Backend>, token: &str) -> Result<Guard> {
        let asked = since_boot();
        let held = joined(backend.as_mut(), token)?;
        let fence = held.record.as_ref().map_or(0, |record| record.fence);
        let valid_until = asked + left(&held);
        let title = Title::Borrowed(token.to_owned());
        let hold = Hold { backend, title, margin: Duration::ZERO, watchdog: None };
        Guard::watch(hold, fence, token.to_owned(), valid_until)
    }

    fn watch(hold: Hold, fence: u64, token: String, valid_until: Duration) -> Result<Guard> {
        let lease = Lease::until(valid_until.saturating_sub(hold.margin))?;
        let (quit, shared) = (Event::new()?, Arc::new(Mutex::new(hold)));
        let renewal = thread::spawn({
            let (shared, lease, quit) = (shared.clone(), lease.clone(), quit.clone());
            move || keep(&shared, &lease, &quit)
        });
        Ok(Guard { shared, lease, quit, renewal: Some(renewal), fence, token })
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
    /// as soon as it is: its processes are those that bear the token.
    pub fn watch_over(
        &self,
        group: Option<process::Id>,
        token: &str,
        grace: Duration,
    ) -> Result<()> {
        let mut watchdog = Watchdog::start()?;
        watchdog.watch(group, token, grace, self.lease.valid_until());
        lock(&self.shared).watchdog = Some(watchdog);
        Ok(())
    }

    /// Has the lock name processes that act for its holder and may outlive it: who takes it over
    /// waits for their end.
    pub fn name_group(&self, group: process::Id) -> Result<()> {
        if let Hold { backend, title: Title::Own(claim), .. } = &mut *lock(&self.shared)
            && !claim.name_command(backend.as_mut(), group)?
        {
            self.lease.lose("it is not ours any more");
        }
        self.lease.check()
    }

    /// Asks whether the lock is still ours, where more than the next renewal hangs on it.
    pub fn confirm(&self) -> Result<()> {
        if lock(&self.shared).confirm()?.is_none() {
            self.lease.lose("it is not ours any more");
        }
        self.lease.check()
    }

    /// The command has ended.
    pub fn forget_command(&self) {
        let hold = &mut *lock(&self.shared);
        if let Some(watchdog) = hold.watchdog.take() {
            watchdog.dismiss();
        }
        if let Title::Own(claim) = &hold.title {
            claim.forget_command();
        }
    }

    /// From now on it is neither renewed nor released: what works under it cannot be ended, and who
    /// takes it over has to wait for that.
    pub fn let_run_out(&self) {
        lock(&self.shared).title = Title::Borrowed(self.token.clone());
    }

    /// Gives the lock back; fails where it was lost before, so that others may have acted too.
    pub fn release(mut self, progress: &Progress) -> Result<()> {
        self.end_renewal();
        let released = lock(&self.shared).release();
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

    fn end_renewal(&mut self) {
        self.quit.set();
        if let Some(renewal) = self.renewal.take() {
            // It has nothing to tell, and a panic of it has told of itself.
            let _ = renewal.join();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.renewal.is_some() {
            self.end_renewal();
            // The work has failed already, and tells why; the lock ends by itself.
            let _ = lock(&self.shared).release();
        }
    }
}

fn lock(shared: &Mutex<Hold>) -> MutexGuard<'_, Hold> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn left(held: &Held) -> Duration {
    held.left.unwrap_or(ENDLESS)
}

/// Renews until told to quit, or until the lock is lost.
fn keep(shared: &Mutex<Hold>, lease: &Lease, quit: &Event) {
    let mut pause = TTL / 3;
    loop {
        // Also where no timer can be had, the work asks the lease before every step.
        let end = Timer::at(lease.valid_until()).ok();
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
                hold.watchdog.iter_mut().for_each(|watchdog| watchdog.extend(end));
                pause = (left / 3).min(TTL / 3);
            }
            Ok(None) => {
                let now = hold.backend.look().ok().flatten();
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
            Title::Own(claim) => self.backend.release(Some(&claim.record.token)),
            Title::Borrowed(_) => Ok(true),
        }
    }

    /// How long the lock is ours from now on; `None` where it is not any more.
    fn confirm(&mut self) -> Result<Option<Duration>> {
        match &self.title {
            Title::Own(claim) => Ok(self.backend.renew(claim)?.then_some(claim.ttl)),
            Title::Borrowed(token) => {
                let held = self.backend.look()?.filter(|held| held.is_of(token));
                Ok(held.as_ref().map(left))
            }
        }
    }
}
