//! A command in the foreground, as a shell runs one: in a process group of its own that is given
//! the terminal, so that Ctrl-C and Ctrl-Z are for the command, and pagers and shells work.

use super::command;
use super::program;
use super::terminal::{is_foreground, own_group};
use super::wait::{Aside, Stop, Woken, is_ignored, wait};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::Pid;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{self, Signal, WaitId, WaitIdOptions};
use rustix::termios::{isatty, tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
    SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A new process says its number at once; one that does not is stuck in the kernel.
const BIRTH_LIMIT: Duration = Duration::from_secs(10);

/// We have stopped within this time, or will not: where nobody can continue us, the kernel does not stop us.
const CONTINUE_LIMIT: Duration = Duration::from_millis(200);

/// These signals, which people and other programs send gpuctl, are passed on to the command; where it stops for that,
/// we stop with it.
const FORWARDED: [i32; 8] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP];

pub struct Job {
    group: process::Pid,
    terminal: Option<ControllingTerminal>,
    signals: SignalDelivery<UnixStream, SignalOnly>,
}

/// A command ends in one of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(u8),
    Killed(i32),
    /// It was ended by Ctrl-C, as far as the shell that called us is concerned.
    Interrupted,
}

impl Ending {
    /// Gives the exit code as a shell tells it.
    pub fn answer(self) -> Answer {
        match self {
            Ending::Exited(code) => Answer::Passed(code),
            Ending::Killed(signal) => Answer::Passed(128_u8.wrapping_add(signal as u8)),
            Ending::Interrupted => Answer::Interrupted,
        }
    }
}

/// Fails as starting a program would that is not there or not executable.
pub fn could_start(program: &OsStr, path: Option<&OsStr>) -> Result<()> {
    program::find(program, Path::new(""), path).map(drop).map_err(told_of_shells)
}

/// Adds a hint about shells: a person may type a shell's own word.
fn told_of_shells(failure: Failure) -> Failure {
    match failure.code {
        Code::CommandNotFound => failure.hint("shell built-ins need `sh -c`"),
        _ => failure,
    }
}

impl Job {
    /// Starts a program, which inherits the descriptor that it `keeps`. It is there, with its
    /// number, but does nothing yet while `prepare` runs, and never does anything where that fails
    /// or gpuctl dies.
    pub fn start(
        words: &[OsString],
        variables: &[(&str, &OsStr)],
        keeps: BorrowedFd,
        prepare: impl FnOnce(Pid) -> Result<()>,
    ) -> Result<Job> {
        let signals = signals().map_err(|e| internal("handle signals", &e))?;
        let terminal = ControllingTerminal::open();
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| internal("make a pipe", &e.into()));
        let ((announced, announce), (permission, permit)) = (pipe()?, pipe()?);
        let program = words[0].to_string_lossy().into_owned();
        let mut command = command::foreground(words, variables);
        let shown = terminal
            .as_ref()
            .filter(|terminal| terminal.is_the_commands)
            .map(|terminal| terminal.device.try_clone())
            .transpose()
            .map_err(|e| internal("share the terminal", &e))?;
        let (parents_end, callers) = (permit.as_raw_fd(), own_group());
        let ours = FORWARDED.map(|signal| (!is_ignored(signal)).then_some(signal));
        let become_the_job = move || {
            // What is sent to it is its own from the start; our handlers would swallow it.
            ours.iter().flatten().for_each(|signal| set_action(*signal, libc::SIG_DFL));
            set_action(signal_hook::consts::SIGXFSZ, libc::SIG_DFL);
            process::setpgid(None, None)?;
            // SAFETY: a copy of gpuctl's end, which would keep this process from seeing that gpuctl
            // is gone; nothing else in this process uses it.
            #[expect(unsafe_code, reason = "the owner of that number is in another process")]
            unsafe {
                rustix::io::close(parents_end)
            };
            let me = process::getpid().as_raw_pid().to_ne_bytes();
            rustix::io::write(&announce, &me)?;
            if rustix::io::read(&permission, &mut [0_u8])? != 1 {
                // Not as an error, which the standard library would report to a gpuctl that is gone.
                // SAFETY: a plain system call.
                #[expect(unsafe_code, reason = "only main may end gpuctl, and this is not gpuctl")]
                unsafe {
                    libc::_exit(1)
                };
            }
            // Not before: until then Ctrl-C and Ctrl-Z are for gpuctl. Without it, it runs too.
            if let Some(terminal) = shown.as_ref().filter(|at| is_foreground(callers, at)) {
                let _ = tcsetpgrp(terminal, process::getpid());
            }
            set_action(SIGTTOU, libc::SIG_DFL);
            Ok(())
        };
        // SAFETY: plain system calls, on what was made before the fork; what it holds is freed by
        // neither exec nor exit.
        #[expect(unsafe_code, reason = "a job is made between fork and exec")]
        unsafe {
            command::before_exec(&mut command, become_the_job)
        };
        command::inherit(&mut command, keeps);
        // Starting ends with exec, which waits for `prepare`.
        let starting = Aside::begin(move || command.spawn())?;
        let limit = || Instant::now() + BIRTH_LIMIT;
        let watched = [announced.as_fd(), starting.ended().fd()];
        let is_born = wait(&watched, &Stop::never(), limit()) == Woken::Event;
        let stuck = || internal("start the command", &rustix::io::Errno::TIMEDOUT.into());
        let mut number = [0; 4];
        let pid = match starting.take() {
            None if is_born && rustix::io::read(&announced, &mut number) == Ok(4) => {
                Pid::from_ne_bytes(number)
            }
            None => return Err(stuck()),
            Some(failed) => return Err(not_started(&program, failed.err())),
        };
        let group = process::Pid::from_raw(pid).expect("a process has a number");
        let job = Job { group, terminal, signals };
        let prepared = prepare(pid);
        match prepared {
            Ok(()) => drop(rustix::io::write(&permit, &[1])),
            Err(_) => drop(permit),
        }
        // Twice: we may have been stopped by a signal until the limit was over, and it with us.
        for _ in 0..2 {
            wait(&[starting.ended().fd()], &Stop::never(), limit());
        }
        let started = starting.take();
        if started.is_none() {
            // It is not to begin later, when the lock is another's.
            let _ = process::kill_process_group(group, Signal::KILL);
        }
        let failure = match (prepared, started) {
            (Ok(()), Some(Ok(_))) => return Ok(job),
            (Ok(()), Some(Err(e))) => not_started(&program, Some(e)),
            (Ok(()), None) => stuck(),
            (Err(failure), _) => failure,
        };
        job.take_terminal_back();
        Err(failure)
    }

    /// Waits until it has ended or the work is called off, and passes on signals meanwhile. `None`
    /// where it was called off: it still runs.
    pub fn attend(&mut self, stop: &Stop) -> Option<Ending> {
        // What made us wake is looked at again whenever anything wakes us.
        loop {
            match self.ask() {
                Some(Ended::For(ending)) => return Some(self.ended(ending)),
                Some(Ended::Stopped(signal)) => {
                    self.stopped(signal, stop);
                    continue;
                }
                None => {}
            }
            let far = Instant::now() + Duration::from_secs(24 * 60 * 60);
            if wait(&[self.signals.get_read().as_fd()], stop, far) == Woken::Stopped {
                return None;
            }
            if self.pass_on() {
                self.go_on(stop);
            }
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
            let signal = status.stopping_signal()?;
            return (signal != Signal::STOP.as_raw()).then_some(Ended::Stopped(signal));
        }
        Some(Ended::For(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ending::Exited(code as u8),
            (None, signal) => Ending::Killed(signal.unwrap_or(0)),
        }))
    }

    fn ended(&self, ending: Ending) -> Ending {
        let had_terminal = self.take_terminal_back();
        let is_in_foreground = self.terminal.as_ref().is_some_and(ControllingTerminal::is_ours);
        match ending {
            Ending::Killed(signal @ (SIGINT | SIGQUIT)) if is_in_foreground => {
                // The keys would have told the script that called us too, had it not been for us.
                if let Some(signal) = Signal::from_named_raw(signal).filter(|_| had_terminal) {
                    let _ = process::kill_current_process_group(signal);
                }
                if signal == SIGINT { Ending::Interrupted } else { ending }
            }
            _ => ending,
        }
    }

    fn stopped(&mut self, signal: i32, stop: &Stop) {
        // It wants the terminal, and that is ours to give.
        let wants_terminal = matches!(signal, SIGTTIN | SIGTTOU);
        if wants_terminal && self.terminal.as_ref().is_some_and(|at| at.lend(self.group)) {
            let _ = process::kill_process_group(self.group, Signal::CONT);
        } else if self.terminal.is_some() {
            self.stop_with_it();
            self.go_on(stop);
        }
    }

    /// Ctrl-Z: whoever called us is to notice, and to continue us and with us the command.
    fn stop_with_it(&mut self) {
        self.take_terminal_back();
        // It stops this process too; a SIGCONT is what goes on with it.
        stop_own_group();
        let deadline = Instant::now() + CONTINUE_LIMIT;
        let never = Stop::never();
        while wait(&[self.signals.get_read().as_fd()], &never, deadline) == Woken::Event {
            if self.pass_on() {
                break;
            }
        }
    }

    /// We have been continued, and so is the command to be.
    fn go_on(&self, stop: &Stop) {
        if let Some(terminal) = self.terminal.as_ref().filter(|at| at.is_the_commands) {
            terminal.lend(self.group);
        }
        if stop.check().is_ok() {
            let _ = process::kill_process_group(self.group, Signal::CONT);
        }
    }

    /// Tells whether the command had it.
    fn take_terminal_back(&self) -> bool {
        match &self.terminal {
            Some(terminal) if tcgetpgrp(&terminal.device) == Ok(self.group) => {
                // Without it, whoever called us takes it anyway.
                if let Some(own) = own_group() {
                    let _ = tcsetpgrp(&terminal.device, own);
                }
                true
            }
            _ => false,
        }
    }
}

enum Ended {
    For(Ending),
    Stopped(i32),
}

/// The terminal that we are called from.
struct ControllingTerminal {
    device: OwnedFd,
    /// The command gets it whenever it is ours, not only when it asks for it. In a pipeline others
    /// use it beside the command (`| less`), and a script gives its background jobs no input.
    is_the_commands: bool,
}

impl ControllingTerminal {
    fn open() -> Option<ControllingTerminal> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        let device = rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()?;
        let output = rustix::fs::fstat(rustix::stdio::stdout()).ok()?;
        let is_pipe = FileType::from_raw_mode(output.st_mode) == FileType::Fifo;
        let is_the_commands = isatty(rustix::stdio::stdin()) && !is_pipe;
        Some(ControllingTerminal { device, is_the_commands })
    }

    /// Whether we are in its foreground.
    fn is_ours(&self) -> bool {
        is_foreground(own_group(), &self.device)
    }

    /// Makes the command's group its foreground, where that was ours; tells whether it was.
    fn lend(&self, group: process::Pid) -> bool {
        self.is_ours() && tcsetpgrp(&self.device, group).is_ok()
    }
}

/// Stops all of our group as Ctrl-Z does, where somebody can continue us.
pub fn stop_own_group() {
    // SAFETY: all three are plain system calls, on values that the first one fills in.
    #[expect(unsafe_code, reason = "no crate of ours sets and restores a signal's action")]
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(SIGTSTP, std::ptr::null(), &mut before);
        if before.sa_sigaction != libc::SIG_IGN {
            set_action(SIGTSTP, libc::SIG_DFL);
        }
        let _ = process::kill_current_process_group(Signal::TSTP);
        libc::sigaction(SIGTSTP, &before, std::ptr::null_mut());
    }
}

/// Async-signal-safe.
fn set_action(signal: i32, action: libc::sighandler_t) {
    // SAFETY: a plain system call, and neither action is a function.
    #[expect(unsafe_code, reason = "no crate of ours sets a signal's action")]
    unsafe {
        libc::signal(signal, action)
    };
}

/// Takes over the signals of the process; those that are ignored (`nohup`) stay so.
fn signals() -> std::io::Result<SignalDelivery<UnixStream, SignalOnly>> {
    let (read, write) = UnixStream::pair()?;
    let wanted = FORWARDED.into_iter().filter(|signal| !is_ignored(*signal));
    // From the background the kernel would stop us for changing the terminal, or for a line of ours
    // on it (`stty tostop`).
    set_action(SIGTTOU, libc::SIG_IGN);
    SignalDelivery::with_pipe(read, write, SignalOnly, wanted.chain([SIGCHLD, SIGCONT]))
}

fn internal(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("cannot {what}: {error}"))
}

fn not_started(program: &str, error: Option<std::io::Error>) -> Failure {
    match error {
        Some(e) => told_of_shells(program::not_started(program, &e)),
        None => Failure::new(Code::Internal, format!("`{program}` did not start")),
    }
}
