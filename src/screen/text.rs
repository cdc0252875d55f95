//! Text as people are shown it: durations, counts, and what others have named, kept on one line.

use crate::config::Span;
use std::time::Duration;

/// Formats a duration that was measured, to the precision that people care about: "0.4s", "2m 5s",
/// "3h 10m".
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", span.as_secs_f64()),
        60..3600 => Span::seconds(seconds).to_string(),
        _ => Span::seconds(seconds / 60 * 60).to_string(),
    }
}

/// Formats a count, such as "1 job" or "2 jobs", for a noun whose plural takes an s.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Escapes what a terminal would obey or not show: line breaks, control characters, and invisible
/// characters such as those that make a line read in another order. Names come from the command
/// line, the configuration and other programs, and may hold any of these.
pub fn on_one_line(text: &str) -> String {
    let obeyed = |c: char| {
        let is_invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
        c.is_control() || is_invisible
    };
    let shown = |c: char| if obeyed(c) { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(shown).collect()
}
