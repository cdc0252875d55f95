//! The table: what was measured, beside what, and whether the target is met. It has one form for
//! the terminal and for the page.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::thread;

/// A table of the page, with its heading and a note on what was measured.
pub struct Section {
    pub title: &'static str,
    pub note: &'static str,
    pub rows: Vec<Row>,
}

/// A row of the table: a figure of gpuctl's, or why it was not measured.
pub struct Row {
    cells: [String; 6],
    /// Whether the target is met; `None` if there is no target.
    met: Option<bool>,
}

/// The target that a figure of gpuctl's has to meet.
#[derive(Clone, Copy)]
pub enum Target {
    None,
    Below(f64),
    /// The figure must be at most this many times the other.
    Times(f64),
    /// The figure must be at most the first number times the other, plus the second.
    TimesAnd(f64, f64),
    /// The figure must be at least this many times faster than the other.
    Faster(f64),
    /// The figure must be at most 2 % or 100 ms above the other, whichever is more.
    Overhead,
}

/// Unit of both figures in a row: "ms", "MB", "a second", …
pub type Unit = &'static str;

impl Row {
    /// Makes a row with a figure of gpuctl's and nothing to compare it with.
    pub fn alone(what: &str, figure: f64, unit: Unit, target: Target) -> Row {
        let met = match target {
            Target::Below(limit) => Some(figure < limit),
            _ => None,
        };
        let told = match target {
            Target::Below(limit) => format!("below {limit} {unit}"),
            _ => String::new(),
        };
        let cells = [
            what.to_owned(),
            tell(figure, unit),
            String::new(),
            String::new(),
            String::new(),
            told,
        ];
        Row { cells, met }
    }

    /// Makes a row that compares a figure of gpuctl's with that of another program or measurement.
    pub fn beside(
        what: &str,
        ours: f64,
        other: &str,
        theirs: f64,
        unit: Unit,
        target: Target,
    ) -> Row {
        let faster = theirs / ours;
        let relation = match target {
            Target::Overhead => format!("{:+.0} ms", ours - theirs),
            Target::Faster(_) => format!("{faster:.1} times faster"),
            _ if unit == "ms" && faster > 1.0 => format!("{faster:.1} times faster"),
            _ => format!("{:.2} times", ours / theirs),
        };
        let (told, met) = match target {
            Target::None => (String::new(), None),
            Target::Below(limit) => (format!("below {limit} {unit}"), Some(ours < limit)),
            Target::Times(most) => (format!("at most {most} times"), Some(ours <= most * theirs)),
            Target::TimesAnd(most, more) => (
                format!("at most {most} times and {more} {unit}"),
                Some(ours <= most * theirs + more),
            ),
            Target::Faster(least) => {
                (format!("at least {least} times faster"), Some(faster >= least))
            }
            Target::Overhead => {
                let most = f64::max(100.0, 0.02 * theirs);
                ("at most 2 % or 100 ms more".to_owned(), Some(ours - theirs <= most))
            }
        };
        let cells = [what, &tell(ours, unit), other, &tell(theirs, unit), &relation, &told];
        Row { cells: cells.map(str::to_owned), met }
    }

    /// Makes a row that says why something was not measured.
    pub fn missing(what: &str, other: &str, why: &str) -> Row {
        let why = format!("not measured: {why}");
        Row { cells: [what, "", other, "", &why, ""].map(str::to_owned), met: None }
    }
}

fn tell(figure: f64, unit: Unit) -> String {
    match figure {
        100.0.. => format!("{figure:.0} {unit}"),
        10.0.. => format!("{figure:.1} {unit}"),
        _ => format!("{figure:.2} {unit}"),
    }
}

impl Section {
    pub fn misses_a_target(&self) -> bool {
        self.rows.iter().any(|row| row.met == Some(false))
    }

    pub fn text(&self) -> String {
        let heading =
            ["what", "gpuctl", "beside it", "takes", "gpuctl is, or takes", "target", "met"];
        let mut lines = vec![heading.map(str::to_owned)];
        for Row { cells: [what, ours, other, theirs, relation, target], met } in &self.rows {
            let met = match met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let cells = [what, ours, other, theirs, relation, target].map(String::to_owned);
            let mut cells = cells.into_iter();
            lines.push(std::array::from_fn(|_| cells.next().unwrap_or_else(|| met.to_owned())));
        }
        let widths: [usize; 7] = std::array::from_fn(|column| {
            lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or_default()
        });
        let mut text = format!("\n## {}\n\n", self.title);
        if !self.note.is_empty() {
            writeln!(text, "{}\n", self.note).unwrap();
        }
        for (number, cells) in lines.iter().enumerate() {
            let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(text, "| {} |", padded.collect::<Vec<_>>().join(" | ")).unwrap();
            if number == 0 {
                let rules = widths.map(|width| "-".repeat(width));
                writeln!(text, "| {} |", rules.join(" | ")).unwrap();
            }
        }
        text
    }
}

/// Returns the beginning of the page, which says how the figures were measured, and on what.
pub fn opening() -> String {
    let cores = thread::available_parallelism().unwrap();
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    let memory: f64 =
        first("/proc/meminfo", "MemTotal:").trim_end_matches(" kB").trim().parse().unwrap_or(0.0);
    let memory = memory / 1024.0 / 1024.0;
    let kernel = first("/proc/sys/kernel/osrelease", "");
    let model = first("/proc/cpuinfo", "model name");
    let load = first("/proc/loadavg", "");
    let load = load.split(' ').next().unwrap_or_default();
    let (docker, redis) = (version("docker"), version("redis-server"));
    format!(
        "# Benchmarks\n\n\
         Made by `make bench`; do not edit. All of one run, each figure the median of several, what is compared measured \
         in turn: on another machine the figures differ, and the relations hold. The card is a simulated one (`tests/simgpu`), \
         services, Docker and Redis are real.\n\n\
         Machine: {cores} cores ({model}), {memory:.0} GB, Linux {kernel}; shared with others, load {load} at the beginning. \
         Docker: {docker}. Redis: {redis}.\n"
    )
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().split(" sha=").next().unwrap_or_default().trim().to_owned()
}
