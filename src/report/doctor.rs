//! The report of `doctor`: the checks area by area, each with its fix if it has one, and then the
//! totals.

use super::Report;
use crate::doctor::{Check, Verdict};
use crate::screen::layout::{flow, words};
use crate::screen::{BAD, FAINT, GOOD, STRONG, Screen, WARNING};
use serde::Serialize;
use std::fmt::Write;

/// Number of columns beside the ids that is worth filling. On a screen with fewer, all lines of a
/// message but the first, and its fix, begin in column 4 instead of beside the ids.
const LEAST: usize = 20;

/// The report of `doctor`: all checks, and the number of checks with each verdict.
#[derive(Serialize)]
pub struct DoctorReport {
    pub success: bool,
    pub passed: usize,
    pub warned: usize,
    pub failed: usize,
    pub skipped: usize,
    pub checks: Vec<Check>,
    /// Whether the text for people omits the totals and the checks that passed or were skipped.
    #[serde(skip)]
    quiet: bool,
}

impl DoctorReport {
    pub fn new(checks: Vec<Check>, quiet: bool) -> DoctorReport {
        let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
        let failed = count(Verdict::Fail);
        DoctorReport {
            success: failed == 0,
            passed: count(Verdict::Pass),
            warned: count(Verdict::Warn),
            failed,
            skipped: count(Verdict::Skip),
            checks,
            quiet,
        }
    }

    fn sum(&self) -> String {
        let Self { passed, warned, failed, skipped, .. } = self;
        let s = if *warned == 1 { "" } else { "s" };
        let total = self.checks.len();
        format!(
            "{total} checks: {passed} passed, {warned} warning{s}, {failed} failed, {skipped} skipped"
        )
    }
}

impl Report for DoctorReport {
    fn text(&self, screen: &Screen) -> String {
        let is_told =
            |check: &&Check| !self.quiet || matches!(check.verdict, Verdict::Warn | Verdict::Fail);
        let checks: Vec<&Check> = self.checks.iter().filter(is_told).collect();
        let names = checks.iter().map(|check| check.id.name().len()).max().unwrap_or(0);
        let mut text = String::new();
        let mut area = "";
        for check in checks {
            if check.id.title() != area {
                area = check.id.title();
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{}", screen.paint(STRONG, area));
            }
            let (signs, word, style) = match check.verdict {
                Verdict::Pass => (['✓', '+'], "ok", GOOD),
                Verdict::Warn => (['!', '!'], "warn", WARNING),
                Verdict::Fail => (['✗', 'x'], "fail", BAD),
                Verdict::Skip => (['–', '-'], "skip", FAINT),
            };
            let sign = signs[usize::from(!screen.has_unicode)];
            let verdict = screen.paint(style, format!("{sign} {word:4}"));
            let begin = 2 + 6 + 2 + names + 2;
            let below = if screen.limit() < begin + LEAST { 4 } else { begin };
            let subject = check.subject.as_ref().map(|s| format!("{s}: ")).unwrap_or_default();
            let message = format!("{subject}{}", check.message);
            let message = flow(words(&message), 1, [begin, below], screen);
            let _ =
                write!(text, "  {verdict}  {:names$}  {}", check.id.name(), message.trim_start());
            if let Some(fix) = &check.fix {
                let fix = format!("fix: {fix}");
                text.push_str(&flow(words(&fix), 1, [below, below + 5], screen));
            }
        }
        if !self.quiet {
            let style = if self.success { GOOD } else { BAD };
            let _ = writeln!(text, "\n{}", screen.paint(style, self.sum()));
        }
        text
    }
}
