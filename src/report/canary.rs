//! Reports of the `canary` commands.

use super::{LockReport, Report};
use crate::canary::candidate;
use crate::canary::conduct::{Candidacy, Course};
use crate::canary::ledger::Ledger;
use crate::canary::limits::{Route, runs_in_a_day};
use crate::canary::restore::{milliseconds, seconds};
use crate::canary::trial::TrialOutcome;
use crate::canary::verdict::{Prediction, Status};
use crate::config::{Config, Mode, Span};
use crate::error::Result;
use crate::lock::Held;
use crate::screen::Screen;
use crate::screen::layout::prose;
use crate::screen::text::span;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// The verdict that arithmetic gives on a candidate, and the candidate itself.
#[derive(Serialize)]
pub struct VerdictReport {
    #[serde(flatten)]
    verdict: Prediction,
    mode: Mode,
    candidate: Map<String, Value>,
    candidate_id: String,
    /// How the candidate was tried or, with `--dry-run`, would be: `spare` or `quiesced`. `None` if
    /// arithmetic alone decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
}

impl VerdictReport {
    pub fn new(verdict: &Prediction, asked: &Candidacy, course: &Course) -> VerdictReport {
        VerdictReport {
            verdict: verdict.clone(),
            mode: asked.mode,
            candidate: asked.document.clone(),
            candidate_id: candidate::id(&asked.document),
            path: match course {
                Course::Predicted => None,
                Course::Permitted(route) => Some(name(*route)),
                Course::Tried(outcome) => Some(name(outcome.route)),
            },
        }
    }
}

impl Report for VerdictReport {
    fn text(&self, screen: &Screen) -> String {
        let path = self.path.map(|path| format!("; would be tried {path}")).unwrap_or_default();
        let what = match (self.mode, self.verdict.status) {
            (Mode::Predictive, Status::Pass) => {
                "predictive: nothing was started; --mode canary for a trial (`gpuctl canary run --mode canary`)\n"
            }
            (Mode::Predictive, Status::Fail) => "predictive: nothing was started\n",
            _ => "",
        };
        let text = format!("{}: {}{path}\n{what}", word(self.verdict.status), self.verdict.reason);
        prose(&text, screen)
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Pass => "pass",
        Status::Fail => "fail",
        Status::Invalid => "invalid",
    }
}

fn name(route: Route) -> &'static str {
    match route {
        Route::Spare(_) => "spare",
        Route::Quiesced => "quiesced",
    }
}

/// The result of a candidate's trial.
#[derive(Serialize)]
pub struct CanaryRunReport {
    #[serde(flatten)]
    verdict: VerdictReport,
    /// Why the trial rejected the candidate, or `None` if the candidate passed.
    rejection: Option<String>,
    llm_latency_ms: Option<f64>,
    oom_events: usize,
    downtime_seconds: f64,
    /// Whether production came back after the trial, or `None` if production was never away.
    restored: Option<bool>,
    restore_seconds: Option<f64>,
    promotion: Option<String>,
}

impl CanaryRunReport {
    pub fn new(mut verdict: VerdictReport, outcome: &TrialOutcome) -> CanaryRunReport {
        if outcome.tested.rejection.is_some() {
            verdict.verdict.status = Status::Fail;
        }
        let restored = outcome.restored.as_ref();
        CanaryRunReport {
            verdict,
            rejection: outcome.tested.rejection.clone(),
            llm_latency_ms: outcome.tested.latency.map(milliseconds),
            oom_events: outcome.tested.oom_events,
            downtime_seconds: restored.map_or(0.0, |restored| seconds(restored.downtime)),
            restored: restored.map(|restored| restored.failure.is_none()),
            restore_seconds: restored.map(|restored| seconds(restored.took)),
            promotion: outcome.promotion.as_ref().map(|path| path.display().to_string()),
        }
    }
}

impl Report for CanaryRunReport {
    fn text(&self, screen: &Screen) -> String {
        let away = match self.restored {
            Some(_) => format!(
                ", production away for {}",
                span(Duration::from_secs_f64(self.downtime_seconds))
            ),
            None => String::new(),
        };
        let text = match (&self.rejection, &self.promotion) {
            (Some(why), _) => format!("rejected: {why}{away}"),
            (None, Some(file)) => {
                let latency = self.llm_latency_ms.unwrap_or_default();
                format!("passed: completion in {latency:.0} ms{away}; {file}")
            }
            (None, None) => format!("passed{away}"),
        };
        prose(&text, screen)
    }
}

/// The report of `canary status`.
#[derive(Serialize)]
pub struct CanaryStatusReport {
    service: String,
    mode: Mode,
    window: String,
    in_window: bool,
    /// Time at which the window opens next.
    next_window: String,
    #[serde(skip)]
    opens: String,
    night: String,
    budget_used: Option<f64>,
    budget_left: Option<f64>,
    runs_24h: usize,
    max_runs_per_day: usize,
    /// Seconds that are left of the cooldown after the latest run, or 0 if no cooldown is running.
    cooldown_left: f64,
    lock: LockReport,
    /// Whether production still has to be brought back after a trial that was interrupted.
    restore_owed: bool,
    /// Identifier of the trial that is under way or was interrupted, or `None` if there is none.
    run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl CanaryStatusReport {
    pub fn new(
        config: &Config,
        lock: &Result<Option<Held>>,
        now: Timestamp,
    ) -> Result<CanaryStatusReport> {
        let (canary, ledger) = (config.canary()?, Ledger::open(config)?);
        let limits = &canary.limits;
        let night = limits.window.night(now);
        let journal = ledger.journal()?;
        let history = ledger.history(night, limits.cooldown);
        let (used, error) = match &history {
            Ok(history) => (Some(history.used), None),
            Err(failure) => (None, Some(failure.message.clone())),
        };
        let runs = history.as_ref().map_or(Vec::new(), |history| runs_in_a_day(history, now));
        let since = history
            .as_ref()
            .ok()
            .and_then(|history| Duration::try_from(now.duration_since(*history.runs.last()?)).ok());
        Ok(CanaryStatusReport {
            service: canary.service.clone(),
            mode: canary.mode,
            window: limits.window.to_string(),
            in_window: limits.window.contains(now),
            next_window: limits.window.opens_next(now).to_string(),
            opens: limits.window.tell(limits.window.opens_next(now), now),
            night: night.strftime("%Y%m%d").to_string(),
            budget_used: used.map(seconds),
            budget_left: used.map(|used| seconds(limits.max_downtime.saturating_sub(used))),
            runs_24h: runs.len(),
            max_runs_per_day: limits.max_runs_per_day,
            cooldown_left: since
                .map_or(0.0, |since| seconds(limits.cooldown.saturating_sub(since))),
            lock: LockReport::new(config, lock),
            restore_owed: journal.as_ref().is_some_and(|journal| journal.is_orphaned()),
            run_id: journal.map(|journal| journal.run_id),
            error,
        })
    }
}

impl Report for CanaryStatusReport {
    fn text(&self, screen: &Screen) -> String {
        let figure = |value: Option<f64>| {
            value.map_or("?".to_owned(), |value| span(Duration::from_secs_f64(value)))
        };
        let window = match self.in_window {
            true => "open now".to_owned(),
            false => format!("opens {}", self.opens),
        };
        let mode = self.mode.name();
        let mut text = format!(
            "canary of {}, mode {mode}\nwindow {}: {window}\nnight {}: {} used, {} left\nruns within 24 h: {} of {}; cooldown {}\nGPU lock {}\n",
            self.service,
            self.window,
            self.night,
            figure(self.budget_used),
            figure(self.budget_left),
            self.runs_24h,
            self.max_runs_per_day,
            Span::seconds(self.cooldown_left.round() as u64),
            self.lock.describe(),
        );
        if self.restore_owed {
            text.push_str("a restore is owed: `gpuctl canary recover`\n");
        } else if let Some(run_id) = &self.run_id {
            text.push_str(&format!("run {run_id} is under way\n"));
        }
        prose(&text, screen)
    }
}

/// The report of a `canary` command whose result is one sentence on what was done.
#[derive(Serialize)]
pub struct DoneReport {
    success: bool,
    message: String,
}

impl DoneReport {
    pub fn new(message: &str) -> DoneReport {
        DoneReport { success: true, message: message.to_owned() }
    }
}

impl Report for DoneReport {
    fn text(&self, screen: &Screen) -> String {
        prose(&self.message, screen)
    }
}
