//! Whether a trial may be now, by the limits of the configuration and by what the ledger says. Pure:
//! it is given the time.

use crate::config::Limits;
use jiff::Timestamp;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The ledger says this of the past.
pub struct PastRuns {
    /// The service's runs began at these times, oldest first.
    pub runs: Vec<Timestamp>,
    /// The time for which production was away this night, bookings included.
    pub used: Duration,
}

/// Why a run may not be now, and when it may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NotNow {
    OutsideWindow { next: Timestamp },
    Cooldown { next: Timestamp },
    RateLimited { next: Timestamp },
    BudgetExhausted { used: Duration, next: Timestamp },
}

impl NotNow {
    pub fn next(&self) -> Timestamp {
        match self {
            NotNow::OutsideWindow { next }
            | NotNow::Cooldown { next }
            | NotNow::RateLimited { next }
            | NotNow::BudgetExhausted { next, .. } => *next,
        }
    }
}

/// A run affects production in one of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The trial runs beside production, on the card of that number.
    Spare(u32),
    /// The trial runs in production's place.
    Quiesced,
}

/// Whether a run may begin. `waived`: the window and the cooldown, by an operator's word.
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

/// Returns when the last run is long enough ago, where it is not yet.
pub fn cooled_down(limits: &Limits, history: &PastRuns, now: Timestamp) -> Option<Timestamp> {
    let last = *history.runs.last()?;
    after(last, limits.cooldown).filter(|next| *next > now)
}

/// Returns when one of the last day's runs no longer counts, where there were too many.
fn rate_permits(limits: &Limits, history: &PastRuns, now: Timestamp) -> Option<Timestamp> {
    let runs = runs_in_a_day(history, now);
    let surplus = (runs.len() + 1).checked_sub(limits.max_runs_per_day).filter(|n| *n > 0)?;
    // With a limit of 0 none is ever permitted, and a day is as good an answer as any.
    let last_to_expire = runs.get(surplus - 1).copied().unwrap_or(now);
    after(last_to_expire, DAY)
}

/// The runs of the last 24 hours. One that a clock step has put into the future counts.
pub fn runs_in_a_day(history: &PastRuns, now: Timestamp) -> Vec<Timestamp> {
    let counts = |begun: &&Timestamp| after(**begun, DAY).is_none_or(|expiry| expiry > now);
    history.runs.iter().filter(counts).copied().collect()
}

pub fn after(moment: Timestamp, span: Duration) -> Option<Timestamp> {
    moment.checked_add(jiff::SignedDuration::try_from(span).ok()?).ok()
}
