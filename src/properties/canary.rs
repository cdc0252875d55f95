//! Properties of the canary's files and candidates: a sum that nobody can have booked is no budget,
//! and what is out of bounds is no candidate.

use crate::canary::candidate::{self, Candidate};
use crate::canary::ledger::{Budget, Journal, starts};
use crate::canary::maintenance::pid_in;
use crate::canary::verdict::{Card, Status, judge};
use crate::config::{Canary, Config};
use crate::model::Mb;
use serde_json::{Map, Value};
use std::sync::LazyLock;

static CANARY: LazyLock<Canary> = LazyLock::new(|| {
    let text = "[services.vllm]\ntype = 'docker'\ncontainer = 'vllm'\nvram_mb = 18000\n\
        [canary]\nservice = 'vllm'\n";
    let config = Config::of_text(text).expect("a good configuration");
    config.canary().expect("it has a canary").clone()
});

pub fn candidate(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let bounds = &CANARY.bounds;
    let mut set = Map::new();
    for line in text.lines() {
        assert_eq!(candidate::set(&mut set, line, bounds).is_ok(), line.contains('='));
    }
    let document: Option<Map<String, Value>> = serde_json::from_str(&text).ok();
    for document in [Some(set), document].into_iter().flatten() {
        let candidate = Candidate::new(&document, bounds);
        let card = Card { total: Mb(24576), persistent: Mb(800) };
        let verdict = judge(&candidate, &CANARY, card);
        let Ok(candidate) = candidate else {
            assert_eq!((verdict.status, verdict.passed), (Status::Invalid, false));
            continue;
        };
        let share = candidate.number("vllm_memory_util");
        assert!(share.is_none_or(|share| (0.6..=0.9).contains(&share)), "{share:?}");
        let again = candidate.document();
        let again = Candidate::new(again.as_object().expect("an object"), bounds);
        assert_eq!(again.as_ref().map(Candidate::id), Ok(candidate::id(&document)));
        // Both numbers are put into a shell command.
        for number in ["vllm_memory_util", "max_model_len"] {
            let text = candidate.text(number).unwrap_or_default();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || ".+-".contains(c);
            assert!(text.chars().all(is_plain), "{text:?}");
        }
        let _ = candidate.command(&text, 9011, "m");
    }
}

pub fn ledger(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(mut budget) = Budget::parse(&text) {
        budget.book("a run", 12.3456);
        budget.book("a run", 0.0);
        let written = serde_json::to_string(&budget).expect("plain figures");
        assert_eq!(Budget::parse(&written), Some(budget), "{written}");
    }
    if let Ok(journal) = serde_json::from_str::<Journal>(&text) {
        let written = serde_json::to_string(&journal).expect("plain fields");
        let again: Journal = serde_json::from_str(&written).expect("what is written can be read");
        assert_eq!(serde_json::to_string(&again).expect("plain fields"), written);
    }
    assert!(pid_in(&text).is_none_or(|pid| pid > 0));
    // A start counts, even if the line before it was cut short.
    let start = r#"{"ts":"2026-01-10T04:00:00Z","event":"canary_start","service":"vllm"}"#;
    let before = starts(&text, "vllm").count();
    assert_eq!(starts(&format!("{text}\n{start}\n"), "vllm").count(), before + 1);
}
