//! Decides whether a trial may begin and on which card, by the memory of both cards, the limits,
//! the remains of an earlier trial, production's health and the GPU lock.

use super::candidate::{self, Candidate};
use super::ledger::{later, refuse_unsettled};
use super::limits::{NotNow, Route, permit};
use super::maintenance;
use super::restore::Hands;
use super::verdict::{Card, Prediction, judge};
use crate::config::{Canary, Config, Gpu, Limits, Selector, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::lock::Guard;
use crate::model::{Manager, Mb, Service, Source, State, Vram};
use crate::observe::{Ask, observe};
use crate::plan::reading_required;
use crate::screen::text::span;
use crate::world::host;
use crate::world::nvml::Reader;
use crate::world::ports::Listeners;
use crate::world::wait::Stop;
use serde_json::{Map, Value, json};
use std::sync::PoisonError;
use std::time::Duration;

/// Judges a candidate by arithmetic over the live memory of production's card; nothing is started
/// or stopped. Fails if the card's memory or production's part of it is not known.
pub fn predict(
    candidate: &std::result::Result<Candidate, String>,
    config: &Config,
    canary: &Canary,
    reader: &mut Reader,
    stop: &Stop,
) -> Result<Prediction> {
    let snapshot = observe(config, reader, stop, &|_| Ask::Nothing)?;
    let vram = &snapshot.vram;
    let (Some(total), Some(used)) = (vram.total, vram.used) else {
        return Err(reading_required(vram));
    };
    let production = snapshot.service(&canary.service);
    let own = match vram.source {
        Source::Nvml => production.used,
        Source::Estimate => Some(match production.may_run() {
            true => config.service(&canary.service)?.vram,
            false => Mb(0),
        }),
    };
    let own = own.ok_or_else(|| {
        Failure::new(Code::Unavailable, format!("cannot tell what {} holds", canary.service))
            .hint("`gpuctl status` says why")
    })?;
    Ok(judge(candidate, canary, Card { total, persistent: used.saturating_sub(own) }))
}

/// Returns where a candidate that passed the prediction is tried: beside production if the spare
/// card has room, otherwise in production's place. Fails if its start command cannot work.
pub fn route(hands: &Hands, candidate: &Candidate, verdict: &Prediction) -> Result<Route> {
    let canary = hands.canary;
    let command = candidate
        .command(&canary.start, canary.port, &canary.model)
        .map_err(|problem| Failure::new(Code::Config, problem))?;
    refuse_homeless(&command, hands.executor.config.service(&canary.service)?, canary)?;
    let spare = canary.spare_gpu.filter(|device| has_room(*device, candidate, verdict, hands));
    Ok(spare.map_or(Route::Quiesced, Route::Spare))
}

/// Refuses a start command with `~` in it if the shell that runs it has no `HOME`. The shell would
/// take `~` for a folder's name, and the trial would fail only once production is away.
fn refuse_homeless(command: &str, production: &Service, canary: &Canary) -> Result<()> {
    let has_home = canary.has_home
        || matches!(&production.manager, Manager::Native(native) if native.env.contains_key("HOME"));
    let names_home = |word: &str| word == "~" || word.starts_with("~/");
    let is_break = |c: char| c.is_whitespace() || "\"'=:;&|(".contains(c);
    match !has_home && command.split(is_break).any(names_home) {
        false => Ok(()),
        true => Err(Failure::new(
            Code::Config,
            format!("canary.start: HOME is not set, and `{command}` needs it for `~`"),
        )
        .hint("write the path out, or set HOME (in a unit: Environment=HOME=/root)")),
    }
}

/// Refuses a trial on `route` if it may not begin now. `waived` lifts the window and the cooldown,
/// on an operator's order.
pub fn admit(hands: &Hands, route: Route, waived: bool) -> Result<()> {
    refuse_unsettled(hands.ledger, hands.canary)?;
    maintenance::refuse_held(hands.canary)?;
    hands.permit(route, waived)?;
    refuse_unready(hands, route).or_else(|refusal| {
        // A trial that has begun meanwhile is the better reason: it takes production away, and the
        // port.
        refuse_unsettled(hands.ledger, hands.canary)?;
        Err(refusal)
    })
}

/// Reports whether the card `device` is not production's and has room for the candidate: for the
/// memory that the candidate takes on production's card, and for its share of this card's memory.
/// `false` if either card cannot be read.
fn has_room(device: u32, candidate: &Candidate, verdict: &Prediction, hands: &Hands) -> bool {
    let mut own = hands.executor.reader.lock().unwrap_or_else(PoisonError::into_inner);
    let own = own.read().ok().and_then(|vram| vram.device);
    let other = Gpu { selector: Selector::Index(device), ..hands.executor.config.gpu.clone() };
    let other = Reader::open(&other).read().ok();
    let (Some(own), Some(Vram { total: Some(total), used: Some(used), free: Some(free), .. })) =
        (own, other)
    else {
        return false;
    };
    let there = judge(&Ok(candidate.clone()), hands.canary, Card { total, persistent: used });
    let fits = verdict.allocation.is_some_and(|needed| free >= needed);
    own.index != device && there.passed && fits
}

/// Refuses a trial if something listens on the canary's port or, for a trial in production's place,
/// if production is not ready.
fn refuse_unready(hands: &Hands, route: Route) -> Result<()> {
    let canary = hands.canary;
    let listeners = Listeners::read();
    if listeners.is_taken(canary.port) {
        let message = format!("something listens on the canary's port {}", canary.port);
        return Err(
            Failure::new(Code::StartFailed, message).hint("end it, or choose another canary.port")
        );
    }
    if matches!(route, Route::Spare(_)) {
        return Ok(());
    }
    let snapshot = hands.observe()?;
    match snapshot.service(&canary.service).state {
        State::Ready => Ok(()),
        state => Err(Failure::new(
            Code::Unavailable,
            format!("{} is {state}: there is no production to try it against", canary.service),
        )
        .hint(format!("`gpuctl start {}` first", canary.service))),
    }
}

impl Hands<'_> {
    /// Refuses a trial that the window, the cooldown, the runs of a day or the downtime budget
    /// forbid now. The failure says when to try again.
    pub fn permit(&self, route: Route, waived: bool) -> Result<()> {
        let (canary, now) = (self.canary, host::now());
        let limits = &canary.limits;
        let history = self.ledger.history(limits.window.night(now), limits.cooldown)?;
        permit(limits, &history, route, waived, now)
            .map_err(|not_now| self.refusal(&not_now, limits))
    }

    fn refusal(&self, not_now: &NotNow, limits: &Limits) -> Failure {
        let window = &limits.window;
        let (limit, message) = match not_now {
            NotNow::OutsideWindow { .. } => {
                ("outside_window", format!("outside the maintenance window {window}"))
            }
            NotNow::Cooldown { .. } => {
                ("cooldown", format!("the last run was less than {} ago", Span(limits.cooldown)))
            }
            NotNow::RateLimited { .. } => (
                "rate_limited",
                format!("there were {} runs within 24 hours", limits.max_runs_per_day),
            ),
            NotNow::BudgetExhausted { used, .. } => (
                "budget_exhausted",
                format!(
                    "production was away for {} of {} this night, and a run may take {}",
                    span(*used),
                    Span(limits.max_downtime),
                    Span(limits.reserve)
                ),
            ),
        };
        let next = not_now.next();
        let when = match not_now {
            NotNow::OutsideWindow { .. } => "it opens",
            _ => "try again after",
        };
        Failure::new(Code::NotNow(limit), message)
            .hint(format!("{when} {}", window.tell(next, host::now())))
            .detail("next", next.to_string())
    }
}

/// Takes the GPU lock for a trial without waiting for it. The failure says in its detail `next`
/// when the lock ends by itself, if it does.
pub fn take_lock_at_once(hands: &Hands) -> Result<Guard> {
    hands.take_lock(Duration::ZERO).map_err(|refusal| {
        let left = refusal.details.get("ttl").and_then(Value::as_u64).map(Duration::from_secs);
        let Some(left) = left.filter(|_| refusal.code == Code::LockBusy) else { return refusal };
        let hints = vec!["try again when it is free; `gpuctl lock status` tells you".to_owned()];
        Failure { hints, ..refusal }.detail("next", later(left))
    })
}

/// Writes a refusal into the audit. If that fails, the user is only warned.
pub fn note_refusal(hands: &Hands, document: &Map<String, Value>, refusal: &Failure) {
    let night = hands.canary.limits.window.night(host::now());
    let facts = json!({
        "run_id": null,
        "candidate_id": candidate::id(document),
        "budget_used": hands.ledger.used(night).ok(),
        "reason": format!("{}: {}", refusal.code.name(), refusal.message),
    });
    let facts = facts.as_object().cloned().unwrap_or_default();
    if let Err(failure) = hands.ledger.audit(night, "refused", facts) {
        hands
            .executor
            .progress
            .warning(&format!("the refusal is missing from the audit: {failure}"));
    }
}
