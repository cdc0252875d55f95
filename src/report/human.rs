//! Text for people: what the reports in `mod.rs` and `act.rs` print on a screen.

use super::{
    ActReport, AdoptReport, CanFitReport, CheckReport, LogReport, PathReport, Report, Subject,
};
use crate::model::{Mb, Source};
use crate::screen::Screen;
use crate::screen::layout::prose;
use crate::screen::text::{counted, span};
use std::fmt::Write;
use std::time::Duration;

/// Appends a formatted line to a `String`, to which writing cannot fail.
macro_rules! line {
    ($text:expr, $($form:tt)*) => { let _ = writeln!($text, $($form)*); };
}

impl Report for CanFitReport {
    fn text(&self, screen: &Screen) -> String {
        let estimate = if self.source == Source::Estimate { " (estimate)" } else { "" };
        let promised =
            self.promised_mb.map(|size| format!(", {size} promised to running services"));
        let text = format!(
            "{}: {} needed, {} available ({} free, margin {}{}){estimate}",
            if self.fits { "fits" } else { "does not fit" },
            self.required_mb,
            self.available_mb,
            self.free_mb,
            self.margin_mb,
            promised.unwrap_or_default()
        );
        prose(&text, screen)
    }
}

impl Report for ActReport {
    fn text(&self, screen: &Screen) -> String {
        let mut text = String::new();
        if self.dry_run {
            for step in &self.steps {
                let service = step.service.as_deref().unwrap_or("memory");
                let memory =
                    step.memory_mb.map(|memory| format!(" ({memory})")).unwrap_or_default();
                line!(text, "would {} {service}{memory}", step.action.name());
                if let Some(note) = &step.note {
                    line!(text, "  {note}");
                }
            }
            if self.steps.is_empty() {
                line!(text, "nothing to do");
            }
            return prose(&text, screen);
        }
        prose(&self.summary(), screen)
    }
}

impl ActReport {
    /// Returns one line that says what was stopped, unloaded, freed, started and kept, and how long
    /// that took.
    pub fn summary(&self) -> String {
        let named = |verb: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")))
        };
        let freed = self.freed_mb.filter(|freed| *freed > Mb(0));
        let parts: Vec<String> = [
            named("stopped", &self.stopped),
            named("unloaded", &self.unloaded),
            freed.map(|freed| format!("freed {freed}")),
            named("started", &self.started),
            named("kept", &self.kept),
        ]
        .into_iter()
        .flatten()
        .collect();
        let what = if parts.is_empty() { "nothing to do".to_owned() } else { parts.join("; ") };
        let took = span(Duration::from_millis(self.elapsed_ms));
        format!("{}: {what} ({took})", self.subject.title())
    }
}

impl Subject {
    /// Returns the subject as it follows a command's name, such as "4 (video)". Empty for all
    /// services and for idle services.
    pub fn name(&self) -> String {
        match self {
            Subject::Phase { phase, name: Some(name) } => format!("{phase} ({name})"),
            Subject::Phase { phase, name: None } => phase.to_string(),
            Subject::Service { service } => service.clone(),
            Subject::Services { services } => services.join(", "),
            Subject::Room { vram_mb } => vram_mb.to_string(),
            Subject::All {} | Subject::Idle {} => String::new(),
        }
    }

    /// Returns the subject as it opens a summary, such as "phase 4 (video)" or "all services".
    pub fn title(&self) -> String {
        match self {
            Subject::Phase { .. } => format!("phase {}", self.name()),
            Subject::All {} => "all services".to_owned(),
            Subject::Idle {} => "idle services".to_owned(),
            Subject::Room { .. } => format!("room of {}", self.name()),
            Subject::Service { .. } | Subject::Services { .. } => self.name(),
        }
    }
}

impl Report for AdoptReport {
    fn text(&self, screen: &Screen) -> String {
        let pids: Vec<String> = self.adopted.iter().map(ToString::to_string).collect();
        prose(&format!("{}: adopted {}", self.service, pids.join(", ")), screen)
    }
}

impl Report for LogReport {
    fn text(&self, _: &Screen) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Report for CheckReport {
    fn text(&self, screen: &Screen) -> String {
        let services = counted(self.services.len() as u64, "service");
        let phases = counted(self.phases.len() as u64, "phase");
        let mut text = format!("{}: good: {services}, {phases}\n", self.path);
        for warning in &self.warnings {
            line!(text, "warning: {warning}");
        }
        prose(&text, screen)
    }
}

impl Report for PathReport {
    fn text(&self, _: &Screen) -> String {
        self.path.as_ref().map(|path| format!("{path}\n")).unwrap_or_default()
    }
}
