//! Decides whether a trial may begin now, by the limits of the configuration and the past runs in
//! the ledger. Pure: the time is a parameter.

use crate::config::Limits;
use jiff::Timestamp;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the ledger says of a service's past runs.
pub struct PastRuns {
    /// Times at which the service's runs began, oldest first.
    pub runs: Vec<Timestamp>,
    /// How long production was away this night, bookings included.
    pub used: Duration,
}

/// The limit that forbids a run now, and the time at which it next permits one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NotNow {
    OutsideWindow { next: Timestamp },
    Cooldown { next: Timestamp },
    RateLimited { next: Timestamp },
    BudgetExhausted { used: Duration, next: Timestamp },
}

impl NotNow {
    /// Returns when to try again.
    pub fn next(&self) -> Timestamp {
        match self {
            NotNow::OutsideWindow { next }
            | NotNow::Cooldown { next }
            | NotNow::RateLimited { next }
            | NotNow::BudgetExhausted { next, .. } => *next,
        }
    }
}

/// The place where a trial runs, which decides what it does to production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The trial runs beside production, on the card with this index.
    Spare(u32),
    /// The trial runs in production's place.
    Quiesced,
}

/// Decides whether a run may begin; `waived` lifts the window and the cooldown, on an operator's
/// order.
pub fn permit(
    limits: &Limits,
    history: &PastRuns,
    route: Route,
    waived: bool,
    now: Timestamp,
) -> Result<(), NotNow> {
    let window = &limits.window;
    if route == Route::Quiesced && !waived && !window.contains(now) {
        return Err(NotNow::OutsideWindow { next: window.opens_next(now) });
    }
    if let Some(next) = cooled_down(limits, history, now).filter(|_| !waived) {
        return Err(NotNow::Cooldown { next });
    }
    if let Some(next) = rate_permits(limits, history, now) {
        return Err(NotNow::RateLimited { next });
    }
    if route == Route::Quiesced && history.used + limits.reserve > limits.max_downtime {
        let next = window.next_night(now);
        return Err(NotNow::BudgetExhausted { used: history.used, next });
    }
    Ok(())
}

/// Returns when the cooldown after the last run ends, or `None` if no cooldown is running.
pub fn cooled_down(limits: &Limits, history: &PastRuns, now: Timestamp) -> Option<Timestamp> {
    let last = *history.runs.last()?;
    after(last, limits.cooldown).filter(|next| *next > now)
}

/// Returns when the limit of runs in 24 hours permits another one, or `None` if it does so now.
fn rate_permits(limits: &Limits, history: &PastRuns, now: Timestamp) -> Option<Timestamp> {
    let runs = runs_in_a_day(history, now);
    let surplus = (runs.len() + 1).checked_sub(limits.max_runs_per_day).filter(|n| *n > 0)?;
    // A limit of 0 never permits a run, and a day from now is as good an answer as any.
    let last_to_expire = runs.get(surplus - 1).copied().unwrap_or(now);
    after(last_to_expire, DAY)
}

/// Returns the runs of the last 24 hours. A run that a clock step has put into the future counts.
pub fn runs_in_a_day(history: &PastRuns, now: Timestamp) -> Vec<Timestamp> {
    let counts = |begun: &&Timestamp| after(**begun, DAY).is_none_or(|expiry| expiry > now);
    history.runs.iter().filter(counts).copied().collect()
}

/// Returns the time `span` after `moment`, or `None` if the calendar ends before it.
pub fn after(moment: Timestamp, span: Duration) -> Option<Timestamp> {
    moment.checked_add(jiff::SignedDuration::try_from(span).ok()?).ok()
}
