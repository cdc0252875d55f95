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

/// More than any command that we run has to say.
const OUTPUT_LIMIT: usize = 8 * 1024 * 1024;

/// Longer than any limit that a command has.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);
/// A thread that waits for an end that has come wakes up within this time.
const NOTING: Duration = Duration::from_secs(1);

pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    /// The first line that the command printed on stderr, for tools that go on with advice.
    pub fn complaint(&self) -> String {
        match self.stderr.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => mask(line.trim()),
            None => describe(self.status),
        }
    }

    /// The last line that the command printed on stderr, which is where tools put the reason.
    pub fn reason(&self) -> String {
        match self.stderr.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => mask(line.trim()),
            None => describe(self.status),
        }
    }
}

/// "exited with code 3" or "was killed by signal 9".
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

/// Starts a program with more variables, its own process group, no input, and a deadline after
/// which the group is killed (`unavailable`). A program that is not installed is `unavailable` too.
/// It is under way on return: what is begun on a thread waits for its turn beside all others.
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

/// Runs a shell command of the configuration in the same way.
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

/// A program that is under way.
#[must_use = "whoever begins a program waits for it"]
pub struct Begun {
    child: Child,
    /// The command line as it may be shown, without secrets.
    line: String,
    stdout: Pipe,
    stderr: Pipe,
    ended: Option<Handle>,
    /// When it has ended, where that is told of: whoever waits for it may come much later.
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

/// Notes when a program ends.
fn end_of(child: &Child) -> Option<Aside<Instant>> {
    let ended = Handle::open(child.id() as i32)?;
    let noted = Aside::begin(move || {
        wait(&[ended.fd()], &Stop::never(), Instant::now() + LONGEST);
        Instant::now()
    });
    noted.ok()
}

impl Begun {
    /// Waits for its end.
    pub fn finish(self, stop: &Stop) -> Result<Output> {
        self.answer(|_| false, stop)
    }

    /// Returns what becomes readable when it prints something, or ends.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let pipes = [&self.stdout, &self.stderr].into_iter().filter_map(Pipe::fd);
        self.ended.iter().map(Handle::fd).chain(pipes).collect()
    }

    /// Takes what it has printed since the last time.
    pub fn read(&mut self) -> Vec<u8> {
        self.stdout.read();
        self.stderr.read();
        std::mem::take(&mut self.stdout.text)
    }

    pub fn has_ended(&self) -> bool {
        self.ended.as_ref().is_none_or(Handle::has_ended)
    }

    /// Ends a program of which nothing more is wanted.
    pub fn end(mut self) {
        kill_group(&self.child);
        // It is killed, and what became of it does not matter.
        let _ = self.child.wait();
    }

    /// Waits until what it has printed `is_whole`, which counts as success, or for its end: a large
    /// program takes milliseconds to end after its last word.
    pub fn answer(
        mut self,
        mut is_whole: impl FnMut(&[u8]) -> bool,
        stop: &Stop,
    ) -> Result<Output> {
        let woken = loop {
            let woken = wait(&self.fds(), stop, self.begun + self.limit);
            // Asked first: what a program has written is in its pipes once it has ended.
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
        // Not `{command:?}`, which shows the environment that it was given.
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
                // What was left of another limit is no even number.
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

/// Programs that have said all, and had not ended when they were left.
fn left() -> MutexGuard<'static, Vec<Begun>> {
    static LEFT: Mutex<Vec<Begun>> = Mutex::new(Vec::new());
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before gpuctl ends: a program that was left costs no time where init reaps it and nobody is told
/// of its end.
pub fn leave() {
    if !host::has_init() || log::log_enabled!(log::Level::Debug) {
        reap();
    }
}

/// Waits for the ends of programs that were left before.
fn reap() {
    let left = std::mem::take(&mut *left());
    for program in left {
        // What it had to say is known.
        let _ = program.finish(&Stop::never());
    }
}

/// What a program writes is read as it comes: neither of its pipes fills up, and nobody waits
/// for the end of one that another process keeps open.
struct Pipe {
    /// `None` at its end.
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

    /// All that has been written by now.
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

/// A command line as it may be shown: without the environment, and without passwords in URLs.
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

/// A configured folder that is not there.
pub fn absent(cwd: &Path) -> Failure {
    Failure::new(Code::Config, format!("the folder {} does not exist", cwd.display()))
}

fn kill_group(child: &Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        // It may have ended on its own just now.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// Starts gpuctl itself beside us, to outlive us: its own session, `input` as its input, one
/// descriptor of ours that it `keeps`, and nothing else of what we were given.
pub fn start_companion(
    arguments: &[&str],
    input: OwnedFd,
    keeps: Option<BorrowedFd>,
) -> Result<Child> {
    // The file may have been replaced since; this is what runs now.
    let mut command = new("/proc/self/exe");
    command.args(arguments).stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
    command.arg0("gpuctl");
    // It is neither part of a service nor a command under the lock.
    for name in [variable::SERVICE, variable::LOCK_TOKEN, variable::FENCE] {
        command.env_remove(name);
    }
    detach(&mut command);
    keeps.into_iter().for_each(|fd| inherit(&mut command, fd));
    command.spawn().map_err(|e| not_started("gpuctl", &command, &e))
}

/// A program with our own input and output, and with more variables.
pub fn foreground(words: &[OsString], variables: &[(&str, &OsStr)]) -> Command {
    reap();
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns processes")]
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(variables.iter().copied());
    command
}

/// Becomes another program, which has the caller's terminal, input, output and signals as if it had
/// been called itself. Returns only where it cannot be started.
pub fn become_program(program: &str, args: &[String]) -> Failure {
    reap();
    let mut command = new(program);
    command.args(args).stdin(Stdio::inherit());
    log::debug!("`{}` takes over", line(&command));
    let error = command.exec();
    not_started(program, &command, &error)
}
