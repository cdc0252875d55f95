//! Whether a trial may begin, and where: the card as it is, the other card, the limits, what is left
//! of an earlier trial, whether production is well, and the GPU lock.

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

/// The verdict by arithmetic over the live card.
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

/// Returns where a candidate is tried that fits: beside production if there is room, else in its
/// place.
pub fn route(hands: &Hands, candidate: &Candidate, verdict: &Prediction) -> Result<Route> {
    let canary = hands.canary;
    let command = candidate
        .command(&canary.start, canary.port, &canary.model)
        .map_err(|problem| Failure::new(Code::Config, problem))?;
    refuse_homeless(&command, hands.executor.config.service(&canary.service)?, canary)?;
    let spare = canary.spare_gpu.filter(|device| has_room(*device, candidate, verdict, hands));
    Ok(spare.map_or(Route::Quiesced, Route::Spare))
}

/// A command that the shell starts where HOME is not set may not name it by `~`: the shell would take
/// that for a folder's name, and find out when production is away.
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

/// Whether a trial may begin there; `waived`: the window and the cooldown, by an operator's word.
pub fn admit(hands: &Hands, route: Route, waived: bool) -> Result<()> {
    refuse_unsettled(hands.ledger, hands.canary)?;
    maintenance::refuse_held(hands.canary)?;
    hands.permit(route, waived)?;
    refuse_unready(hands, route).or_else(|refusal| {
        // Another trial may have begun meanwhile, which takes production away, and the port.
        refuse_unsettled(hands.ledger, hands.canary)?;
        Err(refusal)
    })
}

/// Whether that card is another than production's, and has room for the candidate: for what it
/// takes of production's card, and for the share that it takes of this one.
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

/// A trial needs production to be well, and its own port to be free.
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
    /// Whether a trial may be now, by the limits; the refusal says when it may.
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

/// Takes the GPU lock for a trial, which does not wait for it: the refusal says when the lock ends
/// by itself.
pub fn take_lock_at_once(hands: &Hands) -> Result<Guard> {
    hands.take_lock(Duration::ZERO).map_err(|refusal| {
        let left = refusal.details.get("ttl").and_then(Value::as_u64).map(Duration::from_secs);
        let Some(left) = left.filter(|_| refusal.code == Code::LockBusy) else { return refusal };
        let hints = vec!["try again when it is free; `gpuctl lock status` tells you".to_owned()];
        Failure { hints, ..refusal }.detail("next", later(left))
    })
}

/// A refusal belongs into the audit; that it cannot be written there changes nothing.
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
