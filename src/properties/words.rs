//! Properties of sizes, spans, windows, URLs and logs, as people and programs write them.

use crate::config::{Selector, Span, Window};
use crate::model::{Mb, nearest};
use crate::redact::mask;
use crate::world::logs;
use jiff::Timestamp;
use jiff::tz::TimeZoneDatabase;
use serde_json::json;
use std::sync::LazyLock;

pub fn words(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let text = text.as_ref();
    if let Some(size) = Mb::parse(text) {
        assert!(size <= Mb::MAX);
        assert_eq!(Mb::parse(&size.to_string()), Some(size));
        assert_eq!(serde_json::from_value::<Mb>(json!(text)).ok(), Some(size));
    }
    if let Some(span) = Span::parse(text) {
        assert!(span.0 <= Span::MAX);
        let shown = json!(span);
        assert_eq!(serde_json::from_value::<Span>(shown.clone()).ok(), Some(span), "{shown}");
    }
    assert_eq!(Selector::parse(&Selector::parse(text).to_string()), Selector::parse(text));
    urls(text);
    assert!(nearest(text, ["comfyui", "ollama"]).is_none_or(|word| !word.is_empty()));
    let tail = logs::last_lines(input);
    assert!(tail.len() <= 15);
    assert!(tail.concat().chars().all(|c| !c.is_control() || c == '\t'), "{tail:?}");
    window(text);
}

fn urls(text: &str) {
    let masked = mask(text);
    assert_eq!(mask(&masked), masked, "of {text:?}");
    for (at, scheme) in masked.match_indices("://") {
        let after = &masked[at + scheme.len()..];
        let ends = |c: char| c == '/' || c == '"' || c == '\'' || c.is_whitespace();
        let user = after.split(ends).next().and_then(|authority| authority.rsplit_once('@'));
        assert!(user.is_none_or(|(user, _)| user == "***"), "{masked:?} of {text:?}");
    }
}

fn window(text: &str) {
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let Ok(window) = Window::parse(text, "America/New_York", &ZONES) else { return };
    let shown = window.to_string();
    let again = Window::parse(&shown, "UTC", &ZONES).expect("what is shown is a window");
    assert_eq!(again.to_string(), shown);
    // Some of these moments lie in the hours that New York and Berlin skip or have twice.
    let hours = (0..48).map(|hour| hour * 3600);
    let days = [1_772_928_000, 1_774_742_400, 1_792_886_400, 1_793_491_200];
    for moment in days.into_iter().flat_map(|day| hours.clone().map(move |hour| day + hour)) {
        let now = Timestamp::from_second(moment).expect("a time in 2026");
        assert!(window.opens_next(now) > now, "{shown} at {now}");
        assert_eq!(window.contains(now), again.contains(now), "{shown} at {now}");
        assert_eq!(window.night(now), again.night(now), "{shown} at {now}");
    }
}
