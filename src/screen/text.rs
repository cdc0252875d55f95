//! Text as people are shown it: what others named on one line, and times.

use std::time::Duration;

/// A time as people tell it: "0.4 s", "2 min 5 s", "3 h 10 min".
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
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
