//! The only place that spawns processes: external commands with a deadline, and services that
//! outlive gpuctl.

mod detached;
mod newborn;

pub use detached::Detached;
pub use newborn::{before_exec, close_on_exec, inherit};

use newborn::detach;

use super::host;
use super::wait::{Aside, Handle, Stop, Woken, wait};
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::variable;
use crate::redact::mask;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Limit in bytes on what is kept of each of a command's outputs; no command that gpuctl runs
/// prints as much.
const OUTPUT_LIMIT: usize = 8 * 1024 * 1024;

/// How long the thread that notes a program's end waits for it: longer than any limit that a
/// command has.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);
/// How long to wait for the thread that notes a program's end, once the program has ended; the
/// thread wakes up well within this time.
const NOTING: Duration = Duration::from_secs(1);

/// What a command returned: its exit status and its output.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    /// Returns the first line that the command printed on stderr, for tools that follow it with
    /// advice. If there is none, says how the command ended.
    pub fn complaint(&self) -> String {
        match self.stderr.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => mask(line.trim()),
            None => describe(self.status),
        }
    }

    /// Returns the last line that the command printed on stderr, which is where most tools put the
    /// reason. If there is none, says how the command ended.
    pub fn reason(&self) -> String {
        match self.stderr.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => mask(line.trim()),
            None => describe(self.status),
        }
    }
}

/// Describes how a command ended: "exited with code 3" or "was killed by signal 9".
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Runs a program to its end; see [`begin`].
pub fn run(program: &str, args: &[&str], limit: Duration, stop: &Stop) -> Result<Output> {
    begin(program, args, &[], limit)?.finish(stop)
}

/// Starts a program with additional variables, in its own process group and without input. A
/// program that is not done within `limit` is killed with its group, which fails with
/// `Code::Unavailable`, as does a program that is not installed. On return the program is already
/// running, whereas work begun on a thread first waits for its turn.
pub fn begin(
    program: &str,
    args: &[&str],
    variables: &[(&str, &str)],
    limit: Duration,
) -> Result<Begun> {
    let mut command = new(program);
    command.args(args).envs(variables.iter().copied());
    start(command, program, limit)
}

/// Runs a shell command from the configuration to its end, under the same conditions as [`begin`].
pub fn run_shell(
    text: &str,
    env: &BTreeMap<String, String>,
    cwd: Option<&Path>,
    limit: Duration,
    stop: &Stop,
) -> Result<Output> {
    start(shell(text, env, cwd), "sh", limit)?.finish(stop)
}

#[expect(clippy::disallowed_methods, reason = "the one place that spawns processes")]
fn new(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

fn shell(text: &str, env: &BTreeMap<String, String>, cwd: Option<&Path>) -> Command {
    let mut command = new("/bin/sh");
    command.arg("-c").arg(text).envs(env);
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    command
}

/// A program that was started and has not been waited for yet.
#[must_use = "whoever begins a program waits for it"]
pub struct Begun {
    child: Child,
    /// Command line with secrets masked, for messages and the log.
    line: String,
    stdout: Pipe,
    stderr: Pipe,
    ended: Option<Handle>,
    /// Time at which the program ended, noted only for the debug log: the caller may come to wait
    /// for the program much later.
    end: Option<Aside<Instant>>,
    begun: Instant,
    limit: Duration,
}

fn start(mut command: Command, program: &str, limit: Duration) -> Result<Begun> {
    reap();
    let begun = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| not_started(program, &command, &e))?;
    let end = log::log_enabled!(log::Level::Debug).then(|| end_of(&child)).flatten();
    Ok(Begun {
        end,
        line: line(&command),
        stdout: Pipe::of(child.stdout.take()),
        stderr: Pipe::of(child.stderr.take()),
        ended: Handle::open(child.id() as i32),
        child,
        begun,
        limit,
    })
}

/// Notes the time at which a program ends, on a thread of its own; `None` if that cannot be done.
fn end_of(child: &Child) -> Option<Aside<Instant>> {
    let ended = Handle::open(child.id() as i32)?;
    let noted = Aside::begin(move || {
        wait(&[ended.fd()], &Stop::never(), Instant::now() + LONGEST);
        Instant::now()
    });
    noted.ok()
}

impl Begun {
    /// Waits until the program ends. If `stop` or the limit comes first, the program is killed and
    /// this fails.
    pub fn finish(self, stop: &Stop) -> Result<Output> {
        self.answer(|_| false, stop)
    }

    /// Returns descriptors of which one becomes readable when the program prints something or ends.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let pipes = [&self.stdout, &self.stderr].into_iter().filter_map(Pipe::fd);
        self.ended.iter().map(Handle::fd).chain(pipes).collect()
    }

    /// Returns what the program has printed on stdout since the last call.
    pub fn read(&mut self) -> Vec<u8> {
        self.stdout.read();
        self.stderr.read();
        std::mem::take(&mut self.stdout.text)
    }

    pub fn has_ended(&self) -> bool {
        self.ended.as_ref().is_none_or(Handle::has_ended)
    }

    /// Kills a program of which nothing more is wanted.
    pub fn end(mut self) {
        kill_group(&self.child);
        // The program was killed, and its exit status does not matter.
        let _ = self.child.wait();
    }

    /// Waits until `is_whole` accepts the output so far, which counts as success, or until the
    /// program ends. A large program takes milliseconds to end after its last output.
    pub fn answer(
        mut self,
        mut is_whole: impl FnMut(&[u8]) -> bool,
        stop: &Stop,
    ) -> Result<Output> {
        let woken = loop {
            let woken = wait(&self.fds(), stop, self.begun + self.limit);
            // Asked before reading: once a program has ended, all that it wrote is in its pipes.
            let has_ended = self.ended.as_ref().is_some_and(Handle::has_ended);
            self.stdout.read();
            self.stderr.read();
            if !has_ended && is_whole(&self.stdout.text) {
                let stdout = std::mem::take(&mut self.stdout.text);
                left().push(self);
                return Ok(Output { status: ExitStatus::default(), stdout, stderr: String::new() });
            }
            if has_ended || woken != Woken::Event {
                break woken;
            }
        };
        if woken != Woken::Event {
            kill_group(&self.child);
        }
        let status = self.child.wait().map_err(|e| {
            Failure::new(Code::Internal, format!("cannot wait for `{}`: {e}", self.line))
        })?;
        // Not `{command:?}`, which would show the environment that the program was given.
        if let Some(end) = &self.end {
            wait(&[end.ended().fd()], &Stop::never(), Instant::now() + NOTING);
            let ended = end.take().unwrap_or_else(Instant::now);
            let took = Duration::from_millis(ended.duration_since(self.begun).as_millis() as u64);
            log::debug!("`{}` {} after {}", self.line, describe(status), Span(took));
        }
        match woken {
            Woken::Event => {}
            Woken::Stopped => stop.check()?,
            Woken::TimedOut => {
                // A limit that is the rest of another one is not a round number.
                let limit = self.limit.as_millis().next_multiple_of(10);
                let limit = Span(Duration::from_millis(limit as u64));
                return Err(Failure::new(
                    Code::Unavailable,
                    format!("`{}` did not answer within {limit}", self.line),
                ));
            }
        }
        let stderr = String::from_utf8_lossy(&self.stderr.text).into_owned();
        Ok(Output { status, stdout: self.stdout.text, stderr })
    }
}

/// Returns the programs whose output was complete and that had not ended when they were left
/// running.
fn left() -> MutexGuard<'static, Vec<Begun>> {
    static LEFT: Mutex<Vec<Begun>> = Mutex::new(Vec::new());
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits, before gpuctl ends, for programs that were left running. If init reaps them and the debug
/// log need not report their end, this returns at once and saves the time.
pub fn leave() {
    if !host::has_init() || log::log_enabled!(log::Level::Debug) {
        reap();
    }
}

/// Waits for the programs that were left running to end.
fn reap() {
    let left = std::mem::take(&mut *left());
    for program in left {
        // The program's output is known already.
        let _ = program.finish(&Stop::never());
    }
}

/// Output of a program, read as it arrives: the pipe never fills up, and nothing waits for the end
/// of a pipe that another process keeps open.
struct Pipe {
    /// The pipe to read from; `None` once its end is reached.
    source: Option<OwnedFd>,
    text: Vec<u8>,
}

impl Pipe {
    fn of(source: Option<impl Into<OwnedFd>>) -> Pipe {
        let source = source.map(Into::into);
        let source = source.filter(|fd: &OwnedFd| rustix::io::ioctl_fionbio(fd, true).is_ok());
        Pipe { source, text: Vec::new() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(OwnedFd::as_fd)
    }

    /// Reads all that has been written so far.
    fn read(&mut self) {
        let mut part = [0; 16 * 1024];
        while let Some(source) = &self.source {
            match rustix::io::read(source, &mut part) {
                Ok(count @ 1..) if self.text.len() < OUTPUT_LIMIT => {
                    self.text.extend(&part[..count]);
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                // What was read before an error is still worth having.
                _ => self.source = None,
            }
        }
    }
}

/// Returns a command line as it may be shown: without the environment, and with passwords in URLs
/// masked.
fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    mask(&words.join(" "))
}

fn not_started(program: &str, command: &Command, error: &std::io::Error) -> Failure {
    match (error.kind(), command.get_current_dir()) {
        (_, Some(cwd)) if !cwd.is_dir() => absent(cwd),
        (std::io::ErrorKind::NotFound, _) => {
            Failure::new(Code::Unavailable, format!("the command `{program}` is not installed"))
        }
        _ => Failure::new(
            Code::Unavailable,
            format!("the command `{program}` cannot be run: {error}"),
        ),
    }
}

/// Returns the failure for a configured folder that does not exist.
pub fn absent(cwd: &Path) -> Failure {
    Failure::new(Code::Config, format!("the folder {} does not exist", cwd.display()))
}

fn kill_group(child: &Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        // The group may have ended on its own just now.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// Starts another gpuctl process that outlives this one. It has a session of its own, `input` as
/// its input, the descriptor that it `keeps`, and nothing else of what this process was given.
pub fn start_companion(
    arguments: &[&str],
    input: OwnedFd,
    keeps: Option<BorrowedFd>,
) -> Result<Child> {
    // The program file may have been replaced since; this is what runs now.
    let mut command = new("/proc/self/exe");
    command.args(arguments).stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
    command.arg0("gpuctl");
    // A companion is neither part of a service nor a command under the lock.
    for name in [variable::SERVICE, variable::LOCK_TOKEN, variable::FENCE] {
        command.env_remove(name);
    }
    detach(&mut command);
    keeps.into_iter().for_each(|fd| inherit(&mut command, fd));
    command.spawn().map_err(|e| not_started("gpuctl", &command, &e))
}

/// Prepares a program that uses gpuctl's own input and output and gets additional variables.
pub fn foreground(words: &[OsString], variables: &[(&str, &OsStr)]) -> Command {
    reap();
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns processes")]
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(variables.iter().copied());
    command
}

/// Replaces gpuctl by another program, which has the caller's terminal, input, output and signals
/// as if the caller had run it directly. Returns only if the program cannot be started.
pub fn become_program(program: &str, args: &[String]) -> Failure {
    reap();
    let mut command = new(program);
    command.args(args).stdin(Stdio::inherit());
    log::debug!("`{}` takes over", line(&command));
    let error = command.exec();
    not_started(program, &command, &error)
}
