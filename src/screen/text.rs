//! Text as people are shown it: what others named on one line, and times.

use crate::config::Span;
use std::time::Duration;

/// A time that was measured, to the precision that people care for: "0.4s", "2m 5s", "3h 10m".
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", span.as_secs_f64()),
        60..3600 => Span::seconds(seconds).to_string(),
        _ => Span::seconds(seconds / 60 * 60).to_string(),
    }
}

/// "1 job", "2 jobs": of a noun whose plural has an s.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Names come from the command line, the configuration and other programs, and may hold line
/// breaks and escape sequences of a terminal, and what has a line read in another order.
pub fn on_one_line(text: &str) -> String {
    let obeyed = |c: char| {
        let is_invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
        c.is_control() || is_invisible
    };
    let shown = |c: char| if obeyed(c) { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(shown).collect()
}
