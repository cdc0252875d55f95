//! The report of `history`: earlier calls as a timeline.

use super::Report;
use crate::history::{Run, RunState};
use crate::screen::layout::{Text, flow, listed, words};
use crate::screen::text::{on_one_line, span};
use crate::screen::{BAD, FAINT, GOOD, STRONG, Screen, WARNING};
use crate::step::{Action, Step};
use jiff::tz::TimeZone;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Column in which a call's steps begin, which is that of its command.
const INDENT: usize = 10;

/// The report of `history`: the calls that were asked for.
#[derive(Serialize)]
pub struct HistoryReport {
    /// The calls, oldest first.
    pub runs: Vec<Run>,
    /// Number of calls in the event log that were not asked for.
    #[serde(skip)]
    pub left_out: usize,
}

impl Report for HistoryReport {
    fn text(&self, screen: &Screen) -> String {
        let zone = TimeZone::system();
        let mut text = String::new();
        let mut day = None;
        for run in &self.runs {
            let began = run.began.to_zoned(zone.clone());
            if day != Some(began.date()) {
                let gap = if day.is_some() { "\n" } else { "" };
                // Text is collected in a `String`, to which writing cannot fail.
                let _ = writeln!(text, "{gap}{}", screen.paint(STRONG, began.date()));
                day = Some(began.date());
            }
            let time = began.strftime("%H:%M:%S");
            let what = format!("{} {}", run.command, run.subject);
            let (how, told) = ending(run);
            let head = [Text::new(format!("{time} ")), Text::new(format!("{} ", what.trim_end()))];
            let pieces = head.into_iter().chain([how]).chain(words(&told));
            text.push_str(&flow(pieces, 1, [0, INDENT], screen));
            let steps: Vec<Text> = run.steps.iter().map(|s| Text::styled(FAINT, step(s))).collect();
            if !steps.is_empty() {
                text.push_str(&flow(listed(steps), 1, [INDENT, INDENT], screen));
            }
        }
        if self.runs.is_empty() {
            text.push_str(match self.left_out {
                0 => "nothing yet\n",
                _ => "no such calls; `gpuctl history` shows the latest ones\n",
            });
        }
        text
    }
}

/// Returns how a call ended, and the duration and the error to print after that.
fn ending(run: &Run) -> (Text, String) {
    let took = run.elapsed_ms.map(|ms| span(Duration::from_millis(ms))).unwrap_or_default();
    match (run.state, run.exit_code, &run.error) {
        (RunState::Running, ..) => (Text::styled(WARNING, "in progress"), String::new()),
        (RunState::Lost, ..) => {
            (Text::styled(BAD, "never finished: gpuctl was killed"), String::new())
        }
        (RunState::Ended, Some(0), _) => (Text::styled(GOOD, "done in"), took),
        (RunState::Ended, code, error) => {
            let code = format!("exit {} after", code.unwrap_or_default());
            let why = error.as_deref().map(|why| format!(": {}", on_one_line(why)));
            (Text::styled(BAD, code), format!("{took}{}", why.unwrap_or_default()))
        }
    }
}

/// Describes a step that was done, such as "stopped vidi 1.2s (not gone within 30s, killed)".
fn step(step: &Step) -> String {
    let past = match step.action {
        Action::Wait => "waited for the lock",
        Action::Reclaim => "memory back",
        Action::Run => "ran the command",
        action => action.did(),
    };
    let service = step.service.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let memory = step.memory_mb.map(|memory| format!(" ({memory})")).unwrap_or_default();
    let took = step.elapsed_ms.map(|ms| span(Duration::from_millis(ms))).unwrap_or_default();
    let peaks = peaks(step).map(|peaks| format!(" ({peaks})")).unwrap_or_default();
    let note = step.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    format!("{past}{service}{memory} {took}{peaks}{note}")
}

/// Describes the most memory that the command and the services held during a step, such as "it held
/// 6000 MB at most; comfyui 19800 MB". `None` if no figure is known.
fn peaks(step: &Step) -> Option<String> {
    let own = step.peak_mb.map(|peak| format!("it held {peak} at most"));
    let services = step.service_peaks_mb.iter().map(|(name, peak)| match &own {
        Some(_) => format!("{name} {peak}"),
        None => format!("{name} held {peak} at most"),
    });
    let told: Vec<String> = own.iter().cloned().chain(services).collect();
    (!told.is_empty()).then(|| told.join("; "))
}
