//! The maintenance window in its time zone, and the other limits on when, how often and for how
//! long a trial of the canary may take production away. Pure: the caller passes the time.

use super::Span;
use jiff::civil::{Date, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};
use std::fmt;
use std::time::Duration;

/// Daily maintenance window in a time zone. It may cross midnight, and both ends belong to it.
#[derive(Clone, Debug)]
pub struct Window {
    start: Time,
    end: Time,
    zone: TimeZone,
    zone_name: String,
}

impl Window {
    /// Parses a window: "03:00-07:00", which is in `time_zone`, or "03:00-07:00 Europe/Berlin",
    /// which names its own. Fails with the key that is wrong, `window` or `time_zone`, and the
    /// reason.
    pub fn parse(
        text: &str,
        time_zone: &str,
        zones: &TimeZoneDatabase,
    ) -> Result<Window, (&'static str, String)> {
        let malformed = || {
            let problem = format!(
                "\"{text}\" is not a window such as \"03:00-07:00\" or \"22:30-04:00 Europe/Berlin\""
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
        let zone = zones.get(name).map_err(|_| {
            (key, format!("\"{name}\" is not a time zone such as \"Europe/Berlin\""))
        })?;
        Ok(Window { start, end, zone, zone_name: name.to_owned() })
    }

    fn crosses_midnight(&self) -> bool {
        self.end < self.start
    }

    /// Reports whether the window is open at the time `now`.
    pub fn contains(&self, now: Timestamp) -> bool {
        let time = now.to_zoned(self.zone.clone()).time();
        match self.crosses_midnight() {
            false => self.start <= time && time <= self.end,
            true => self.start <= time || time <= self.end,
        }
    }

    /// Returns the date of the night that `now` belongs to: the day on which that night began.
    pub fn night(&self, now: Timestamp) -> Date {
        let local = now.to_zoned(self.zone.clone());
        match self.crosses_midnight() && local.time() <= self.end {
            true => local.date().yesterday().unwrap_or(local.date()),
            false => local.date(),
        }
    }

    /// Returns when the window next opens for another night than that of `now`.
    pub fn next_night(&self, now: Timestamp) -> Timestamp {
        let next = self.opens_next(now);
        if self.night(next) == self.night(now) { self.opens_next(next) } else { next }
    }

    /// Returns when the window opens next, strictly after `now`.
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

    /// Formats a coming moment for people, in the window's time zone: "03:00 New York, in 11h". The
    /// date is added if the moment is more than a day away.
    pub fn tell(&self, moment: Timestamp, now: Timestamp) -> String {
        let left = Duration::try_from(moment.duration_since(now)).unwrap_or_default();
        let local = moment.to_zoned(self.zone.clone());
        let form = if left > Duration::from_secs(24 * 3600) { "%Y-%m-%d %H:%M" } else { "%H:%M" };
        let city = self.zone_name.rsplit('/').next().unwrap_or_default().replace('_', " ");
        // Less than a minute is shown in seconds; anything longer is rounded up to whole minutes.
        let left = match left.as_secs() {
            seconds @ 0..60 => Span::seconds(seconds),
            seconds => Span::seconds(seconds.div_ceil(60) * 60),
        };
        format!("{} {city}, in {left}", local.strftime(form))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.start.strftime("%H:%M"), self.end.strftime("%H:%M"));
        write!(f, "{start}-{end} {}", self.zone_name)
    }
}

/// Limits on when and how often a trial may run, and for how long it may keep production away.
#[derive(Clone, Debug)]
pub struct Limits {
    pub window: Window,
    /// Minimum time between two runs.
    pub cooldown: Duration,
    /// Maximum number of runs in any 24 hours.
    pub max_runs_per_day: usize,
    /// Maximum time that production may be away in one night.
    pub max_downtime: Duration,
    /// Maximum time that one run may keep production away: the test's timeout and the time to
    /// restore.
    pub reserve: Duration,
}
