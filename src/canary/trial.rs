//! A trial from beginning to end: production is stopped, the canary takes its place, and production
//! comes back; or the canary runs beside production on another card.

use super::candidate::Candidate;
use super::guardian::Guardian;
use super::ledger::{Journal, Moment, Stage, refuse_unsettled};
use super::limits::Route;
use super::maintenance::{self, Maintenance};
use super::restore::{Hands, Restored, milliseconds, restore};
use super::server::{self, Server, Tested};
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::execute::Executor;
use crate::execute::drain::{self, Survey};
use crate::lock::Guard;
use crate::model::Mb;
use crate::step::Action;
use crate::world::wait::{Event, Stop};
use crate::world::{host, process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What came of a trial.
pub struct TrialOutcome {
    pub route: Route,
    pub tested: Tested,
    pub restored: Option<Restored>,
    pub promotion: Option<PathBuf>,
    /// Why the trial was broken off, or `None` if it ran to its end.
    pub broken_off: Option<Failure>,
}

impl TrialOutcome {
    pub fn has_passed(&self) -> bool {
        self.tested.rejection.is_none()
    }

    /// Returns why the trial gave no answer: production is not back, or the trial was broken off.
    /// `None` if it gave one.
    pub fn failure(&self) -> Option<Failure> {
        let lost = self.restored.as_ref().and_then(|restored| restored.failure.clone());
        let lost = lost.map(|failure| failure.hint("`gpuctl canary recover` tries again"));
        lost.or_else(|| self.broken_off.clone())
    }
}

/// A trial that has been admitted and holds the GPU lock.
pub struct Trial<'a> {
    pub hands: Hands<'a>,
    pub candidate: &'a Candidate,
    pub guard: &'a Guard,
    /// Whether an operator has waived the window and the cooldown.
    pub waived: bool,
    /// Memory that all processes but production's hold, if it is known.
    pub others: Option<Mb>,
    pub state_dir: &'a Path,
}

impl Trial<'_> {
    /// Tries the candidate beside production or in its place, as `route` says.
    pub fn run(&self, route: Route) -> Result<TrialOutcome> {
        let limit = self.hands.canary.limits.reserve;
        let (service, candidate) = (&self.hands.canary.service, self.candidate.told());
        let place = match route {
            Route::Spare(device) => format!("beside {service}, on GPU {device}"),
            Route::Quiesced => format!("in the place of {service}, for {} at most", Span(limit)),
        };
        self.hands.executor.progress.line(&format!("trying {candidate} {place}"));
        let progress = &self.hands.executor.progress.timed(limit);
        let executor = Executor { progress, ..self.hands.executor };
        let timed = Trial { hands: Hands { executor, ..self.hands }, ..*self };
        match route {
            Route::Spare(device) => timed.spare(device),
            Route::Quiesced => timed.quiesced(),
        }
    }

    /// Tries the candidate in production's place.
    fn quiesced(&self) -> Result<TrialOutcome> {
        let Executor { config, reader, stop, .. } = self.hands.executor;
        // Production may be a container whose address only its engine knows, hence this look.
        let seen = self.hands.observe()?;
        let survey = Survey { config, reader, stop, managed: &seen.managed };
        drain::refuse_busy(config.service(&self.hands.canary.service)?, &survey)?;
        let guardian = Guardian::start(config, self.guard.descriptor())?;
        guardian.guard(self.guard.heirloom());
        let mut journal = self.journal(vec![guardian.group])?;
        let maintenance = match self.begin(&journal) {
            Ok(maintenance) => maintenance,
            Err(failure) => {
                // If the journal has been written, the guardian settles it.
                if matches!(self.hands.ledger.journal(), Ok(None)) {
                    guardian.dismiss();
                }
                return Err(failure);
            }
        };
        guardian.expect(self.hands.canary.timeout);
        let deadline = Event::at(Instant::now() + self.hands.canary.timeout)?;
        let result = self.try_in_place(&mut journal, &self.hands.executor.stop.or(&deadline));
        let (mut tested, broken_off) = self.judge(result, &deadline);
        let restored = restore(&self.hands, &mut journal, None, &|within| guardian.expect(within))?;
        drop(maintenance);
        guardian.dismiss();
        if restored.failure.is_some() && tested.rejection.is_none() {
            tested.rejection = Some("production did not come back".to_owned());
        }
        self.conclude(&journal, Route::Quiesced, tested, Some(restored), broken_off)
    }

    /// Checks under the ledger's lock that the trial may still begin, writes the journal, and books
    /// the most that the trial may cost.
    fn begin(&self, journal: &Journal) -> Result<Option<Maintenance>> {
        let maintenance = maintenance::begin(self.hands.canary)?;
        let _locked = self.hands.ledger.lock(self.hands.executor.stop)?;
        refuse_unsettled(self.hands.ledger, self.hands.canary)?;
        self.hands.permit(Route::Quiesced, self.waived)?;
        self.hands.ledger.write_journal(journal)?;
        let reserve = self.hands.canary.limits.reserve;
        self.hands.ledger.book(journal.night, &journal.run_id, reserve.as_secs_f64())?;
        Ok(maintenance)
    }

    /// Tries the candidate beside production, on the card with the index `device`.
    fn spare(&self, device: u32) -> Result<TrialOutcome> {
        let mut journal = self.journal(Vec::new())?;
        {
            let _locked = self.hands.ledger.lock(self.hands.executor.stop)?;
            self.hands.permit(Route::Spare(device), self.waived)?;
            self.audit(&journal, "canary_start", json!({"path": "spare"}))?;
        }
        self.audit(&journal, "spare_path_selected", json!({"gpu": device}))?;
        let deadline = Event::at(Instant::now() + self.hands.canary.timeout)?;
        let stop = self.hands.executor.stop.or(&deadline);
        // The watchdog is told before the canary is started, so that the canary ends with this
        // process, whenever that is.
        self.guard.watch_over(None, &journal.token, server::GRACE)?;
        let mut server = self.start(&mut journal, Some(device))?;
        self.audit(&journal, "canary_started", json!({}))?;
        let result = self.examine(&journal, &mut server, &stop);
        let (tested, broken_off) = self.judge(result, &deadline);
        let step = self.hands.executor.progress.begin(Action::Stop, server::NAME, server::GRACE);
        server::stop(&journal)?;
        step.done(None);
        self.guard.forget_command();
        self.audit(&journal, "canary_stopped", json!({}))?;
        self.conclude(&journal, Route::Spare(device), tested, None, broken_off)
    }

    /// Returns the result of a test, and why the test was broken off if it was.
    fn judge(&self, result: Result<Tested>, deadline: &Event) -> (Tested, Option<Failure>) {
        let timed_out = deadline.happened() && self.hands.executor.stop.check().is_ok();
        let rejected = |why: String| Tested { rejection: Some(why), ..Tested::default() };
        match result {
            Ok(tested) => (tested, None),
            Err(_) if timed_out => {
                (rejected(format!("not done within {}", Span(self.hands.canary.timeout))), None)
            }
            Err(failure) => (rejected(failure.message.clone()), Some(failure)),
        }
    }

    fn journal(&self, guardians: Vec<process::Id>) -> Result<Journal> {
        let me = process::Id::of(std::process::id() as i32);
        Ok(Journal {
            run_id: host::random_hex::<8>()?,
            service: self.hands.canary.service.clone(),
            candidate_id: self.candidate.id(),
            night: self.hands.canary.limits.window.night(host::now()),
            progress: Stage::Ready,
            away: None,
            token: host::random_hex::<16>()?,
            canary: None,
            others: self.others,
            boot: host::boot_id(),
            keepers: me.into_iter().chain(guardians).collect(),
            recovers: None,
        })
    }

    fn try_in_place(&self, journal: &mut Journal, stop: &Stop) -> Result<Tested> {
        self.audit(journal, "canary_start", json!({"path": "quiesced"}))?;
        stop.check()?;
        // If the journal cannot be written, production has not been touched.
        let away = Journal { progress: Stage::Away, away: Some(Moment::now()), ..journal.clone() };
        self.hands.ledger.write_journal(&away)?;
        *journal = away;
        self.hands.stop_production(stop, false)?;
        self.audit(journal, "prod_stopped", json!({}))?;
        let mut server = self.start(journal, None)?;
        self.hands.ledger.write_journal(journal)?;
        self.audit(journal, "canary_started", json!({}))?;
        self.examine(journal, &mut server, stop)
    }

    fn start(&self, journal: &mut Journal, device: Option<u32>) -> Result<Server> {
        let production = self.hands.executor.config.service(&journal.service)?;
        let (canary, token) = (self.hands.canary, &journal.token);
        let server =
            server::start(canary, production, self.candidate, device, token, self.state_dir)?;
        journal.canary = server.group();
        Ok(server)
    }

    /// Tests the canary until something is wrong, and rejects it if its log reports a lack of
    /// memory.
    fn examine(&self, journal: &Journal, server: &mut Server, stop: &Stop) -> Result<Tested> {
        let result = self.ask(journal, server, stop);
        let oom_events = server.oom_events(self.hands.canary);
        let mut tested = match result {
            // A lack of memory is what keeps the canary from answering in time.
            Err(_) if oom_events > 0 && self.hands.executor.stop.check().is_ok() => {
                Tested::default()
            }
            result => result?,
        };
        tested.oom_events = oom_events;
        if tested.oom_events > 0 {
            let times = tested.oom_events;
            tested.rejection =
                Some(format!("the canary ran out of memory: {times} lines of its log say so"));
        }
        Ok(tested)
    }

    fn ask(&self, journal: &Journal, server: &mut Server, stop: &Stop) -> Result<Tested> {
        let Hands { canary, executor: Executor { progress, .. }, .. } = self.hands;
        let step = progress.begin(Action::Start, server::NAME, canary.timeout);
        if let Some(why) = server.until_healthy(canary, stop)? {
            return Ok(Tested { rejection: Some(why), ..Tested::default() });
        }
        step.done(None);
        self.audit(journal, "health_ok", json!({}))?;
        let step = progress.begin(Action::Test, server::NAME, canary.max_latency);
        let tested = server.complete(canary, stop)?;
        if tested.rejection.is_none() {
            step.done(None);
        }
        let latency = tested.latency.map(milliseconds);
        let facts = json!({"llm_latency_ms": latency, "reason": tested.rejection});
        self.audit(journal, "completion", facts)?;
        Ok(tested)
    }

    fn conclude(
        &self,
        journal: &Journal,
        route: Route,
        mut tested: Tested,
        restored: Option<Restored>,
        mut broken_off: Option<Failure>,
    ) -> Result<TrialOutcome> {
        // A measurement is worth nothing if others may have used the card meanwhile.
        if tested.rejection.is_none()
            && let Err(lost) = self.guard.confirm()
        {
            tested.rejection = Some(lost.message.clone());
            broken_off = broken_off.or(Some(lost));
        }
        let promotion = match &tested.rejection {
            None => {
                let latency = tested.latency.map(milliseconds);
                let metrics = json!({"llm_latency_ms": latency, "oom_events": tested.oom_events});
                let file = self.hands.ledger.promote(self.candidate, &journal.run_id, &metrics)?;
                self.audit(journal, "promoted", json!({"promotion": file.display().to_string()}))?;
                Some(file)
            }
            Some(why) => {
                self.audit(journal, "rejected", json!({"reason": why}))?;
                None
            }
        };
        Ok(TrialOutcome { route, tested, restored, promotion, broken_off })
    }

    fn audit(&self, journal: &Journal, event: &str, details: Value) -> Result<()> {
        self.hands.audit(journal, event, details)
    }
}
