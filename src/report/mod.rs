//! Reports: serialisable structs whose fields are part of the contract with users, and the
//! functions that print them. Nothing else prints results.

mod act;
mod canary;
mod doctor;
mod history;
mod human;
mod live;
mod lock;
pub mod prometheus;
mod reply;
mod status;
mod status_text;

pub use act::{ActReport, Subject};
pub use canary::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport};
pub use doctor::DoctorReport;
pub use history::HistoryReport;
pub use live::Display;
pub use lock::{AcquiredReport, LockReport, LockStatusReport, ReleasedReport};
pub use reply::Reply;
pub use status::StatusReport;

use crate::config::Environment;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Mb, Pid, Source};
use crate::screen::Screen;
use crate::screen::layout::prose;
use crate::screen::text::on_one_line;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Write};

/// A result that can be printed as JSON, by way of `Serialize`, or as text for people.
pub trait Report: Serialize {
    /// Returns the report as text for people, laid out for `screen`.
    fn text(&self, screen: &Screen) -> String;
}

/// The form in which a command is to print its result.
#[derive(Clone, Debug)]
pub enum Form {
    Json,
    /// JSON that is sent as the answer to an HTTP request.
    Http(Reply),
    /// Text for people, laid out for this screen.
    Text(Screen),
}

impl Form {
    /// Returns `Json` if `as_json`, otherwise `Text` for the screen at stdout.
    pub fn new(as_json: bool, environment: &Environment) -> Form {
        match as_json {
            true => Form::Json,
            false => Form::Text(Screen::of(rustix::stdio::stdout(), environment)),
        }
    }
}

/// Prints a report on stdout, or sends it to the HTTP client. It is no failure if the reader has
/// gone away.
pub fn print(report: &impl Report, form: &Form) -> Result<()> {
    let printed = put(report, form)?;
    printed.or_else(|e| if is_gone(&e) { Ok(()) } else { Err(unprinted(&e)) })
}

/// Prints a report that is of no use unread, such as the token of a lock. It is a failure if the
/// reader has gone away.
pub fn deliver(report: &impl Report, form: &Form) -> Result<()> {
    put(report, form)?.map_err(|e| unprinted(&e))
}

/// Reports whether an error means that the reader of the output has gone away.
fn is_gone(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, TimedOut};
    [BrokenPipe, ConnectionReset, NotConnected, TimedOut].contains(&error.kind())
}

fn put(report: &impl Report, form: &Form) -> Result<io::Result<()>> {
    Ok(match form {
        Form::Json => write(&format!("{:#}\n", document(report)?)),
        Form::Http(reply) => reply.send(200, None, &document(report)?).map(drop),
        Form::Text(screen) => write(&report.text(screen)),
    })
}

fn document(report: &impl Report) -> Result<Value> {
    serde_json::to_value(report).map_err(Failure::bug)
}

/// Prints a JSON document that was asked for as such, such as the schema of the configuration.
pub fn print_json(document: &Value) -> Result<()> {
    print_text(&format!("{document:#}\n"))
}

/// Prints text that was asked for as such, such as a manual page. It is no failure if the reader
/// has gone away.
pub fn print_text(text: &str) -> Result<()> {
    print_part(text).map(drop)
}

/// Prints one of several parts of the output. Returns false if the reader has gone away and needs
/// no more.
pub fn print_part(text: &str) -> Result<bool> {
    match write(text) {
        Ok(()) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(unprinted(&e)),
    }
}

/// Writes to stdout in one go, as far as the reader takes it, because a terminal must not be drawn
/// on in parts.
fn write(text: &str) -> io::Result<()> {
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

/// Returns the failure of a command whose output could not be written to stdout.
pub fn unprinted(error: &io::Error) -> Failure {
    Failure::new(Code::Io, format!("cannot write to stdout: {error}"))
}

/// Returns a failure as a JSON document.
pub fn failure_document(failure: &Failure) -> Value {
    let hint = match failure.hints.is_empty() {
        true => Value::Null,
        false => Value::from(failure.hints.join("\n")),
    };
    json!({"error": {
        "code": failure.code.name(),
        "exit_code": failure.code.status(),
        "message": failure.message,
        "hint": hint,
        "details": failure.details,
    }})
}

/// Prints a failure as JSON on stdout if `as_json`, or else as lines on stderr, which also serves
/// if stdout cannot be written to. An error while writing to stderr is ignored.
#[expect(clippy::disallowed_methods, reason = "the one place that prints errors")]
pub fn print_failure(failure: &Failure, as_json: bool, environment: &Environment) {
    if as_json {
        let document = failure_document(failure);
        if write(&format!("{document:#}\n")).is_ok() {
            return;
        }
    }
    let mut text = format!("gpuctl: {}\n", on_one_line(&failure.message));
    for hint in &failure.hints {
        text.push_str(&format!("hint: {}\n", on_one_line(hint)));
    }
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(prose(&text, &Screen::of(&stderr, environment)).as_bytes());
}

/// The answer to `can-fit`.
#[derive(Serialize, JsonSchema)]
pub struct CanFitReport {
    pub fits: bool,
    pub required_mb: Mb,
    pub margin_mb: Mb,
    pub free_mb: Mb,
    pub available_mb: Mb,
    /// Memory that running services have declared and not yet used; only with `--budget`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised_mb: Option<Mb>,
    pub source: Source,
}

/// The report of `adopt`: the processes that were adopted, and for which service.
#[derive(Serialize)]
pub struct AdoptReport {
    pub success: bool,
    pub service: String,
    pub adopted: Vec<Pid>,
}

/// The report of `logs`: the last lines of a service's log.
#[derive(Serialize)]
pub struct LogReport {
    pub service: String,
    pub lines: Vec<String>,
}

/// The report of `config check` on a configuration that is valid.
#[derive(Serialize)]
pub struct CheckReport {
    pub valid: bool,
    pub path: String,
    pub services: Vec<String>,
    pub phases: Vec<u32>,
    /// Warnings about settings that are valid but may have surprising effects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The report of `config path`, `config init` and `config import`: the path of a configuration.
#[derive(Serialize)]
pub struct PathReport {
    pub path: Option<String>,
}
