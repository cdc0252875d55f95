//! `doctor`: all checks, area by area, what to do below each that wants it, and the sum.

use super::screen::{BAD, FAINT, GOOD, STRONG, Screen, WARNING};
use super::{Report, on_one_line};
use crate::doctor::{Check, Verdict};
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
pub struct DoctorReport {
    pub success: bool,
    pub passed: usize,
    pub warned: usize,
    pub failed: usize,
    pub skipped: usize,
    pub checks: Vec<Check>,
    /// For people: only what is not well.
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
            let (sign, word, style) = match check.verdict {
                Verdict::Pass => ('✓', "ok", GOOD),
                Verdict::Warn => ('!', "warn", WARNING),
                Verdict::Fail => ('✗', "fail", BAD),
                Verdict::Skip => ('–', "skip", FAINT),
            };
            let verdict = screen.paint(style, format!("{sign} {word:4}"));
            let indent = 2 + 6 + 2 + names + 2;
            let subject = check.subject.as_ref().map(|s| format!("{s}: ")).unwrap_or_default();
            let message = on_one_line(&format!("{subject}{}", check.message));
            let message = wrapped(&message, screen.width, indent);
            let _ = writeln!(text, "  {verdict}  {:names$}  {message}", check.id.name());
            if let Some(fix) = &check.fix {
                let fix = wrapped(&on_one_line(&format!("fix: {fix}")), screen.width, indent + 5);
                let _ = writeln!(text, "{:indent$}{fix}", "");
            }
        }
        if !self.quiet {
            let style = if self.success { GOOD } else { BAD };
            let _ = writeln!(text, "\n{}", screen.paint(style, self.sum()));
        }
        text
    }
}

/// Breaks a line that begins at column `indent` between words, so that it ends before `width`; on a
/// screen too narrow for that, not at all.
fn wrapped(line: &str, width: usize, indent: usize) -> String {
    let room = width.saturating_sub(indent);
    if room < 20 {
        return line.to_owned();
    }
    let mut text = String::new();
    let mut column = 0;
    for word in line.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > room {
            let _ = write!(text, "\n{:indent$}", "");
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn a_long_line_is_broken_between_words_and_a_long_word_is_kept() {
        let line = "one two three four five six seven eight";
        assert_eq!(wrapped(line, 30, 4), "one two three four five\n    six seven eight");
        assert_eq!(wrapped(line, 20, 4), line, "too narrow to break it");
        assert_eq!(
            wrapped("a http://127.0.0.1:8188/system_stats b", 30, 4),
            "a\n    http://127.0.0.1:8188/system_stats\n    b"
        );
    }
}
