//! The text of `status` for people: the card, a bar of its memory, the lock, the services and the
//! processes.

use super::status::ServiceReport;
use super::{Report, StatusReport};
use crate::config::Span;
use crate::model::{Mb, Source, State};
use crate::screen::bar::{AVAILABLE, DRIVER, Fill, OTHERS, PROMISED, Part, RESERVE, bar};
use crate::screen::layout::{HANGING, Text, flow, listed, words};
use crate::screen::table::{Column, Table};
use crate::screen::{BAD, FAINT, GOOD, STRONG, Screen, WARNING};
use anstyle::Style;

fn size(size: Option<Mb>) -> String {
    size.map_or_else(|| "?".to_owned(), |size| size.0.to_string())
}

/// Title of the column with each service's manager and the name that it has there.
const MANAGER: &str = "MANAGED BY";

impl Report for StatusReport {
    fn text(&self, screen: &Screen) -> String {
        let above = [self.card(screen), self.memory(screen), self.lock(screen)].concat();
        above + &self.services(screen) + &self.processes(screen)
    }
}

impl StatusReport {
    /// Returns as much of the text as fits into `lines` lines. The processes are left out first,
    /// then the card and the bar of its memory, and then everything but the services, which are
    /// returned even if they do not fit.
    pub fn fitted(&self, screen: &Screen, lines: usize) -> String {
        let (services, memory) = (self.services(screen), self.memory(screen));
        let facts = memory.lines().next().map(|line| format!("{line}\n")).unwrap_or_default();
        let lock = self.lock(screen);
        let forms = [
            self.text(screen),
            [&self.card(screen), &memory, &lock, &services].map(String::as_str).concat(),
            [&facts, &lock, &services].map(String::as_str).concat(),
        ];
        let fits = |text: &&String| text.lines().count() <= lines;
        forms.iter().find(fits).cloned().unwrap_or(services)
    }

    fn card(&self, screen: &Screen) -> String {
        let vram = &self.vram;
        let name = self.gpu.name.as_deref().unwrap_or("(name unknown)");
        let card = match self.gpu.index {
            Some(index) => format!("GPU {index} {name}"),
            None => "GPU (not read)".to_owned(),
        };
        let degrees = if screen.has_unicode { "°C" } else { "C" };
        let facts = [
            Some(card),
            vram.temperature_c.map(|celsius| format!("{celsius} {degrees}")),
            vram.utilization_percent.map(|percent| format!("{percent} % busy")),
            self.gpu.driver_version.as_ref().map(|version| format!("driver {version}")),
        ];
        let style = |index| if index == 0 { STRONG } else { Style::new() };
        let facts = facts.iter().flatten().enumerate();
        let facts = facts.map(|(index, fact)| Text::styled(style(index), fact));
        flow(listed(facts.collect()), 1, HANGING, screen)
    }

    fn memory(&self, screen: &Screen) -> String {
        let vram = &self.vram;
        let estimate = if vram.source == Source::Estimate { " (estimate)" } else { "" };
        let facts = [
            format!("VRAM {} of {} MB used", size(vram.used_mb), size(vram.total_mb)),
            format!("{} free", size(vram.free_mb)),
            format!("{} available", size(vram.available_mb)),
            format!("{} committed{estimate}", vram.committed_mb.0),
        ];
        let mut text = flow(listed(facts.iter().map(Text::new).collect()), 1, HANGING, screen);
        if let Some(parts) = self.parts() {
            text.push_str(&bar(&parts, screen));
            text.push_str(&flow(parts.iter().map(|part| part.legend(screen)), 2, HANGING, screen));
        }
        if let Some(error) = &vram.error {
            let warning = std::iter::once(Text::styled(WARNING, "warning:"));
            text.push_str(&flow(warning.chain(words(error)), 1, HANGING, screen));
        }
        text
    }

    /// Returns the parts of the card's memory in the order of the bar, or `None` if its total, used
    /// or free size is not known.
    fn parts(&self) -> Option<Vec<Part>> {
        let vram = &self.vram;
        let (total, used, free) = (vram.total_mb?, vram.used_mb?, vram.free_mb?);
        let mut parts: Vec<Part> = self
            .services
            .iter()
            .enumerate()
            .map(|(index, (name, service))| {
                let held = match vram.source {
                    Source::Nvml => service.used_mb.unwrap_or_default(),
                    Source::Estimate => service.estimated_mb,
                };
                Part { name: name.clone(), size: held, fill: Fill::of_service(index) }
            })
            .collect();
        let by_services = parts.iter().map(|part| part.size).sum();
        let is_told_apart = vram.source == Source::Estimate
            || self.services.values().all(|one| one.used_mb.is_some());
        let others = if is_told_apart { "others" } else { "unattributed" };
        let available = vram.available_mb.unwrap_or_default();
        let promised = vram.promised.min(available);
        let rest = [
            (others, used.saturating_sub(by_services), OTHERS),
            ("driver", total.saturating_sub(used + free), DRIVER),
            ("promised", promised, PROMISED),
            ("available", available.saturating_sub(promised), AVAILABLE),
            ("reserve", free.saturating_sub(available), RESERVE),
        ];
        parts.extend(rest.map(|(name, size, fill)| Part { name: name.to_owned(), size, fill }));
        parts.retain(|part| part.size > Mb(0));
        Some(parts)
    }

    fn lock(&self, screen: &Screen) -> String {
        let style = match (&self.lock.holder, &self.lock.error) {
            (Some(_), _) => STRONG,
            (None, Some(_)) => WARNING,
            (None, None) => Style::new(),
        };
        let text = self.lock.describe();
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let pieces = words("GPU lock").chain([Text::styled(style, first)]).chain(words(rest));
        flow(pieces, 1, HANGING, screen)
    }

    fn services(&self, screen: &Screen) -> String {
        if self.services.is_empty() {
            return String::new();
        }
        let figure = |title, rank| Column { title, is_figure: true, rank, at_least: None };
        let table = Table {
            columns: vec![
                Column { title: "SERVICE", is_figure: false, rank: 0, at_least: Some(24) },
                Column { title: "STATE", is_figure: false, rank: 0, at_least: None },
                figure("USED MB", 6),
                figure("DECLARED", 5),
                figure("PEAK", 7),
                figure("PRIO", 2),
                Column { title: "PHASES", is_figure: false, rank: 1, at_least: None },
                figure("JOBS", 5),
                figure("HEALTH", 3),
                figure("UPTIME", 4),
                Column { title: MANAGER, is_figure: false, rank: 1, at_least: None },
            ],
            rows: self.services.iter().map(|(name, service)| service.row(name, screen)).collect(),
        };
        let counts_jobs = self.services.values().any(|service| service.jobs.is_some());
        let table = if counts_jobs { table } else { table.without("JOBS") };
        // If gpuctl manages all services itself, the column would say nothing new.
        let table = match self.services.values().any(|service| service.place.is_some()) {
            true => table,
            false => table.without(MANAGER),
        };
        // A peak is worth showing only if it is more than what is held now.
        let has_held_more = |service: &ServiceReport| service.peak_mb > service.used_mb;
        let table = match self.services.values().any(has_held_more) {
            true => table,
            false => table.without("PEAK"),
        };
        let room = screen.limit().saturating_sub(table.width() + 2);
        let mut lines = table.lines(screen).into_iter();
        let mut text = format!("\n{}\n", lines.next().unwrap_or_default());
        for (line, service) in lines.zip(self.services.values()) {
            text.push_str(&line);
            text.push_str(&match &service.detail {
                None => "\n".to_owned(),
                Some(detail) if Text::new(detail).width() <= room => {
                    format!("  {}\n", Text::new(detail).on(screen))
                }
                Some(detail) => format!("\n{}", flow(words(detail), 1, [2, 2], screen)),
            });
        }
        text
    }

    fn processes(&self, screen: &Screen) -> String {
        let Some(processes) = self.vram.processes.as_ref().filter(|list| !list.is_empty()) else {
            return String::new();
        };
        let column = |title, is_figure, rank| Column { title, is_figure, rank, at_least: None };
        let rows = processes.iter().map(|process| {
            vec![
                Text::new(process.pid.to_string()),
                Text::new(size(process.memory_mb)),
                Text::new(process.service.as_deref().unwrap_or("-")),
                Text::new(without_folder(process.command.as_ref().unwrap_or(&process.name))),
            ]
        });
        let table = Table {
            columns: vec![
                column("PID", true, 0),
                column("USED MB", true, 2),
                column("SERVICE", false, 1),
                Column { at_least: Some(8), ..column("PROCESS", false, 0) },
            ],
            rows: rows.collect(),
        };
        format!("\n{}\n", table.lines(screen).join("\n"))
    }
}

impl ServiceReport {
    fn row(&self, name: &str, screen: &Screen) -> Vec<Text> {
        let phases: Vec<String> = self.phases.iter().map(u32::to_string).collect();
        let or_none = |text: Option<String>| Text::new(text.as_deref().unwrap_or("-"));
        vec![
            Text::new(name),
            state(self.state, screen),
            Text::new(size(self.used_mb)),
            Text::new(self.vram_mb.0.to_string()),
            or_none(self.peak_mb.map(|peak| peak.0.to_string())),
            Text::new(self.priority.to_string()),
            or_none((!phases.is_empty()).then(|| phases.join(","))),
            or_none(self.jobs.map(|jobs| jobs.to_string())),
            or_none(self.health_ms.map(latency)),
            or_none(self.uptime_s.map(age)),
            Text::new(match &self.place {
                Some(place) => format!("{} {place}", self.r#type),
                None => self.r#type.to_owned(),
            }),
        ]
    }
}

/// Returns a command line without the folder of its program, which says less than the arguments
/// that follow.
fn without_folder(command: &str) -> &str {
    let end = command.find(' ').unwrap_or(command.len());
    &command[command[..end].rfind('/').map_or(0, |slash| slash + 1)..]
}

/// Returns a state as a sign and a word. Only the sign is coloured, because not every palette makes
/// yellow or green words legible on a light background.
fn state(state: State, screen: &Screen) -> Text {
    let (style, unicode, ascii) = match state {
        State::Ready => (GOOD, "●", "*"),
        State::Busy => (GOOD, "▶", ">"),
        State::Starting => (WARNING, "◐", "+"),
        State::Stopping => (WARNING, "◑", "-"),
        State::Unresponsive => (WARNING, "◌", "~"),
        State::Asleep => (FAINT, "◒", "z"),
        State::Stopped => (FAINT, "○", "."),
        State::Error => (BAD, "✗", "x"),
        State::Unknown => (WARNING, "?", "?"),
    };
    let sign = if screen.has_unicode { unicode } else { ascii };
    // The word is padded to the width of the usual states, so that `--watch` does not move the
    // columns beside it.
    Text::styled(style, sign).then(format!(" {:8}", state.name()))
}

fn latency(milliseconds: f64) -> String {
    match milliseconds {
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1000.0),
    }
}

/// Formats an age in seconds: to the second below an hour, to the minute below a day, and to the
/// hour from then on.
fn age(seconds: u64) -> String {
    let precision = match seconds {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    Span::seconds(seconds / precision * precision).to_string()
}
