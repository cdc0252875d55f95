//! Property of the event log: whole lines are read, whatever lies between them.

use crate::history::{RunState, runs};
use crate::step::Action;

const RUN: &str = "c0ffee123456";

/// Checks that the lines of one call are read, whatever input lies between any two of them.
pub fn history(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for run in runs(&text, |_, _| false) {
        assert!(run.state != RunState::Running, "{run:?}");
        assert_eq!(run.state == RunState::Ended, run.exit_code.is_some(), "{run:?}");
    }
    if text.contains(RUN) || text.contains("\\u") {
        return;
    }
    let line = |event: &str| format!(r#"{{"time":"2026-01-10T04:00:00Z","run":"{RUN}",{event}}}"#);
    let lines = [
        line(r#""event":"begin","command":"start","subject":"vidi","by":null,"boot":"b""#),
        line(
            r#""event":"step","action":"stop","service":"ollama","memory_mb":4000,"elapsed_ms":7"#,
        ),
        line(r#""event":"step","action":"start","service":"vidi","elapsed_ms":8"#),
        line(r#""event":"end","exit_code":5,"error":"it went away","elapsed_ms":15"#),
    ];
    let found = runs(&lines.join(&format!("\n{text}\n")), |_, _| true);
    let run = found.iter().find(|run| run.run == RUN).expect("its lines are whole");
    assert_eq!((run.state, run.exit_code), (RunState::Ended, Some(5)));
    assert_eq!((run.command.as_str(), run.subject.as_str()), ("start", "vidi"));
    let actions: Vec<Action> = run.steps.iter().map(|step| step.action).collect();
    assert_eq!(actions, [Action::Stop, Action::Start]);
}
