//! When a trial of the canary may cost production time: the maintenance window in its time zone, and
//! how often and for how long. Pure: it is given the time.

use super::Span;
use jiff::civil::{Date, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};
use std::fmt;
use std::time::Duration;

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

    /// Returns when another night than that of `now` opens.
    pub fn next_night(&self, now: Timestamp) -> Timestamp {
        let next = self.opens_next(now);
        if self.night(next) == self.night(now) { self.opens_next(next) } else { next }
    }

    /// Returns when it opens next, strictly after `now`.
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

    /// A moment to come, as people near the window read it: "03:00 New York, in 11h", with its date
    /// where it is more than a day away.
    pub fn tell(&self, moment: Timestamp, now: Timestamp) -> String {
        let left = Duration::try_from(moment.duration_since(now)).unwrap_or_default();
        let local = moment.to_zoned(self.zone.clone());
        let form = if left > Duration::from_secs(24 * 3600) { "%Y-%m-%d %H:%M" } else { "%H:%M" };
        let city = self.zone_name.rsplit('/').next().unwrap_or_default().replace('_', " ");
        // Minutes are told as those that are begun, and seconds where there are no more.
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

/// They limit how often a trial may be, and for how long it may keep production away.
#[derive(Clone, Debug)]
pub struct Limits {
    pub window: Window,
    /// Two runs lie at least this far apart.
    pub cooldown: Duration,
    pub max_runs_per_day: usize,
    /// Production may be away for this long in a night.
    pub max_downtime: Duration,
    /// One run may keep production away for this long.
    pub reserve: Duration,
}
