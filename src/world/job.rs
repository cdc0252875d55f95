//! A command in the foreground, as a shell runs one: in a process group of its own that is given
//! the terminal, so that Ctrl-C and Ctrl-Z are for the command, and pagers and shells work.

use super::command;
use super::wait::{Aside, Stop, Woken, wait};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{self, Signal, WaitId, WaitIdOptions};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A new process says its number at once; one that does not is stuck in the kernel.
const BIRTH_LIMIT: Duration = Duration::from_secs(10);

/// Where nobody can continue us, the kernel does not stop us either.
const CONTINUE_LIMIT: Duration = Duration::from_millis(200);

/// What people and other programs tell gpuctl is passed on to the command.
const FORWARDED: [i32; 7] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];

pub struct Job {
    group: process::Pid,
    terminal: Option<Terminal>,
    signals: SignalDelivery<UnixStream, SignalOnly>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(u8),
    Killed(i32),
    /// Called off; it still runs.
    Running,
}

impl Ending {
    /// As a shell tells it.
    pub fn status(self) -> u8 {
        match self {
            Ending::Exited(code) => code,
            Ending::Killed(signal) => 128_u8.wrapping_add(signal as u8),
            Ending::Running => 0,
        }
    }
}

impl Job {
    /// Starts a program. It is there, with its number, but does nothing yet while `prepare` runs,
    /// and never does anything where that fails or gpuctl dies.
    pub fn start(
        words: &[OsString],
        variables: &[(&str, &OsStr)],
        prepare: impl FnOnce(Pid) -> Result<()>,
    ) -> Result<Job> {
        let signals = signals().map_err(|e| internal("handle signals", &e))?;
        let terminal = Terminal::open();
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| internal("make a pipe", &e.into()));
        let ((announced, announce), (permission, permit)) = (pipe()?, pipe()?);
        let program = words[0].to_string_lossy().into_owned();
        let mut command = command::foreground(words, variables);
        let shown = terminal
            .as_ref()
            .filter(|terminal| terminal.is_ours())
            .map(|terminal| terminal.device.try_clone())
            .transpose()
            .map_err(|e| internal("share the terminal", &e))?;
        let parents_end = permit.as_raw_fd();
        command::before_exec(&mut command, move || {
            process::setpgid(None, None)?;
            if let Some(terminal) = &shown {
                give(terminal.as_fd(), process::getpid())?;
            }
            // SAFETY: a copy of gpuctl's end, which would keep this process from seeing that gpuctl
            // is gone; nothing else in this process uses it.
            #[expect(unsafe_code, reason = "the owner of that number is in another process")]
            unsafe {
                rustix::io::close(parents_end)
            };
            let me = process::getpid().as_raw_pid().to_ne_bytes();
            rustix::io::write(&announce, &me)?;
            match rustix::io::read(&permission, &mut [0_u8])? {
                1 => Ok(()),
                _ => Err(rustix::io::Errno::CANCELED.into()),
            }
        });
        // Starting ends with exec, which waits for `prepare`.
        let starting = Aside::begin(move || command.spawn())?;
        let deadline = Instant::now() + BIRTH_LIMIT;
        let watched = [announced.as_fd(), starting.ended().fd()];
        wait(&watched, &Stop::never(), deadline);
        let mut number = [0; 4];
        let pid = match starting.take() {
            None if rustix::io::read(&announced, &mut number) == Ok(4) => {
                Pid::from_ne_bytes(number)
            }
            None => return Err(internal("start the command", &rustix::io::Errno::TIMEDOUT.into())),
            Some(failed) => return Err(not_started(&program, failed.err())),
        };
        let group = process::Pid::from_raw(pid).expect("a process has a number");
        let job = Job { group, terminal, signals };
        match prepare(pid) {
            Ok(()) => drop(rustix::io::write(&permit, &[1])),
            Err(failure) => {
                drop(permit);
                wait(&[starting.ended().fd()], &Stop::never(), deadline);
                job.take_terminal_back();
                return Err(failure);
            }
        }
        wait(&[starting.ended().fd()], &Stop::never(), deadline);
        match starting.take() {
            Some(Ok(_)) => Ok(job),
            failed => {
                job.take_terminal_back();
                Err(not_started(&program, failed.and_then(std::result::Result::err)))
            }
        }
    }

    /// Waits until it has ended or the work is called off, and passes on signals meanwhile.
    pub fn attend(&mut self, stop: &Stop) -> Ending {
        // What made us wake is looked at again whenever anything wakes us.
        loop {
            match self.ask() {
                Some(Ended::For(ending)) => {
                    self.take_terminal_back();
                    return ending;
                }
                Some(Ended::Stopped) => self.stop_with_it(stop),
                None => {}
            }
            let far = Instant::now() + Duration::from_secs(24 * 60 * 60);
            if wait(&[self.signals.get_read().as_fd()], stop, far) == Woken::Stopped {
                return Ending::Running;
            }
            self.pass_on();
        }
    }

    /// Passes on what has come; tells whether we were continued.
    fn pass_on(&mut self) -> bool {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals.iter().filter(|signal| FORWARDED.contains(signal)) {
            if let Some(signal) = Signal::from_named_raw(*signal) {
                // It may have ended just now.
                let _ = process::kill_process_group(self.group, signal);
            }
        }
        signals.contains(&SIGCONT)
    }

    fn ask(&self) -> Option<Ended> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let status = process::waitid(WaitId::Pid(self.group), options).ok()??;
        if status.stopped() {
            // Who stops it by SIGSTOP has something else in mind than job control.
            let signal = status.stopping_signal();
            return (signal != Some(Signal::STOP.as_raw())).then_some(Ended::Stopped);
        }
        Some(Ended::For(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ending::Exited(code as u8),
            (None, signal) => Ending::Killed(signal.unwrap_or(0)),
        }))
    }

    /// Ctrl-Z: whoever called us is to notice, and to continue us and with us the command.
    fn stop_with_it(&mut self, stop: &Stop) {
        if self.terminal.is_none() {
            return;
        }
        self.take_terminal_back();
        // It stops this process too; a SIGCONT is what goes on with it.
        let _ = process::kill_current_process_group(Signal::TSTP);
        let deadline = Instant::now() + CONTINUE_LIMIT;
        while wait(&[self.signals.get_read().as_fd()], stop, deadline) == Woken::Event {
            if self.pass_on() {
                break;
            }
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|terminal| terminal.is_ours()) {
            // Without it, the command is stopped again at once.
            let _ = give(terminal.device.as_fd(), self.group);
        }
        if stop.check().is_ok() {
            let _ = process::kill_process_group(self.group, Signal::CONT);
        }
    }

    fn take_terminal_back(&self) {
        if let Some(terminal) = &self.terminal
            && tcgetpgrp(&terminal.device) == Ok(self.group)
        {
            // Without it, whoever called us takes it anyway.
            let _ = give(terminal.device.as_fd(), process::getpgrp());
        }
    }
}

enum Ended {
    For(Ending),
    Stopped,
}

/// The terminal that we are called from.
struct Terminal {
    device: OwnedFd,
}

impl Terminal {
    fn open() -> Option<Terminal> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        let device = rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()?;
        Some(Terminal { device })
    }

    /// Whether we are in its foreground.
    fn is_ours(&self) -> bool {
        tcgetpgrp(&self.device) == Ok(process::getpgrp())
    }
}

/// Makes a process group the terminal's foreground. From the background the kernel would stop us
/// for it (SIGTTOU), so that signal is held off meanwhile. Async-signal-safe.
fn give(terminal: BorrowedFd, group: process::Pid) -> rustix::io::Result<()> {
    // SAFETY: both sets are initialised by the calls that take them first, and only this thread's
    // mask is changed.
    #[expect(unsafe_code, reason = "no safe crate of ours sets a thread's signal mask")]
    unsafe {
        let mut held_off = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigemptyset(&mut held_off);
        libc::sigaddset(&mut held_off, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &held_off, &mut before);
        let given = tcsetpgrp(terminal, group);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        given
    }
}

/// Takes over the signals of the process; those that are ignored (`nohup`) stay so.
fn signals() -> std::io::Result<SignalDelivery<UnixStream, SignalOnly>> {
    let (read, write) = UnixStream::pair()?;
    let wanted = FORWARDED.into_iter().filter(|signal| !super::wait::is_ignored(*signal));
    SignalDelivery::with_pipe(read, write, SignalOnly, wanted.chain([SIGCHLD, SIGCONT]))
}

fn internal(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("cannot {what}: {error}"))
}

fn not_started(program: &str, error: Option<std::io::Error>) -> Failure {
    use std::io::ErrorKind;
    match error {
        Some(e) if e.kind() == ErrorKind::NotFound => {
            Failure::new(Code::CommandNotFound, format!("`{program}` is not there"))
                .hint("give its path, or install it; a shell's own words need `sh -c`")
        }
        Some(e) => {
            Failure::new(Code::NotExecutable, format!("`{program}` cannot be executed: {e}"))
        }
        None => Failure::new(Code::Internal, format!("`{program}` does not start")),
    }
}
