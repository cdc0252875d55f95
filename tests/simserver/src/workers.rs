//! Processes that hold the memory in the server's place, as vLLM's engine workers do: children in
//! its process group, or nobody's children in sessions of their own. Each is a `simserver` without
//! a port.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::args::Args;

/// The worker processes that are children of the server.
#[derive(Default)]
pub struct Workers {
    /// The children, which are not reaped before the server ends, so that no other process gets
    /// their PIDs.
    children: Vec<Child>,
}

/// The standard output of a worker, where it says that it is ready.
pub struct Word(ChildStdout);

impl Workers {
    /// Starts the workers that `--fork` or `--double-fork` asks for. Each `Word` is where one of
    /// them says that it is ready.
    pub fn spawn(args: &Args) -> io::Result<(Self, Vec<Word>)> {
        let count = args.processes.fork.unwrap_or(args.processes.double_fork.into());
        let mut workers = Self::default();
        let mut words = Vec::new();
        for _ in 0..count {
            let mut child =
                command(args, args.memory.vram / count)?.stdout(Stdio::piped()).spawn()?;
            words.extend(child.stdout.take().map(Word));
            if args.processes.double_fork {
                child.wait()?;
            } else {
                workers.children.push(child);
            }
        }
        Ok((workers, words))
    }

    /// Asks the children to end, as a server does that is itself asked to end. The orphans of
    /// `--double-fork` are beyond its reach.
    pub fn terminate(&self) {
        for child in &self.children {
            kill_process(Pid::from_child(child), Signal::TERM).ok();
        }
    }
}

/// Starts a child that holds a model, and waits until it does. Fails if the child ends instead.
pub fn hold(args: &Args, model: &str, mb: u64) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--name", &format!("{}-{model}", args.name), "--vram", &mb.to_string()]);
    command.args(["--device", &args.memory.device.to_string()]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let came = child.stdout.take().is_some_and(|word| Word(word).came());
    came.then_some(child).ok_or_else(|| io::Error::other("a model could not be loaded"))
}

/// Asks a child to end, and waits until it has ended.
pub fn end(mut child: Child) -> io::Result<()> {
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    child.wait().map(drop)
}

impl Word {
    /// Waits until the worker holds its memory. Returns false if the worker ended instead.
    pub fn came(self) -> bool {
        BufReader::new(self.0).read_line(&mut String::new()).is_ok_and(|length| length > 0)
    }
}

fn command(args: &Args, vram: u64) -> io::Result<Command> {
    let name = args.processes.worker_name.as_ref().unwrap_or(&args.name);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--name", name]);
    command.args(["--vram", &vram.to_string(), "--steps", &args.memory.steps.to_string()]);
    command.args(["--device", &args.memory.device.to_string()]);
    command.args(["--warmup", &humantime::format_duration(args.warmup).to_string()]);
    let flags = [
        ("--graphics", args.memory.graphics),
        ("--ignore-term", args.misbehaviour.ignore_term),
        ("--daemonise", args.processes.double_fork),
    ];
    command.args(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag));
    command.stdin(Stdio::null());
    Ok(command)
}
