//! Brings production back after a trial: for the trial itself, for the guardian of a trial that was
//! killed, or for `canary recover`. Whatever was begun is carried through to its end.

use super::ledger::{Journal, Ledger, Stage, refuse_unsettled};
use super::maintenance;
use super::server;
use crate::config::{Canary, Config, Span};
use crate::error::{Failure, Result};
use crate::execute::Executor;
use crate::execute::drain::Drain;
use crate::exit::Code;
use crate::lock::{Guard, Purpose};
use crate::model::{Pid, Presence, Running, Service, Snapshot, State};
use crate::observe::Ask;
use crate::plan::{self, Plan};
use crate::step::Action;
use crate::world::wait::{Event, Handle, Stop, Woken, wait};
use crate::world::{host, process, systemd};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Pause before production's start is tried again; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How often the process that brings production back shows that it is at work.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What came of bringing production back.
pub struct Restored {
    /// The time from the end of the test until production was ready, or was given up.
    pub took: Duration,
    /// The whole time for which production was away.
    pub downtime: Duration,
    /// Why production is not back, or `None` if it is.
    pub failure: Option<Failure>,
}

/// Everything that is needed to stop and restore production.
#[derive(Clone, Copy)]
pub struct Hands<'a> {
    pub executor: Executor<'a>,
    pub canary: &'a Canary,
    pub ledger: &'a Ledger,
}

impl Hands<'_> {
    /// Observes, plans and carries the plan out. Production's work in flight is cut off: the trial
    /// looked for work before it touched production, and from then on bringing production back
    /// comes first.
    fn carry_out(
        &self,
        stop: &Stop,
        plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
    ) -> Result<()> {
        let executor = Executor { stop, ..self.executor };
        let asks = |service: &Service| service.name == self.canary.service;
        let (_, outcome) = executor.carry_out(Drain::CutOff, asks, plan, &|_| ())?;
        outcome.failure.map_or(Ok(()), Err)
    }

    /// Observes all services, and asks production for its health.
    pub fn observe(&self) -> Result<Snapshot> {
        self.executor.look(&|service| Ask::state_if(service.name == self.canary.service))
    }

    /// Stops production; `force` kills it.
    pub fn stop_production(&self, stop: &Stop, force: bool) -> Result<()> {
        let names = [self.canary.service.clone()];
        self.carry_out(stop, |config, snapshot| plan::stop(config, snapshot, &names, force))
    }

    /// Makes sure that production, which was being stopped, has ended. If it does not end soon, it
    /// is killed, so that it can be back in time.
    fn see_it_stopped(&self) {
        let soon = Event::at(Instant::now() + self.share());
        let ended = soon.and_then(|soon| self.stop_production(&Stop::never().or(&soon), false));
        if ended.is_err() {
            let _ = self.stop_production(&Stop::never(), true);
        }
    }

    /// Starts production as it was before the trial, beside the services that ran then. A refusal
    /// for lack of memory no longer counts once the card is as empty as it was without production
    /// or, whatever others have taken since, after a third of the restore SLA.
    fn start_production(&self, journal: &Journal, waited: Duration, stop: &Stop) -> Result<()> {
        let service = self.executor.config.service(&journal.service)?;
        self.carry_out(stop, |config, snapshot| {
            let used = snapshot.vram.used.zip(journal.others);
            let is_cleared = used.is_some_and(|(used, others)| used <= others);
            plan::start(config, snapshot, service, false).or_else(|refusal| {
                match is_cleared || waited >= self.share() {
                    true => plan::start_again(config, snapshot, service),
                    false => Err(refusal),
                }
            })
        })
    }

    /// Returns how long production was away if it is ready without gpuctl's doing: somebody has
    /// started it again, or it was never stopped and whatever would have stopped it is long over.
    /// `None` if neither is the case.
    pub fn came_back_after(&self, journal: &Journal, seen: &Snapshot) -> Option<Duration> {
        let production = seen.services.iter().find(|one| one.name == journal.service)?;
        let Presence::Up(Running { age: Some(age), .. }) = &production.presence else {
            return None;
        };
        let is_ready = matches!(production.state, State::Ready | State::Busy);
        let Some(away) = journal.away.filter(|_| is_ready) else {
            return is_ready.then_some(Duration::ZERO);
        };
        let since = away.elapsed(&journal.boot);
        let stopping = self.executor.config.service(&journal.service).ok()?.stop_timeout * 2;
        let is_over = since > stopping.max(self.canary.limits.reserve);
        since.checked_sub(*age).or_else(|| is_over.then_some(Duration::ZERO))
    }

    /// Returns the part of the restore SLA that one step of bringing production back may take.
    fn share(&self) -> Duration {
        self.canary.restore_sla / 3
    }

    /// Takes the GPU lock in the canary's name, after waiting for it no longer than `patience`.
    pub fn take_lock(&self, patience: Duration) -> Result<Guard> {
        let services = [self.canary.service.clone()];
        let purpose = Purpose {
            holder: "canary",
            command: "canary",
            services: &services,
            patience,
            margin: None,
        };
        let Executor { config, stop, progress, .. } = self.executor;
        Guard::take(config, &purpose, stop, progress)
    }

    /// Writes an event of a trial into the audit.
    pub fn audit(&self, journal: &Journal, event: &str, details: Value) -> Result<()> {
        let mut all = Map::new();
        all.insert("run_id".to_owned(), json!(journal.run_id));
        all.insert("candidate_id".to_owned(), json!(journal.candidate_id));
        all.insert("budget_used".to_owned(), json!(self.ledger.used(journal.night).ok()));
        all.insert("reason".to_owned(), Value::Null);
        all.extend(details.as_object().cloned().unwrap_or_default());
        self.ledger.audit(journal.night, event, all)
    }
}

/// Ends the canary, starts production again and settles the account; only the end of the machine
/// stops this. `came_back` is how long production was away if it is ready already without gpuctl's
/// doing. `at_work` is told the time until the next sign of life, for a guardian that watches.
pub fn restore(
    hands: &Hands,
    journal: &mut Journal,
    came_back: Option<Duration>,
    at_work: &(dyn Fn(Duration) + Sync),
) -> Result<Restored> {
    let begun = Instant::now();
    let (service, sla) = (journal.service.clone(), hands.canary.restore_sla);
    let (over, going_down) = (Event::new()?, Event::new()?);
    let tell_late = || {
        hands.executor.progress.warning(&format!("{service} was not back within {}", Span(sla)));
    };
    let is_told = AtomicBool::new(false);
    at_work(HEARTBEAT);
    let failure = thread::scope(|scope| {
        scope.spawn(|| {
            while wait(&[over.fd()], &Stop::never(), Instant::now() + HEARTBEAT) == Woken::TimedOut
            {
                at_work(HEARTBEAT);
                if systemd::is_going_down() {
                    going_down.set();
                }
                if begun.elapsed() > sla && !is_told.swap(true, Ordering::Relaxed) {
                    tell_late();
                }
            }
        });
        let failure = bring_back(hands, journal, came_back, &going_down);
        over.set();
        failure
    });
    let failure = failure.err();
    let took = begun.elapsed();
    let away = || journal.away.map_or(Duration::ZERO, |away| away.elapsed(&journal.boot));
    let downtime = came_back.unwrap_or_else(away);
    let account = settle(hands, journal, downtime);
    let facts = json!({
        "restore_seconds": seconds(took),
        "downtime_seconds": seconds(downtime),
        "reason": failure.as_ref().map(|failure| failure.message.clone()),
    });
    if took > sla || failure.is_some() {
        if !is_told.into_inner() {
            tell_late();
        }
        note(hands, journal, "restore_sla_missed", facts.clone());
    }
    match &failure {
        None => {
            note(hands, journal, "prod_restored", facts);
            account.and_then(|()| hands.ledger.remove_journal())?;
        }
        Some(_) => {
            note(hands, journal, "restore_failed", facts);
            // Production is still owed, and the time until it is back is booked then.
            hands.ledger.write_journal(journal)?;
        }
    }
    let failure = failure.map(|failure| {
        let message = format!("{service} has not come back: {}", failure.message);
        Failure { code: Code::StartFailed, message, ..failure }
    });
    Ok(Restored { took, downtime, failure })
}

/// Ends the canary, then tries to start production until it is ready, its time is over or the
/// machine is going down.
fn bring_back(
    hands: &Hands,
    journal: &mut Journal,
    came_back: Option<Duration>,
    going_down: &Arc<Event>,
) -> Result<()> {
    if !journal.canary_processes().is_empty() {
        let step = hands.executor.progress.begin(Action::Stop, server::NAME, server::GRACE);
        let ended = server::stop(journal);
        if ended.is_ok() {
            step.done(None);
        }
        note(hands, journal, "canary_stopped", json!({"reason": ended.err().map(|e| e.message)}));
    }
    // Production that was being stopped may still answer for a moment, so it is stopped completely
    // first. After a reboot, it is the boot that starts production.
    let was_stopped_here = journal.progress == Stage::Away && journal.is_of_this_boot();
    if was_stopped_here && came_back.is_none() {
        hands.see_it_stopped();
    }
    if journal.progress != Stage::Ready {
        journal.progress = Stage::Restoring;
        // If the journal cannot be written, the worst is that production is stopped and started
        // once more.
        let _ = hands.ledger.write_journal(journal);
    }
    let service = hands.executor.config.service(&journal.service)?;
    let limit = service.start_timeout.max(hands.canary.restore_sla);
    let starting = Instant::now();
    let (mut pause, mut last) = (FIRST_PAUSE, None);
    let due = Event::at(starting + limit)?;
    let result = loop {
        let stop = Stop::never().or(going_down);
        // The first try has its own time limit, and its failure says what it has waited for.
        let stop = if last.is_some() { stop.or(&due) } else { stop };
        let Err(failure) = hands.start_production(journal, starting.elapsed(), &stop) else {
            break Ok(());
        };
        if going_down.happened() || systemd::is_going_down() {
            break Err(machine_ends(journal));
        }
        let failure = last.take().filter(|_| due.happened()).unwrap_or(failure);
        if starting.elapsed() >= limit {
            break Err(failure);
        }
        // Memory may not be back yet, or a port may still be taken: all that helps is another try.
        let (name, why) = (&service.name, &failure.message);
        let told = format!("{name} does not start ({why}); the next try is in {}", Span(pause));
        hands.executor.progress.line(&told);
        last = Some(failure);
        wait(&[due.fd()], &Stop::never().or(going_down), Instant::now() + pause);
        pause *= 2;
        // A canary that was just being started when its gpuctl was killed may have production's
        // place.
        let _ = server::stop(journal);
    };
    // Once more: a canary that was just being started when its gpuctl was killed bore no token yet.
    let _ = server::stop(journal);
    due.set();
    result
}

/// Returns the failure of a start that the machine refuses because it is going down.
fn machine_ends(journal: &Journal) -> Failure {
    let message =
        format!("the machine is going down, and {} is not started any more", journal.service);
    Failure::new(Code::StartFailed, message)
        .hint("the next boot starts it, or `gpuctl canary recover`")
}

/// Puts right what an interrupted trial has left, or returns `None` if there is nothing to put
/// right. Fails while a trial is under way.
pub fn recover(hands: &Hands) -> Result<Option<Restored>> {
    if let Some(journal) = hands.ledger.journal()? {
        await_guardian(hands, &journal)?;
    }
    match hands.ledger.journal()? {
        None => {
            maintenance::clear_stale(hands.canary)?;
            return Ok(None);
        }
        Some(journal) if !journal.is_orphaned() => refuse_unsettled(hands.ledger, hands.canary)?,
        Some(_) => {}
    }
    let guard = hands.take_lock(hands.executor.config.lock.wait)?;
    // The previous holder of the lock may have put it right already.
    let restored = match hands.ledger.journal()? {
        None => None,
        Some(mut journal) => {
            hands.audit(&journal, "recover", json!({}))?;
            let seen = hands.observe().ok();
            let came_back = seen.and_then(|seen| hands.came_back_after(&journal, &seen));
            // From now on no other call settles the debt.
            let me = process::Id::of(std::process::id() as Pid);
            journal.recovers = me.map(|me| (host::boot_id(), me));
            hands.ledger.write_journal(&journal)?;
            Some(restore(hands, &mut journal, came_back, &|_| {})?)
        }
    };
    maintenance::clear_stale(hands.canary)?;
    guard.release(hands.executor.progress)?;
    Ok(restored)
}

/// Waits for the guardian of a trial whose gpuctl has ended. The guardian either brings production
/// back, or ends a moment later from the same cause as that gpuctl.
fn await_guardian(hands: &Hands, journal: &Journal) -> Result<()> {
    let Some((trial, guardians)) = journal.keepers.split_first() else { return Ok(()) };
    if journal.is_orphaned() || trial.is_alive() {
        return Ok(());
    }
    let told = format!("waiting for the trial's guardian, which brings {} back", journal.service);
    hands.executor.progress.line(&told);
    let (stop, deadline) = (hands.executor.stop, Instant::now() + hands.canary.limits.reserve);
    for guardian in guardians.iter().copied().filter_map(Handle::of) {
        wait(&[guardian.fd()], stop, deadline);
    }
    stop.check()
}

/// Replaces what was booked for a trial by what the trial has really cost.
fn settle(hands: &Hands, journal: &Journal, downtime: Duration) -> Result<()> {
    let _locked = hands.ledger.lock(&Stop::never())?;
    hands.ledger.book(journal.night, &journal.run_id, downtime.as_secs_f64())
}

/// Writes an event of a trial into the audit. If that fails, the user is only warned, so that it
/// does not keep production away.
fn note(hands: &Hands, journal: &Journal, event: &str, details: Value) {
    if let Err(failure) = hands.audit(journal, event, details) {
        hands.executor.progress.warning(&format!("{event} is missing from the audit: {failure}"));
    }
}

/// Returns a time in seconds, rounded to milliseconds.
pub fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Returns a time in milliseconds, rounded to microseconds.
pub fn milliseconds(span: Duration) -> f64 {
    seconds(span * 1000)
}
