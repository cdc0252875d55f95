//! Shell commands that outlive gpuctl, in a systemd scope of their own if one can be made.

use super::{describe, detach, kill_group, new, not_started, shell};
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::world::scope::Scope;
use crate::world::wait::{Stop, Woken, wait};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long systemd may take to make a scope; it usually takes milliseconds.
const SCOPE_LIMIT: Duration = Duration::from_secs(5);

/// Shell script that reads the command from the socket on its stdin, writes a newline there as
/// confirmation, and becomes the shell that runs the command. Some versions of systemd-run replace
/// variables in their arguments, which is why the script has no `$` and the command is not passed
/// as an argument.
const RELAY: &str = "exec /bin/sh -c \"`cat && echo >&0`\" </dev/null 2>&1";

/// A shell command that outlives gpuctl. It has a session of its own, no input, its output in
/// `log`, and none of the descriptors that gpuctl was given, so that `$(gpuctl start x)` returns.
pub struct Detached<'a> {
    pub text: &'a str,
    pub env: &'a BTreeMap<String, String>,
    /// Variables in gpuctl's environment that the command must not inherit.
    pub without: &'a [&'a str],
    pub cwd: Option<&'a Path>,
    pub log: &'a File,
}

impl Detached<'_> {
    /// Starts the command without a scope.
    pub fn start(&self) -> Result<Child> {
        let mut command = shell(self.text, self.env, self.cwd);
        command.stderr(self.log()?);
        self.spawn(command, "sh")
    }

    /// Starts the command in a scope. `None` if the scope could not be made: then the command has
    /// not run and never will. Fails if `stop` calls the start off, or if the scope came too late
    /// and the command, which had begun by then, was killed.
    pub fn start_in(&self, scope: &Scope, stop: &Stop) -> Result<Option<Child>> {
        let pair = UnixStream::pair().map_err(|e| {
            Failure::new(Code::Internal, format!("cannot make a pair of sockets: {e}"))
        });
        let (mut ours, theirs) = pair?;
        let mut command = new("systemd-run");
        command.args(scope.arguments()).args(["/bin/sh", "-c", RELAY]);
        command.envs(scope.variable()).envs(self.env);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        // What systemd-run reports about itself does not belong in the service's log.
        command.stdin(OwnedFd::from(theirs)).stderr(Stdio::null());
        let mut child = match self.spawn(command, "systemd-run") {
            Ok(child) => child,
            Err(failure) => {
                log::debug!("no scope {}: {}", scope.name, failure.message);
                return Ok(None);
            }
        };
        let woken = match offer(&mut ours, self.text) {
            Ok(()) => wait(&[ours.as_fd()], stop, Instant::now() + SCOPE_LIMIT),
            Err(_) => Woken::TimedOut,
        };
        if woken == Woken::Event && is_taken(&mut ours) {
            return Ok(Some(child));
        }
        // A killed command cannot begin any more; whether it had begun is known afterwards.
        kill_group(&child);
        let status = child.wait().map_err(|e| {
            Failure::new(Code::Internal, format!("cannot wait for `systemd-run`: {e}"))
        })?;
        if is_taken(&mut ours) {
            let message = format!("systemd took longer than {} to make a scope", Span(SCOPE_LIMIT));
            return Err(Failure::new(Code::StartFailed, message)
                .hint("what had begun by then was ended; run the command again"));
        }
        stop.check()?;
        log::debug!("no scope {}: `systemd-run` {}", scope.name, describe(status));
        Ok(None)
    }

    fn log(&self) -> Result<File> {
        let twice = self.log.try_clone();
        twice.map_err(|e| Failure::new(Code::Io, format!("cannot open the log a second time: {e}")))
    }

    fn spawn(&self, mut command: Command, program: &str) -> Result<Child> {
        for name in self.without {
            command.env_remove(name);
        }
        command.stdout(self.log()?);
        detach(&mut command);
        command.spawn().map_err(|e| not_started(program, &command, &e))
    }
}

/// Writes the whole command to the socket without waiting for a reader.
fn offer(socket: &mut UnixStream, text: &str) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.write_all(text.as_bytes())?;
    socket.shutdown(Shutdown::Write)
}

/// Reports whether the command has been read completely and is about to run.
fn is_taken(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::wait::Event;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// Starts a command with this script as `systemd-run`, or without any `systemd-run`. Returns
    /// the command's exit code, if it began, and the log.
    fn start(systemd_run: Option<&str>, text: &str, stop: &Stop) -> (Result<Option<i32>>, String) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some(script) = systemd_run {
            let file = folder.path().join("systemd-run");
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
            // A script cannot be executed while another thread's child still has it open for
            // writing.
            while let Err(e) = new(&file.to_string_lossy()).arg("--probe").status() {
                assert_eq!(e.kind(), std::io::ErrorKind::ExecutableFileBusy, "{e}");
            }
        }
        let path = match systemd_run {
            Some(_) => format!("{}:/usr/bin:/bin", folder.path().display()),
            None => folder.path().display().to_string(),
        };
        let env = BTreeMap::from([("PATH".to_owned(), path)]);
        let log_path = folder.path().join("log");
        let log = File::options().create(true).append(true).open(&log_path).expect("a log");
        let detached = Detached { text, env: &env, without: &[], cwd: None, log: &log };
        let child = detached.start_in(&Scope::of_test("gpuctl-a-1.scope"), stop);
        let ended = child.map(|child| {
            child.and_then(|mut child| child.wait().expect("the end of a child").code())
        });
        (ended, fs::read_to_string(log_path).expect("a log"))
    }

    const OBLIGING: &str =
        "[ \"$1\" = --probe ] && exit; while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"";

    #[test]
    fn what_is_run_in_a_scope_is_the_command_to_the_letter() {
        let text = "printf '%s|' \"$0\" \"${PATH##*:}\" '$x \"`' \\\\; echo err >&2; cat; exit 3\n";
        let (ended, log) = start(Some(OBLIGING), text, &Stop::never());
        assert_eq!(ended.expect("no failure"), Some(3));
        assert_eq!(log, "/bin/sh|/bin|$x \"`|\\|err\n");
    }

    #[test]
    fn a_command_does_not_run_where_no_scope_can_be_made() {
        let refusing = "[ \"$1\" = --probe ] && exit; echo no >&2; exit 1";
        for systemd_run in [Some(refusing), None] {
            let (ended, log) = start(systemd_run, "echo ran", &Stop::never());
            assert_eq!(ended.expect("no failure"), None);
            assert_eq!(log, "", "with {systemd_run:?}");
        }
    }

    #[test]
    fn a_command_does_not_run_once_it_is_called_off() {
        let hanging = "[ \"$1\" = --probe ] && exit; exec sleep 60";
        let event = Event::new().expect("an event");
        event.set();
        let (ended, log) = start(Some(hanging), "echo ran", &Stop::never().or(&event));
        assert_eq!(log, "");
        assert_eq!(ended.ok().flatten(), None);
    }
}
