//! The reports as text for people.

use super::screen::Screen;
use super::{
    ActReport, CanFitReport, CheckReport, PathReport, Report, StatusReport, Subject, span,
};
use crate::model::{Mb, Source};
use std::fmt::Write;
use std::time::Duration;

/// Text is collected in a `String`, to which writing cannot fail.
macro_rules! line {
    ($text:expr, $($form:tt)*) => { let _ = writeln!($text, $($form)*); };
}

fn size(size: Option<Mb>) -> String {
    size.map_or_else(|| "?".to_owned(), |size| size.0.to_string())
}

impl Report for StatusReport {
    fn text(&self, _: &Screen) -> String {
        let mut text = String::new();
        let vram = &self.vram;
        let mut card = match (&self.gpu.index, &self.gpu.name) {
            (Some(index), name) => {
                format!("GPU {index} {}", name.as_deref().unwrap_or("(name unknown)"))
            }
            (None, _) => "GPU (not read)".to_owned(),
        };
        if let Some(celsius) = vram.temperature_c {
            let _ = write!(card, ", {celsius} °C");
        }
        if let Some(percent) = vram.utilization_percent {
            let _ = write!(card, ", {percent} % busy");
        }
        line!(text, "{card}");
        let estimate = if vram.source == Source::Estimate { " (estimate)" } else { "" };
        line!(
            text,
            "VRAM {} of {} MB used, {} free, {} available beside a reserve of {}, {} committed{estimate}",
            size(vram.used_mb),
            size(vram.total_mb),
            size(vram.free_mb),
            size(vram.available_mb),
            vram.reserve_mb.0,
            vram.committed_mb.0,
        );
        if let Some(error) = &vram.error {
            line!(text, "warning: {error}");
        }
        line!(text, "GPU lock {}", self.lock.describe());
        if !self.services.is_empty() {
            line!(text, "");
            let width = self.services.keys().map(String::len).max().unwrap_or(0).max(7);
            line!(
                text,
                "{:width$}  {:8}  {:>8}  {:>8}  {:>4}  PHASES",
                "SERVICE",
                "STATE",
                "USED MB",
                "DECLARED",
                "PRIO"
            );
            for (name, service) in &self.services {
                let phases: Vec<String> = service.phases.iter().map(u32::to_string).collect();
                let phases = if phases.is_empty() { "-".to_owned() } else { phases.join(",") };
                let state = service.state.to_string();
                let used = size(service.used_mb);
                line!(
                    text,
                    "{name:width$}  {state:8}  {used:>8}  {:>8}  {:>4}  {phases}",
                    service.vram_mb.0,
                    service.priority
                );
                if let Some(detail) = &service.detail {
                    line!(text, "{:width$}    {detail}", "");
                }
            }
        }
        if let Some(processes) = vram.processes.as_ref().filter(|processes| !processes.is_empty()) {
            line!(text, "");
            line!(text, "{:>8}  {:>8}  {:12}  PROCESS", "PID", "USED MB", "SERVICE");
            for process in processes {
                let service = process.service.as_deref().unwrap_or("-");
                let used = size(process.memory_mb);
                line!(text, "{:>8}  {used:>8}  {service:12}  {}", process.pid, process.name);
            }
        }
        text
    }
}

impl Report for CanFitReport {
    fn text(&self, _: &Screen) -> String {
        let estimate = if self.source == Source::Estimate { " (estimate)" } else { "" };
        format!(
            "{}: {} needed, {} available ({} free, margin {}){estimate}\n",
            if self.fits { "fits" } else { "does not fit" },
            self.required_mb,
            self.available_mb,
            self.free_mb,
            self.margin_mb
        )
    }
}

impl Report for ActReport {
    fn text(&self, _: &Screen) -> String {
        let mut text = String::new();
        if self.dry_run {
            for step in &self.steps {
                let service = step.service.as_deref().unwrap_or("memory");
                let memory =
                    step.memory_mb.map(|memory| format!(" ({memory})")).unwrap_or_default();
                line!(text, "would {} {service}{memory}", step.action);
                if let Some(note) = &step.note {
                    line!(text, "  {note}");
                }
            }
            if self.steps.is_empty() {
                line!(text, "nothing to do");
            }
            return text;
        }
        format!("{}\n", self.summary())
    }
}

impl ActReport {
    /// One line: what was stopped, freed and started, and how long it took.
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
    pub fn title(&self) -> String {
        match self {
            Subject::Phase { phase, name: Some(name) } => format!("phase {phase} ({name})"),
            Subject::Phase { phase, name: None } => format!("phase {phase}"),
            Subject::Service { service } => service.clone(),
            Subject::Services { services } => services.join(", "),
            Subject::All {} => "all services".to_owned(),
        }
    }
}

impl Report for CheckReport {
    fn text(&self, _: &Screen) -> String {
        format!(
            "{}: good: {} services, {} phases\n",
            self.path,
            self.services.len(),
            self.phases.len()
        )
    }
}

impl Report for PathReport {
    fn text(&self, _: &Screen) -> String {
        self.path.as_ref().map(|path| format!("{path}\n")).unwrap_or_default()
    }
}
