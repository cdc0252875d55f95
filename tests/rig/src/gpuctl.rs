//! Running gpuctl, or a shell that calls it, in the rig's environment and with nothing of the
//! tester's.

use crate::outcome::Outcome;
use crate::processes;
use crate::skip::MACHINES_CONFIGURATION;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest time that an invocation may take; then it is killed, and the test fails.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);
/// How long an invocation's output may stay open after gpuctl has ended. A process that keeps it
/// open longer has inherited it, and the test fails.
const INHERITANCE_LIMIT: Duration = Duration::from_secs(10);

/// A command line that has not been started yet.
#[must_use = "nothing runs before `run` or `spawn`"]
pub struct Invocation {
    command: Command,
}

impl Invocation {
    pub fn new(command: Command) -> Invocation {
        Invocation { command }
    }

    /// Adds an argument, which may hold spaces.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable; fails the test if gpuctl would then use the machine's own
    /// configuration.
    #[track_caller]
    pub fn env_remove(mut self, name: &str) -> Self {
        let would_act = name == "GPUCTL_CONFIG" && Path::new(MACHINES_CONFIGURATION).exists();
        assert!(!would_act, "gpuctl would act on the machine's services: `unconfigured_or_skip`");
        self.command.env_remove(name);
        self
    }

    /// Runs the command to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Starts the command, which runs beside the test and is killed when the `Running` is dropped.
    /// It has a process group of its own: in the foreground of the tester's terminal, `gpuctl run`
    /// would give that terminal to its command.
    pub fn spawn(mut self) -> Running {
        let text = format!("{:?}", self.command.get_args().collect::<Vec<_>>());
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        Running {
            stdout: Stream::read(child.stdout.take().unwrap()),
            stderr: Stream::read(child.stderr.take().unwrap()),
            child,
            text,
        }
    }
}

/// An invocation that has been started, and its output so far.
pub struct Running {
    child: Child,
    stdout: Stream,
    stderr: Stream,
    text: String,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }

    /// Returns what the command has printed on stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Returns what the command has printed on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until the command has ended; fails the test if it takes longer than `TIME_LIMIT`, or
    /// if it leaves its output to another process.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let Some(status) = self.ended() else {
            self.child.kill().ok();
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            panic!("{} took longer than {TIME_LIMIT:?}; it said:\n{stdout}\n{stderr}", self.text);
        };
        let deadline = Instant::now() + INHERITANCE_LIMIT;
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            while !stream.reader.is_finished() {
                assert!(Instant::now() < deadline, "{} left its {name} to a process", self.text);
                thread::sleep(Duration::from_millis(5));
            }
        }
        let output = Output { status, stdout: self.stdout.bytes(), stderr: self.stderr.bytes() };
        Outcome::new(&self.text, output)
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + TIME_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A pipe that a thread reads as it fills.
struct Stream {
    read: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Stream {
        let read = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&read);
        let reader = thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut part) {
                sink.lock().unwrap().extend(&part[..count]);
            }
        });
        Stream { read, reader }
    }

    fn bytes(&self) -> Vec<u8> {
        self.read.lock().unwrap().clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}
