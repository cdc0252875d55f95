//! When a trial may cost production time: the maintenance window in its time zone, and the limits
//! on how often and for how long. Pure: it is given the time and what the ledger says.

use jiff::civil::{Date, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};
use std::fmt;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A time of day, every day. Both ends belong to it.
#[derive(Clone, Debug)]
pub struct Window {
    start: Time,
    end: Time,
    zone: TimeZone,
    zone_name: String,
}

impl Window {
    /// "03:00-07:00", or with a time zone of its own: "03:00-07:00 Europe/Berlin".
    pub fn parse(
        text: &str,
        time_zone: &str,
        zones: &TimeZoneDatabase,
    ) -> Result<Window, (&'static str, String)> {
        let malformed = || {
            let problem = format!(
                "\"{text}\" is no window such as \"03:00-07:00\" or \"22:30-04:00 Europe/Berlin\""
            );
            ("window", problem)
        };
        let (span, own_zone) = match text.trim().split_once(' ') {
            Some((span, zone)) => (span, Some(zone.trim())),
            None => (text.trim(), None),
        };
        let (start, end) = span.split_once('-').ok_or_else(malformed)?;
        let time = |text: &str| Time::strptime("%H:%M", text.trim()).map_err(|_| malformed());
        let (start, end) = (time(start)?, time(end)?);
        let (key, name) = match own_zone {
            Some(zone) => ("window", zone),
            None => ("time_zone", time_zone.trim()),
        };
        let zone = zones
            .get(name)
            .map_err(|_| (key, format!("\"{name}\" is no time zone such as \"Europe/Berlin\"")))?;
        Ok(Window { start, end, zone, zone_name: name.to_owned() })
    }

    fn crosses_midnight(&self) -> bool {
        self.end < self.start
    }

    pub fn contains(&self, now: Timestamp) -> bool {
        let time = now.to_zoned(self.zone.clone()).time();
        match self.crosses_midnight() {
            false => self.start <= time && time <= self.end,
            true => self.start <= time || time <= self.end,
        }
    }

    /// The date that a night goes by: that of the day on which it began.
    pub fn night(&self, now: Timestamp) -> Date {
        let local = now.to_zoned(self.zone.clone());
        match self.crosses_midnight() && local.time() <= self.end {
            true => local.date().yesterday().unwrap_or(local.date()),
            false => local.date(),
        }
    }

    /// When another night than that of `now` opens.
    fn next_night(&self, now: Timestamp) -> Timestamp {
        let next = self.opens_next(now);
        if self.night(next) == self.night(now) { self.opens_next(next) } else { next }
    }

    /// When it opens next, strictly after `now`.
    pub fn opens_next(&self, now: Timestamp) -> Timestamp {
        let local = now.to_zoned(self.zone.clone());
        let opening = |date: Date| date.to_datetime(self.start).to_zoned(self.zone.clone());
        let mut date = local.date();
        // A clock change moves an opening by hours, never by a day.
        for _ in 0..3 {
            if let Ok(opening) = opening(date)
                && opening.timestamp() > now
            {
                return opening.timestamp();
            }
            date = date.checked_add(1.day()).unwrap_or(date);
        }
        now
    }

    /// A moment as people near the window read it.
    pub fn local(&self, moment: Timestamp) -> String {
        moment.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.start.strftime("%H:%M"), self.end.strftime("%H:%M"));
        write!(f, "{start}-{end} {}", self.zone_name)
    }
}

/// The limits of the configuration.
pub struct Limits<'a> {
    pub window: &'a Window,
    pub cooldown: Duration,
    pub max_runs_per_day: usize,
    /// For which production may be away, per night.
    pub max_downtime: Duration,
    /// For which one run may keep it away.
    pub reserve: Duration,
}

/// What the ledger says.
pub struct History {
    /// When the service's runs began, oldest first.
    pub runs: Vec<Timestamp>,
    /// For which production was away this night, bookings included.
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

/// How a run affects production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Beside it, on another card.
    Spare,
    /// In its place.
    Quiesced,
}

/// Whether a run may begin. `waived`: the window and the cooldown, by an operator's word.
pub fn permit(
    limits: &Limits,
    history: &History,
    path: Path,
    waived: bool,
    now: Timestamp,
) -> Result<(), NotNow> {
    let window = limits.window;
    if path == Path::Quiesced && !waived && !window.contains(now) {
        return Err(NotNow::OutsideWindow { next: window.opens_next(now) });
    }
    if let Some(next) = cooled_down(limits, history, now).filter(|_| !waived) {
        return Err(NotNow::Cooldown { next });
    }
    if let Some(next) = rate_permits(limits, history, now) {
        return Err(NotNow::RateLimited { next });
    }
    if path == Path::Quiesced && history.used + limits.reserve > limits.max_downtime {
        let next = window.next_night(now);
        return Err(NotNow::BudgetExhausted { used: history.used, next });
    }
    Ok(())
}

/// When the last run is long enough ago, where it is not yet.
pub fn cooled_down(limits: &Limits, history: &History, now: Timestamp) -> Option<Timestamp> {
    let last = *history.runs.last()?;
    after(last, limits.cooldown).filter(|next| *next > now)
}

/// When one of the last day's runs no longer counts, where there were too many.
fn rate_permits(limits: &Limits, history: &History, now: Timestamp) -> Option<Timestamp> {
    let runs = runs_in_a_day(history, now);
    let surplus = (runs.len() + 1).checked_sub(limits.max_runs_per_day).filter(|n| *n > 0)?;
    // With a limit of 0 none is ever permitted, and a day is as good an answer as any.
    let last_to_expire = runs.get(surplus - 1).copied().unwrap_or(now);
    after(last_to_expire, DAY)
}

/// The runs of the last 24 hours. One that a clock step has put into the future counts.
pub fn runs_in_a_day(history: &History, now: Timestamp) -> Vec<Timestamp> {
    let counts = |begun: &&Timestamp| after(**begun, DAY).is_none_or(|expiry| expiry > now);
    history.runs.iter().filter(counts).copied().collect()
}

pub fn after(moment: Timestamp, span: Duration) -> Option<Timestamp> {
    moment.checked_add(jiff::SignedDuration::try_from(span).ok()?).ok()
}
