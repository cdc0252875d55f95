//! A command in the foreground, run as a shell runs one: in a process group of its own that is
//! given the terminal, so that Ctrl-C and Ctrl-Z reach the command, and pagers and shells work.

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

/// How long a new process may take to report its PID, and later to execute its program. It does
/// both at once unless it is stuck in the kernel.
const BIRTH_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for a SIGCONT after gpuctl has sent itself a SIGTSTP. By then it has been
/// stopped, or will not be: the kernel does not stop a process that nobody can continue.
const CONTINUE_LIMIT: Duration = Duration::from_millis(200);

/// Signals from people and other programs that gpuctl passes on to the command. If the command
/// stops because of one, gpuctl stops with it.
const FORWARDED: [i32; 8] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP];

/// A command in the foreground that is running.
pub struct Job {
    group: process::Pid,
    terminal: Option<ControllingTerminal>,
    signals: SignalDelivery<UnixStream, SignalOnly>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(u8),
    Killed(i32),
    /// Ended by Ctrl-C, as far as the shell that called gpuctl is concerned.
    Interrupted,
}

impl Ending {
    /// Returns the exit code with which a shell would report this ending.
    pub fn answer(self) -> Answer {
        match self {
            Ending::Exited(code) => Answer::Passed(code),
            Ending::Killed(signal) => Answer::Passed(128_u8.wrapping_add(signal as u8)),
            Ending::Interrupted => Answer::Interrupted,
        }
    }
}

/// Fails if a program does not exist or is not executable, as starting it would. `path` is the list
/// of folders to search.
pub fn could_start(program: &OsStr, path: Option<&OsStr>) -> Result<()> {
    program::find(program, Path::new(""), path).map(drop).map_err(told_of_shells)
}

/// Adds a hint about shells to the failure for a missing command: a person may have typed a shell
/// built-in.
fn told_of_shells(failure: Failure) -> Failure {
    match failure.code {
        Code::CommandNotFound => failure.hint("shell built-ins need `sh -c`"),
        _ => failure,
    }
}

impl Job {
    /// Starts a program that inherits the descriptor `keeps`. While `prepare` runs with its PID,
    /// the process exists but does nothing; it never runs the program if `prepare` fails or gpuctl
    /// dies.
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
            // Signals to the new process are its own from the start; gpuctl's handlers would
            // swallow them.
            ours.iter().flatten().for_each(|signal| set_action(*signal, libc::SIG_DFL));
            set_action(signal_hook::consts::SIGXFSZ, libc::SIG_DFL);
            process::setpgid(None, None)?;
            // SAFETY: this is a copy of gpuctl's end of the pipe, which would keep this process
            // from seeing that gpuctl is gone; nothing else in this process uses it.
            #[expect(unsafe_code, reason = "the owner of that number is in another process")]
            unsafe {
                rustix::io::close(parents_end)
            };
            let me = process::getpid().as_raw_pid().to_ne_bytes();
            rustix::io::write(&announce, &me)?;
            if rustix::io::read(&permission, &mut [0_u8])? != 1 {
                // Not returned as an error, which the standard library would report to a gpuctl
                // that is gone.
                // SAFETY: a plain system call.
                #[expect(unsafe_code, reason = "only main may end gpuctl, and this is not gpuctl")]
                unsafe {
                    libc::_exit(1)
                };
            }
            // Not before this point: until then Ctrl-C and Ctrl-Z are for gpuctl. If the terminal
            // cannot be handed over, the command runs without it.
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
        // Twice: a signal may have stopped gpuctl until the limit was over, and the new process
        // with it.
        for _ in 0..2 {
            wait(&[starting.ended().fd()], &Stop::never(), limit());
        }
        let started = starting.take();
        if started.is_none() {
            // The command must not begin later, when the lock may be another's.
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

    /// Waits until the command has ended, and passes on signals meanwhile. `None` if `stop` calls
    /// the wait off first: the command is still running then.
    pub fn attend(&mut self, stop: &Stop) -> Option<Ending> {
        // Every wake-up looks at everything again, whatever its cause.
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

    /// Passes the signals that have arrived on to the command; reports whether gpuctl has been
    /// continued (SIGCONT).
    fn pass_on(&mut self) -> bool {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals.iter().filter(|signal| FORWARDED.contains(signal)) {
            if let Some(signal) = Signal::from_named_raw(*signal) {
                // The command may have ended just now.
                let _ = process::kill_process_group(self.group, signal);
            }
        }
        signals.contains(&SIGCONT)
    }

    fn ask(&self) -> Option<Ended> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let status = process::waitid(WaitId::Pid(self.group), options).ok()??;
        if status.stopped() {
            // A sender of SIGSTOP has something else in mind than job control; gpuctl goes on.
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
                // Without gpuctl, the key would have signalled the script that called it as well.
                if let Some(signal) = Signal::from_named_raw(signal).filter(|_| had_terminal) {
                    let _ = process::kill_current_process_group(signal);
                }
                if signal == SIGINT { Ending::Interrupted } else { ending }
            }
            _ => ending,
        }
    }

    fn stopped(&mut self, signal: i32, stop: &Stop) {
        // The command wants the terminal, which is gpuctl's to give.
        let wants_terminal = matches!(signal, SIGTTIN | SIGTTOU);
        if wants_terminal && self.terminal.as_ref().is_some_and(|at| at.lend(self.group)) {
            let _ = process::kill_process_group(self.group, Signal::CONT);
        } else if self.terminal.is_some() {
            self.stop_with_it();
            self.go_on(stop);
        }
    }

    /// Stops gpuctl after Ctrl-Z has stopped the command, so that gpuctl's caller notices, and can
    /// continue both. Returns when gpuctl has been continued, or could not be stopped.
    fn stop_with_it(&mut self) {
        self.take_terminal_back();
        // This stops gpuctl too; a SIGCONT lets it go on here.
        stop_own_group();
        let deadline = Instant::now() + CONTINUE_LIMIT;
        let never = Stop::never();
        while wait(&[self.signals.get_read().as_fd()], &never, deadline) == Woken::Event {
            if self.pass_on() {
                break;
            }
        }
    }

    /// Continues the command after gpuctl has been continued, and gives it the terminal if it is to
    /// have that.
    fn go_on(&self, stop: &Stop) {
        if let Some(terminal) = self.terminal.as_ref().filter(|at| at.is_the_commands) {
            terminal.lend(self.group);
        }
        if stop.check().is_ok() {
            let _ = process::kill_process_group(self.group, Signal::CONT);
        }
    }

    /// Takes the terminal back from the command; reports whether the command had it.
    fn take_terminal_back(&self) -> bool {
        match &self.terminal {
            Some(terminal) if tcgetpgrp(&terminal.device) == Ok(self.group) => {
                // If this fails, gpuctl's caller takes the terminal anyway.
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

/// The terminal that gpuctl was called from.
struct ControllingTerminal {
    device: OwnedFd,
    /// Whether the command gets the terminal whenever gpuctl has it, not only when it asks for it.
    /// This is false in a pipeline (`| less`), where others use the terminal too, and without a
    /// terminal as input, as in a script's background jobs.
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

    /// Reports whether gpuctl's process group is in the terminal's foreground.
    fn is_ours(&self) -> bool {
        is_foreground(own_group(), &self.device)
    }

    /// Puts the command's group into the terminal's foreground if gpuctl's own group was there;
    /// reports whether it did.
    fn lend(&self, group: process::Pid) -> bool {
        self.is_ours() && tcsetpgrp(&self.device, group).is_ok()
    }
}

/// Stops gpuctl's whole process group as Ctrl-Z does, provided that somebody can continue it.
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

/// Sets what a signal does: its default action or nothing. Async-signal-safe.
fn set_action(signal: i32, action: libc::sighandler_t) {
    // SAFETY: a plain system call, and neither action is a function.
    #[expect(unsafe_code, reason = "no crate of ours sets a signal's action")]
    unsafe {
        libc::signal(signal, action)
    };
}

/// Takes over the signals of this process; those that are ignored (nohup(1)) stay so.
fn signals() -> std::io::Result<SignalDelivery<UnixStream, SignalOnly>> {
    let (read, write) = UnixStream::pair()?;
    let wanted = FORWARDED.into_iter().filter(|signal| !is_ignored(*signal));
    // In the background, the kernel would otherwise stop gpuctl for changing the terminal, or for
    // printing a line on it (`stty tostop`).
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
