//! Progress, which is shown on stderr while work goes on. On a terminal each step is drawn with its
//! clock, its time limit and the memory that has come back; elsewhere it is a plain line. Each step
//! that ends well is also written to the event log.

use crate::config::Span;
use crate::history::Recorder;
use crate::model::Mb;
use crate::screen::layout::{HANGING, Text, flow, prose};
use crate::screen::text::{on_one_line, span};
use crate::screen::{BAD, FAINT, GOOD, Screen};
use crate::step::{Action, Step};
use anstyle::Style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::collections::HashSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which running steps are redrawn on a terminal.
const TICK: Duration = Duration::from_millis(100);

/// Width of a gauge in columns. No gauge is drawn if the screen is too narrow for it.
const GAUGE: usize = 24;
/// Number of columns that a running step's line needs beside its gauge.
const BESIDE_GAUGE: usize = 52;
/// Width in columns that a step's words are padded to.
const WORDS: usize = 28;

/// How progress is shown: not at all, as plain lines, or drawn live on a terminal.
#[derive(Clone)]
enum Face {
    Silent,
    Lines(Screen),
    Live(MultiProgress, Screen),
}

/// Shows what a command does on stderr, and writes its steps to the event log.
#[derive(Clone)]
pub struct Progress {
    face: Face,
    recorder: Option<Arc<Recorder>>,
    /// When something with a time limit began, and the limit. Both are printed before each plain
    /// line; on a terminal, steps have clocks instead.
    clock: Option<(Instant, Duration)>,
    /// Warnings that were printed already and are not printed again.
    warned: Arc<Mutex<HashSet<String>>>,
}

impl Progress {
    /// Creates the progress of a command. It shows nothing if `quiet`, and plain lines if nothing
    /// can be drawn on `screen` or if log messages are written there too (`logs`).
    pub fn new(quiet: bool, screen: Screen, logs: bool) -> Progress {
        let face = match (quiet, screen.has_cursor && !logs) {
            (true, _) => Face::Silent,
            (false, true) => {
                Face::Live(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), screen)
            }
            (false, false) => Face::Lines(screen),
        };
        Progress { face, ..Progress::silent() }
    }

    /// Creates progress that shows nothing and writes to no event log.
    pub fn silent() -> Progress {
        Progress { face: Face::Silent, recorder: None, clock: None, warned: Arc::default() }
    }

    /// Returns progress that also writes each step that ends well to the event log.
    pub fn recorded(&self, recorder: &Arc<Recorder>) -> Progress {
        Progress { recorder: Some(recorder.clone()), ..self.clone() }
    }

    /// Returns progress that prints, before each plain line, how much of `limit` is over, counted
    /// from now.
    pub fn timed(&self, limit: Duration) -> Progress {
        Progress { clock: Some((Instant::now(), limit)), ..self.clone() }
    }

    /// Prints a remark on a line of its own.
    pub fn line(&self, text: &str) {
        self.print(&self.clocked(&on_one_line(text)));
    }

    /// Prints a warning, once however often it is given.
    pub fn warning(&self, text: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(text.to_owned()) {
            self.print(&format!("warning: {}", on_one_line(text)));
        }
    }

    /// Begins a step and shows it. `what` is the service or thing that it acts on, and `limit` is
    /// shown as the time it may take.
    pub fn begin(&self, action: Action, what: &str, limit: Duration) -> Underway<'_> {
        self.begin_with(action, what, "", limit)
    }

    /// Begins a step and shows it with `more`, a detail that may change while the step goes on.
    pub fn begin_with(
        &self,
        action: Action,
        what: &str,
        more: &str,
        limit: Duration,
    ) -> Underway<'_> {
        let mut step = Underway {
            progress: self,
            action,
            what: what.to_owned(),
            more: more.to_owned(),
            limit,
            begun: Instant::now(),
            memory: None,
            bar: None,
            is_over: false,
        };
        step.show();
        step
    }

    /// Writes a step to the event log, if there is one.
    pub fn record(&self, done: &Step) {
        if let Some(recorder) = &self.recorder {
            recorder.step(done);
        }
    }

    /// Returns a line with the clock of `timed` before it, unless steps are drawn with clocks of
    /// their own.
    fn clocked(&self, line: &str) -> String {
        match (&self.face, self.clock) {
            (Face::Lines(_), Some((since, limit))) => {
                format!("[{} of {}] {line}", span(since.elapsed()), Span(limit))
            }
            _ => line.to_owned(),
        }
    }

    /// Prints a line. Errors are ignored, because a closed stderr is no reason to stop working.
    fn print(&self, line: &str) {
        match &self.face {
            Face::Silent => {}
            Face::Lines(screen) => write(&prose(line, &current(*screen))),
            // The line is printed above the steps that are being drawn.
            Face::Live(bars, screen) => bars.suspend(|| write(&prose(line, &current(*screen)))),
        }
    }
}

/// Returns the screen as it is now, because the terminal may have been resized since the call
/// began.
fn current(screen: Screen) -> Screen {
    screen.measured_again(rustix::stdio::stderr())
}

#[expect(clippy::disallowed_methods, reason = "the one place that prints progress")]
fn write(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A step under way. If this is dropped before `done` is called, the step has failed.
pub struct Underway<'a> {
    progress: &'a Progress,
    action: Action,
    what: String,
    /// Detail that changes while the step goes on and does not matter afterwards.
    more: String,
    limit: Duration,
    begun: Instant,
    /// Memory that has come back so far, or `None` if that has not been reported.
    memory: Option<Mb>,
    bar: Option<ProgressBar>,
    is_over: bool,
}

impl Underway<'_> {
    fn words(&self) -> String {
        let more = if self.more.is_empty() { "" } else { ", " };
        format!("{} {}{more}{}", self.action.doing(), on_one_line(&self.what), self.more)
    }

    fn show(&mut self) {
        match &self.progress.face {
            Face::Silent => {}
            Face::Lines(_) => self.progress.print(&self.progress.clocked(&self.words())),
            Face::Live(bars, screen) => {
                let bar = bars.add(ProgressBar::no_length().with_style(style(*screen, self.limit)));
                bar.set_message(drawn(&self.words(), screen));
                bar.enable_steady_tick(TICK);
                self.bar = Some(bar);
            }
        }
    }

    /// Shows that the step now acts on or waits for `what`.
    pub fn now_for(&mut self, what: &str) {
        self.what = what.to_owned();
        self.show_again();
    }

    /// Shows `more` in place of the detail that was shown before.
    pub fn tell(&mut self, more: &str) {
        self.more = more.to_owned();
        self.show_again();
    }

    fn show_again(&self) {
        match (&self.bar, &self.progress.face) {
            (Some(bar), Face::Live(_, screen)) => bar.set_message(drawn(&self.words(), screen)),
            _ => self.progress.print(&self.progress.clocked(&self.words())),
        }
    }

    /// Shows how much memory has come back, and how much is expected.
    pub fn memory(&mut self, back: Mb, expected: Mb) {
        self.memory = Some(back);
        if let Some(bar) = &self.bar {
            bar.set_length(expected.0);
            bar.set_position(back.0);
        }
    }

    /// Ends a step that went well: shows that, writes the step to the event log, and returns it.
    /// `note` says what was remarkable about it.
    pub fn done(mut self, note: Option<String>) -> Step {
        let words = format!("{} {}", self.action.did(), on_one_line(&self.what));
        let memory = self.memory.map(|memory| format!(", {memory}"));
        let remark = note.as_ref().map(|note| format!("; {}", on_one_line(note)));
        self.leave(
            GOOD,
            ["✓", "+"],
            &words,
            &[memory, remark].map(Option::unwrap_or_default).concat(),
        );
        if let (Face::Lines(_), Some(note)) = (&self.progress.face, &note) {
            self.progress.line(&format!("{}: {note}", self.what));
        }
        let is_about_service = !matches!(self.action, Action::Wait | Action::Reclaim);
        let service = is_about_service.then_some(self.what.as_str());
        let done = Step {
            memory_mb: self.memory,
            note,
            ..Step::new(self.action, service, Some(self.begun.elapsed()))
        };
        self.progress.record(&done);
        done
    }

    /// Replaces the drawn step with the line that remains of it on a terminal. The second of
    /// `signs` is for a terminal without Unicode.
    fn leave(&mut self, style: Style, signs: [&str; 2], words: &str, rest: &str) {
        self.is_over = true;
        let Some(bar) = &self.bar else { return };
        bar.finish_and_clear();
        if let Face::Live(bars, screen) = &self.progress.face {
            let sign = Text::styled(style, signs[usize::from(!screen.has_unicode)]);
            let took = format!("{:>8}{rest}", span(self.begun.elapsed()));
            let line = sign.then(format!(" {words:WORDS$} ")).then_styled(FAINT, took);
            bars.suspend(|| write(&flow([line], 1, HANGING, &current(*screen))));
        }
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.leave(BAD, ["✗", "x"], &self.words(), "");
        }
    }
}

/// The step of waiting for the lock, which begins only when somebody else is in the way.
pub struct Waiting<'a> {
    progress: &'a Progress,
    patience: Duration,
    step: Option<Underway<'a>>,
}

impl<'a> Waiting<'a> {
    pub fn new(progress: &'a Progress, patience: Duration) -> Self {
        Waiting { progress, patience, step: None }
    }

    /// Shows who is in the way, such as "held by comfyui (nora:1234, 20 s left)". Callers call this
    /// at first and whenever that changes.
    pub fn tell(&mut self, busy: &str) {
        let what = format!("the GPU lock, {busy}");
        match &mut self.step {
            Some(step) => step.now_for(&what),
            None => self.step = Some(self.progress.begin(Action::Wait, &what, self.patience)),
        }
    }

    /// Ends the step, if it ever began.
    pub fn done(self) {
        self.step.map(|step| step.done(None));
    }
}

/// Reports whether the screen has room for a gauge beside the words and the clock of a step.
fn has_gauge(screen: &Screen) -> bool {
    screen.width >= BESIDE_GAUGE + GAUGE
}

/// Returns a running step's words, wrapped to the room beside what is drawn before and after them.
fn drawn(words: &str, screen: &Screen) -> String {
    let gauge = if has_gauge(screen) { GAUGE } else { 0 };
    let width = screen.width.saturating_sub(BESIDE_GAUGE - WORDS + gauge);
    let text = flow([Text::new(words)], 1, [0, 2], &Screen { width, ..*screen });
    format!("{:WORDS$}", text.trim_end())
}

/// Returns the style of a running step's line: its words, a gauge of its time or of the memory, and
/// the clock and its limit.
fn style(screen: Screen, limit: Duration) -> ProgressStyle {
    let gauge = move |state: &ProgressState, line: &mut dyn std::fmt::Write| {
        let share = match state.len() {
            Some(expected) => state.pos() as f64 / expected.max(1) as f64,
            None => state.elapsed().as_secs_f64() / limit.as_secs_f64().max(0.001),
        };
        let filled = (share.clamp(0.0, 1.0) * GAUGE as f64).round() as usize;
        let [full, empty] = if screen.has_unicode { ["━", "─"] } else { ["=", "-"] };
        let rest = screen.paint(FAINT, empty.repeat(GAUGE - filled));
        let _ = write!(line, "{}{rest}", screen.paint(GOOD, full.repeat(filled)));
    };
    let clock = move |state: &ProgressState, line: &mut dyn std::fmt::Write| {
        let time = format!("{:>8} of {}", span(state.elapsed()), Span(limit));
        let memory = state.len().map(|all| format!(", {} of {}", Mb(state.pos()), Mb(all)));
        let _ = line.write_str(&screen.paint(FAINT, time + &memory.unwrap_or_default()));
    };
    let template = match has_gauge(&screen) {
        true => "{spinner} {msg} {gauge} {clock}",
        false => "{spinner} {msg} {clock}",
    };
    let style = ProgressStyle::with_template(template).expect("a template of known keys");
    let style = style.with_key("gauge", gauge).with_key("clock", clock);
    if screen.has_unicode { style } else { style.tick_chars("|/-\\ ") }
}
