//! Logs of native services: one private file each under the state folder, never opened through a
//! link. Also the last lines of any service's log, which the failure of a start shows.

use super::command;
use super::files;
use super::wait::Stop;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest time that reading a log to its end may take.
const READ_LIMIT: Duration = Duration::from_secs(10);
const TAIL_LINES: usize = 15;
/// Number of bytes that are read from the end of a log, far more than a start has to say.
const LOG_BYTES: u64 = 1024 * 1024;

/// Returns the path of a native service's log.
pub fn path_of(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join("logs").join(format!("{service}.log"))
}

/// Returns the state folder in which a process of a native service writes the service's log: that
/// of the gpuctl that has started it. Returns `None` if the process writes elsewhere.
pub fn home_of(pid: Pid, service: &str) -> Option<PathBuf> {
    let log = fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
    let home = log.parent()?.parent()?;
    (path_of(home, service) == log).then(|| home.to_owned())
}

/// The part of a log that is to be shown.
#[derive(Clone, Copy)]
pub struct LogPart {
    /// Number of the log's last lines to show.
    pub lines: u32,
    /// Whether lines that are added later are shown, too.
    pub follow: bool,
}

/// The program that shows a log, with its arguments.
pub struct LogViewer {
    program: &'static str,
    arguments: Vec<String>,
}

impl LogViewer {
    pub fn new(program: &'static str, arguments: &[&str]) -> LogViewer {
        LogViewer { program, arguments: arguments.iter().map(|word| (*word).to_owned()).collect() }
    }

    /// Replaces gpuctl with the program. Returns only if the program cannot be started.
    pub fn take_over(&self) -> Failure {
        command::become_program(self.program, &self.arguments)
    }

    /// Returns the lines that the program shows. A program that follows the log would not end.
    pub fn read(&self, stop: &Stop) -> Result<Vec<String>> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let output = command::run(self.program, &arguments, READ_LIMIT, stop)?;
        match output.status.success() {
            true => {
                Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
            }
            false => Err(Failure::new(
                Code::Unavailable,
                format!("its log cannot be read: {}", output.reason()),
            )),
        }
    }
}

/// Returns the program that shows the log of a native service. Fails if there is no log because
/// gpuctl has not started the service yet.
pub fn viewer(state_dir: &Path, service: &str, part: LogPart) -> Result<LogViewer> {
    let path = path_of(state_dir, service);
    match files::existing(&path) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let message = format!(
                "it has no log: gpuctl has not started it yet ({} does not exist)",
                path.display()
            );
            return Err(Failure::new(Code::NotFound, message)
                .hint("what was started by hand prints where whoever started it has it print"));
        }
        Err(e) => return Err(unwritable(&path, &e)),
    }
    let (lines, path) = (part.lines.to_string(), path.to_string_lossy());
    let mut arguments = vec!["-n", &lines];
    arguments.extend(part.follow.then_some("-F"));
    arguments.extend(["--", &path]);
    Ok(LogViewer::new("tail", &arguments))
}

/// Makes sure that a service's log could be opened, without creating anything.
pub fn could_open(state_dir: &Path, service: &str) -> Result<()> {
    for folder in [state_dir, &state_dir.join("logs")] {
        files::could_be_private(folder).map_err(|e| unwritable(folder, &e))?;
    }
    let path = path_of(state_dir, service);
    files::could_be_written(&path).map_err(|e| unwritable(&path, &e))
}

/// Opens a service's log for appending, and returns it with its length so far.
pub fn open(state_dir: &Path, service: &str) -> Result<(File, u64)> {
    for folder in [state_dir, &state_dir.join("logs")] {
        files::private_dir(folder).map_err(|e| unwritable(folder, &e))?;
    }
    let path = path_of(state_dir, service);
    let failed = |e: std::io::Error| unwritable(&path, &e);
    let file = files::open(&path, OFlags::WRONLY | OFlags::APPEND).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    Ok((file, length))
}

fn unwritable(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Io, format!("cannot use {} for logs: {why}", path.display()))
        .hint("repair it, or choose another folder with GPUCTL_STATE_DIR")
}

/// Adds to a failure the last lines that a service has written to its log beyond the first `from`
/// bytes, and the log's path.
pub fn attach_file(failure: Failure, path: &Path, from: u64) -> Failure {
    attach(failure, last_of(lines_from(path, from))).hint(format!("its log: {}", path.display()))
}

/// Returns the lines that were written to a log beyond its first `from` bytes, at most the last
/// `LOG_BYTES` of them. Returns none if the log cannot be read.
pub fn lines_from(path: &Path, from: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_BYTES))))?;
        let mut text = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(printable).collect()
}

/// Returns the last lines of a command's output, for logs that are kept by a service's manager.
pub fn last_lines(text: &[u8]) -> Vec<String> {
    last_of(String::from_utf8_lossy(text).lines().map(printable).collect())
}

fn last_of(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.trim().is_empty());
    lines.split_off(lines.len().saturating_sub(TAIL_LINES))
}

fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// Adds the last lines of a log to a failure: the last one to its message, and all of them as hints
/// if there are several.
pub fn attach(mut failure: Failure, lines: Vec<String>) -> Failure {
    if let Some(last) = lines.last() {
        failure.message = format!("{}; its last output was: {last}", failure.message);
    }
    if lines.len() > 1 {
        failure.hints.extend(lines.iter().map(|line| format!("log: {line}")));
    }
    failure.detail("log", lines)
}
