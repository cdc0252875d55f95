//! What is told: serialisable structs with the fields of the contract, and how they reach stdout.
//! Nothing else prints.

mod act;
mod canary;
mod doctor;
mod history;
mod human;
mod live;
mod lock;
pub mod prometheus;
mod status;
mod status_text;

pub use act::{ActReport, Subject};
pub use canary::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport};
pub use doctor::DoctorReport;
pub use history::HistoryReport;
pub use live::Display;
pub use lock::{AcquiredReport, LockReport, LockStatusReport, ReleasedReport};
pub use status::StatusReport;

use crate::config::Environment;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Mb, Pid, Source};
use crate::screen::Screen;
use crate::screen::text::on_one_line;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;

/// A report in its two forms.
pub trait Report: Serialize {
    fn text(&self, screen: &Screen) -> String;
}

/// The form in which results are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Json,
    /// Text for people, on this screen.
    Text(Screen),
}

impl Form {
    pub fn new(as_json: bool, environment: &Environment) -> Form {
        match as_json {
            true => Form::Json,
            false => Form::Text(Screen::of(rustix::stdio::stdout(), environment)),
        }
    }
}

/// Prints a report on stdout. A reader that has gone away is no failure of the command.
pub fn print(report: &impl Report, form: &Form) -> Result<()> {
    print_text(&text_of(report, form)?)
}

/// Prints a report that is of no use unread: that nobody reads it is a failure too.
pub fn deliver(report: &impl Report, form: &Form) -> Result<()> {
    write(&text_of(report, form)?).map_err(|e| unprinted(&e))
}

fn text_of(report: &impl Report, form: &Form) -> Result<String> {
    Ok(match form {
        Form::Json => format!("{:#}\n", serde_json::to_value(report).map_err(Failure::bug)?),
        Form::Text(screen) => report.text(screen),
    })
}

/// Prints a document that is asked for as such.
pub fn print_json(document: &Value) -> Result<()> {
    print_text(&format!("{document:#}\n"))
}

/// Prints text that is asked for as such (a template, a schema).
pub fn print_text(text: &str) -> Result<()> {
    print_part(text).map(drop)
}

/// Prints one of several parts; whether the reader is still there for the next one.
pub fn print_part(text: &str) -> Result<bool> {
    match write(text) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(unprinted(&e)),
    }
}

/// Prints in one go, as far as the reader takes it: what a terminal is drawn with must not come in parts.
fn write(text: &str) -> std::io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn unprinted(error: &std::io::Error) -> Failure {
    Failure::new(Code::Io, format!("cannot write to stdout: {error}"))
}

/// A failure, on stdout as JSON or on stderr as lines; on stderr too where stdout takes nothing.
/// Whether that succeeds changes nothing.
#[expect(clippy::disallowed_methods, reason = "the one place that prints errors")]
pub fn print_failure(failure: &Failure, as_json: bool) {
    if as_json {
        let hint = match failure.hints.is_empty() {
            true => Value::Null,
            false => Value::from(failure.hints.join("\n")),
        };
        let document = json!({"error": {
            "code": failure.code.name(),
            "exit_code": failure.code.status(),
            "message": failure.message,
            "hint": hint,
            "details": failure.details,
        }});
        if write(&format!("{document:#}\n")).is_ok() {
            return;
        }
    }
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "gpuctl: {}", on_one_line(&failure.message));
    for hint in &failure.hints {
        let _ = writeln!(stderr, "hint: {}", on_one_line(hint));
    }
}

#[derive(Serialize)]
pub struct CanFitReport {
    pub fits: bool,
    pub required_mb: Mb,
    pub margin_mb: Mb,
    pub free_mb: Mb,
    pub available_mb: Mb,
    /// The memory that running services have declared and not yet used, where `--budget` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised_mb: Option<Mb>,
    pub source: Source,
}

/// It tells what `adopt` did.
#[derive(Serialize)]
pub struct AdoptReport {
    pub success: bool,
    pub service: String,
    pub adopted: Vec<Pid>,
}

/// It holds the last lines of a service's log.
#[derive(Serialize)]
pub struct LogReport {
    pub service: String,
    pub lines: Vec<String>,
}

/// It tells what `config check` found.
#[derive(Serialize)]
pub struct CheckReport {
    pub valid: bool,
    pub path: String,
    pub services: Vec<String>,
    pub phases: Vec<u32>,
    /// These work and may surprise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A path, for `config path` and `config init`.
#[derive(Serialize)]
pub struct PathReport {
    pub path: Option<String>,
}
