//! Lengths of time, as they are written in the configuration and on the command line.

use jiff::fmt::friendly::{Designator, SpanPrinter};
use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// A length of time: `90s`, `10m`, `1h30m`, or a plain number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Maximum length that `parse` accepts, 7 days: longer than anybody waits for a service, and
    /// short enough that clock arithmetic does not overflow.
    pub const MAX: Duration = Duration::from_secs(7 * 24 * 3600);

    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// Parses a length of time of at most `Span::MAX`.
    pub fn parse(text: &str) -> Option<Span> {
        Span::of_any_length(text).filter(|span| span.0 <= Span::MAX)
    }

    /// Parses a length of time that may exceed `Span::MAX`, as for a look into the past.
    pub fn of_any_length(text: &str) -> Option<Span> {
        Some(Span(match text.trim().parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Duration::try_from(text.trim().parse::<jiff::SignedDuration>().ok()?).ok()?,
        }))
    }
}

/// Writes a length of time for people, in a form that they may also type: "500ms", or "1m 30s" for
/// 90 seconds.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PRINTER: SpanPrinter = SpanPrinter::new().designator(Designator::Compact);
        f.pad(&PRINTER.unsigned_duration_to_string(&self.0))
    }
}

const SPAN_FORM: &str =
    "a duration such as \"90s\", \"10m\", \"1h30m\" or a number of seconds, 7 days at most";

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SPAN_FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                Span::parse(&seconds.to_string())
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(seconds), &self))
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                Span::parse(&seconds.to_string())
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))
            }
        }
        deserializer.deserialize_any(SpanVisitor)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer"], "description": SPAN_FORM })
    }
}
