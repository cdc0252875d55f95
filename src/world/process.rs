//! A single process: its identity, whether it is alive, and what /proc shows of it on demand, such
//! as its arguments and its environment.

pub mod place;
mod table;

pub use place::{
    container_of, control_groups, depth, has_address, is_in_container, is_within,
    listens_in_network, unit_of,
};
pub use table::{ProcessTable, mains_in};

use super::clock::SinceBoot;
use crate::model::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// Identity of exactly one process: a PID may be given to a later process, but not together with
/// the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    pub pid: Pid,
    /// Start time of the process in clock ticks since boot, as in /proc/PID/stat.
    #[serde(rename = "pid_start")]
    pub start: u64,
}

impl Id {
    /// Returns the identity of the process that has this PID now, or `None` if there is none or it
    /// may not be inspected.
    pub fn of(pid: Pid) -> Option<Id> {
        Some(Id { pid, start: read_stat(pid)?.ticks })
    }

    /// Reports whether the process is still running. If /proc hides the process that has this PID,
    /// it counts as alive.
    pub fn is_alive(self) -> bool {
        match read_stat(self.pid) {
            Some(process) => process.ticks == self.start && !process.is_dead(),
            None => is_hidden(self.pid),
        }
    }
}

/// A process as /proc/PID/stat describes it.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
    /// The kernel's letter for the state: R, S, D, T (stopped), Z (zombie), …
    pub state: char,
    pub started: SinceBoot,
    /// Start time in clock ticks since boot; together with the PID, it identifies a process for
    /// good.
    pub ticks: u64,
    /// Name of the program, of which the kernel keeps only 15 bytes.
    pub name: String,
    /// Whether this is a kernel thread, which runs no program.
    pub is_kernel: bool,
    pub threads: u64,
}

/// Bit that marks a kernel thread in the flags of /proc/PID/stat (`PF_KTHREAD` in the kernel's
/// sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

impl Process {
    /// Returns the identity that no later process with the same PID shares.
    pub fn id(&self) -> Id {
        Id { pid: self.pid, start: self.ticks }
    }

    /// Reports whether the process is a zombie without other threads: it holds nothing any more and
    /// cannot be ended.
    fn is_dead(&self) -> bool {
        // Its first thread may have ended before the others.
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// Reports whether the process is stopped by a signal or a debugger.
    pub fn is_suspended(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Reads the process that has this PID, even if it is a zombie or a kernel thread. `None` if
    /// there is none or it may not be inspected.
    pub fn of(pid: Pid) -> Option<Process> {
        read_stat(pid)
    }

    /// Parses the text of /proc/PID/stat; `None` if it is not of that form.
    pub fn parse(pid: Pid, text: &str, ticks_per_second: u64) -> Option<Process> {
        // The name stands in parentheses and may itself hold any character.
        let (before, after) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let ticks = number(19)?;
        Some(Process {
            pid,
            parent: number(1)? as Pid,
            group: number(2)? as Pid,
            session: number(3)? as Pid,
            state: fields.first()?.chars().next()?,
            started: SinceBoot::after_boot(
                Duration::from_secs(ticks / ticks_per_second)
                    + Duration::from_millis(ticks % ticks_per_second * 1000 / ticks_per_second),
            ),
            ticks,
            name: before.split_once('(')?.1.to_owned(),
            is_kernel: number(6)? & KERNEL_THREAD != 0,
            threads: number(17)?,
        })
    }
}

/// Reports whether a process is stopped by a signal or a debugger; `false` if it may not be
/// inspected.
pub fn is_suspended(pid: Pid) -> bool {
    read_stat(pid).is_some_and(|process| process.is_suspended())
}

fn read_stat(pid: Pid) -> Option<Process> {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Process::parse(pid, &text_of(pid, "stat")?, ticks_per_second)
}

/// Reads one of a process's files in /proc, with invalid UTF-8 replaced: the kernel cuts a name
/// after 15 bytes, even in the middle of a character.
fn text_of(pid: Pid, file: &str) -> Option<String> {
    let bytes = read(pid, file).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file of /proc/PID in a single call: a process that ends or executes a program between
/// two reads would show only a part. If the first thread has ended before the others and left the
/// file empty, the file of another thread is read.
fn read(pid: Pid, file: &str) -> std::io::Result<Vec<u8>> {
    let text = read_file(&format!("/proc/{pid}/{file}"));
    match &text {
        Ok(text) if text.is_empty() => {}
        _ => return text,
    }
    match second_thread(pid) {
        Some(thread) => read_file(&format!("/proc/{pid}/task/{thread}/{file}")),
        None => text,
    }
}

fn read_file(path: &str) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut text = vec![0; 8 * 1024];
    loop {
        let count = file.read_at(&mut text, 0)?;
        if count < text.len() {
            text.truncate(count);
            return Ok(text);
        }
        text.resize(4 * count, 0);
    }
}

/// Returns a thread of a process other than its first one, or `None` if there is no other.
fn second_thread(pid: Pid) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|tid| *tid != pid)
}

/// Returns the folder in /proc that lists a process's open descriptors. If the first thread has
/// ended, the folder belongs to another thread, which still has them.
pub fn descriptors(process: &Process) -> PathBuf {
    let pid = process.pid;
    let is_half_dead = matches!(process.state, 'Z' | 'X');
    match is_half_dead.then(|| second_thread(pid)).flatten() {
        Some(thread) => PathBuf::from(format!("/proc/{pid}/task/{thread}/fd")),
        None => PathBuf::from(format!("/proc/{pid}/fd")),
    }
}

/// Reports whether this process is permitted to see the environment and the open files of
/// `process`.
pub fn is_readable(process: &Process) -> bool {
    let looked = fs::read_dir(descriptors(process));
    !looked.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Reports whether a process exists that this process may not signal; this tells a process that
/// /proc hides from one that is gone.
pub fn is_hidden(pid: Pid) -> bool {
    rustix::process::Pid::from_raw(pid)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::PERM))
}

/// Reports whether a process is gone or ending: it is a zombie, has given up its memory or has been
/// sent SIGKILL, and the kernel is taking what it still holds. A process that may not be inspected
/// counts as alive.
pub fn is_ending(pid: Pid) -> bool {
    match read_stat(pid) {
        Some(process) if process.is_dead() => true,
        // A kernel thread has no arguments, but is not ending.
        Some(process) if process.is_kernel => false,
        // A process that has given up its memory has given up its arguments with it.
        Some(_) => {
            read(pid, "cmdline").is_ok_and(|text| text.is_empty())
                || text_of(pid, "status").is_some_and(|status| awaits_kill(&status))
        }
        None => rustix::process::Pid::from_raw(pid).is_some_and(|pid| {
            rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
        }),
    }
}

/// Reports whether SIGKILL has been sent but not yet handled, from the text of /proc/PID/status.
fn awaits_kill(status: &str) -> bool {
    const KILL: u64 = 1 << (signal_hook::consts::SIGKILL - 1);
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & KILL != 0)
}

/// Returns the arguments of a process; empty for a kernel thread and a process that may not be
/// inspected.
pub fn arguments(pid: Pid) -> Vec<String> {
    words(&read(pid, "cmdline").unwrap_or_default())
}

/// Parses the arguments in the text of /proc/PID/cmdline.
pub fn words(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns the working directory of a process, or `None` if it may not be inspected.
pub fn folder(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Returns the values of these variables in the environment that a process was started with; all
/// are `None` if it may not be inspected.
pub fn variables<const N: usize>(pid: Pid, names: [&str; N]) -> [Option<String>; N] {
    values(&read(pid, "environ").unwrap_or_default(), names)
}

/// Returns the values of these variables in the text of /proc/PID/environ, each `None` if it is not
/// set there.
pub fn values<const N: usize>(environment: &[u8], names: [&str; N]) -> [Option<String>; N] {
    let mut values = [const { None }; N];
    for entry in environment.split(|byte| *byte == 0) {
        for (name, value) in names.iter().zip(&mut values) {
            if let Some(rest) = entry.strip_prefix(name.as_bytes())
                && let Some(text) = rest.strip_prefix(b"=")
            {
                *value = Some(String::from_utf8_lossy(text).into_owned());
            }
        }
    }
    values
}

/// Reports whether a process runs the same program file as this process, by the file's path.
pub fn is_same_program(pid: Pid) -> bool {
    let identity = |pid: &str| {
        let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some(link.as_os_str().as_bytes().to_owned())
    };
    identity(&pid.to_string()).is_some_and(|theirs| Some(theirs) == identity("self"))
}
