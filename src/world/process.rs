//! A process for good, and the process table as /proc shows it, read once per look: parents, groups, sessions, ages, and
//! on demand command lines, environments and control groups.

use super::host;
use crate::model::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

/// To look at so many processes takes longer than to begin a thread.
const MANY: usize = 64;

/// One process and no other: its number is given to a later one, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    pub pid: Pid,
    /// In clock ticks since boot, as /proc has it.
    #[serde(rename = "pid_start")]
    pub start: u64,
}

impl Id {
    /// The process of that number, where there is one.
    pub fn of(pid: Pid) -> Option<Id> {
        Some(Id { pid, start: read_stat(pid)?.ticks })
    }

    /// Whether it still runs. One that we may not look at counts as it.
    pub fn is_alive(self) -> bool {
        match read_stat(self.pid) {
            Some(process) => process.ticks == self.start && !process.is_dead(),
            None => rustix::process::Pid::from_raw(self.pid).is_some_and(|pid| {
                rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::PERM)
            }),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
    /// The kernel's letter: R, S, D, T (stopped), Z (zombie), …
    pub state: char,
    /// Since boot.
    pub started: Duration,
    /// The same as the kernel counts it: with the PID, it names a process for good.
    pub ticks: u64,
    /// At most 15 bytes of the program's name.
    pub name: String,
    /// A thread of the kernel, which has no program.
    pub is_kernel: bool,
}

/// A kernel thread's bit of the flags (`PF_KTHREAD` in the kernel's sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

impl Process {
    /// It holds nothing any more, and cannot be ended.
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    pub fn is_suspended(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// From the text of /proc/PID/stat.
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
            started: Duration::from_secs(ticks / ticks_per_second)
                + Duration::from_millis(ticks % ticks_per_second * 1000 / ticks_per_second),
            ticks,
            name: before.split_once('(')?.1.to_owned(),
            is_kernel: number(6)? & KERNEL_THREAD != 0,
        })
    }
}

/// Every process but zombies and threads of the kernel, which are nobody's and cannot be ended.
pub struct Table {
    processes: HashMap<Pid, Process>,
    children: HashMap<Pid, Vec<Pid>>,
    /// Who is in the group or the session that a process leads, or once led.
    led: HashMap<Pid, Vec<Pid>>,
    /// Since boot.
    now: Duration,
    me: Pid,
}

impl Table {
    pub fn read() -> Table {
        let mut processes = HashMap::new();
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let mut led: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for process in each(pids.collect(), read_stat) {
            if !process.is_dead() && !process.is_kernel {
                children.entry(process.parent).or_default().push(process.pid);
                led.entry(process.group).or_default().push(process.pid);
                led.entry(process.session).or_default().push(process.pid);
                processes.insert(process.pid, process);
            }
        }
        Table { processes, children, led, now: host::since_boot(), me: std::process::id() as Pid }
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// What each process was called with, as pgrep sees it: the arguments with spaces between them.
    pub fn command_lines(&self) -> Vec<(Pid, CString)> {
        let line = |pid: Pid| {
            let mut line = read(pid, "cmdline").ok()?;
            line.truncate(line.iter().rposition(|byte| *byte != 0)? + 1);
            line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
            Some((pid, CString::new(line).ok()?))
        };
        self.each(line)
    }

    /// What is to be told of each process, where there is something.
    pub fn each<T: Send>(&self, tell: impl Fn(Pid) -> Option<T> + Sync) -> Vec<T> {
        each(self.processes.keys().copied().collect(), tell)
    }

    pub fn age(&self, process: &Process) -> Duration {
        self.now.saturating_sub(process.started)
    }

    /// gpuctl itself and all that it was called from.
    pub fn callers(&self) -> HashSet<Pid> {
        self.ancestors(self.me).chain([self.me]).collect()
    }

    /// Parents of a process, nearest first.
    pub fn ancestors(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        let mut seen = HashSet::from([pid]);
        std::iter::successors(self.get(pid).map(|p| p.parent), |pid| {
            self.get(*pid).map(|p| p.parent)
        })
        // The table is no atomic picture; a reused PID could close a ring.
        .take_while(move |pid| *pid > 0 && seen.insert(*pid))
    }

    /// The processes, their descendants, and everything in the groups and sessions they lead.
    /// A group or session that gpuctl is in says nothing: its members are the caller's.
    pub fn families(&self, roots: &HashSet<Pid>) -> HashSet<Pid> {
        let (group, session) = self.get(self.me).map_or((0, 0), |me| (me.group, me.session));
        let follows = |pid: &&Pid, root: Pid| {
            self.get(**pid).is_some_and(|p| {
                (p.group != group && p.group == root) || (p.session != session && p.session == root)
            })
        };
        let mut family: HashSet<Pid> = HashSet::new();
        for root in roots {
            family.extend(self.get(*root).map(|process| process.pid));
            let led = self.led.get(root).into_iter().flatten();
            family.extend(led.filter(|pid| follows(pid, *root)));
        }
        let mut open: Vec<Pid> = family.iter().copied().collect();
        while let Some(pid) = open.pop() {
            for child in self.children.get(&pid).into_iter().flatten() {
                if family.insert(*child) {
                    open.push(*child);
                }
            }
        }
        family
    }
}

/// What is to be told of each of these processes, on all processors where there are many of them.
fn each<T: Send>(pids: Vec<Pid>, tell: impl Fn(Pid) -> Option<T> + Sync) -> Vec<T> {
    // To ask for it takes the reading of several files.
    static THREADS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let part = pids.len().div_ceil(*THREADS).max(MANY);
    let part_of = |pids: &[Pid]| pids.iter().filter_map(|pid| tell(*pid)).collect::<Vec<T>>();
    thread::scope(|scope| {
        let mut parts = pids.chunks(part);
        let own = parts.next_back();
        let others: Vec<_> = parts.map(|part| scope.spawn(|| part_of(part))).collect();
        let mut told = own.map(part_of).unwrap_or_default();
        for other in others {
            // Without its part, what runs would be taken for stopped.
            told.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        told
    })
}

/// Whether a process is stopped by a signal.
pub fn is_suspended(pid: Pid) -> bool {
    read_stat(pid).is_some_and(|process| process.is_suspended())
}

fn read_stat(pid: Pid) -> Option<Process> {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Process::parse(pid, &text_of(pid, "stat")?, ticks_per_second)
}

/// One of a process's files. The kernel cuts a name after 15 bytes, wherever a character ends.
fn text_of(pid: Pid, file: &str) -> Option<String> {
    let bytes = read(pid, file).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The same as it is. In one go: of a process that ends or executes a program between two reads, a
/// part would be shown.
fn read(pid: Pid, file: &str) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(format!("/proc/{pid}/{file}"))?;
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

/// The arguments of a process; empty for kernel threads and where we may not look.
pub fn arguments(pid: Pid) -> Vec<String> {
    words(&read(pid, "cmdline").unwrap_or_default())
}

/// The same from the text of /proc/PID/cmdline.
pub fn words(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Variables from the environment that a process was started with; none where we may not look.
pub fn variables<const N: usize>(pid: Pid, names: [&str; N]) -> [Option<String>; N] {
    values(&read(pid, "environ").unwrap_or_default(), names)
}

/// The same from the text of /proc/PID/environ.
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

/// The control groups of a process, one path per line; empty where we may not look.
pub fn control_groups(pid: Pid) -> String {
    text_of(pid, "cgroup").unwrap_or_default()
}

/// Whether one of these control groups is a group of that path, or one below it.
pub fn is_within(control_groups: &str, path: &str) -> bool {
    let paths = control_groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths
        .filter_map(|own| own.strip_prefix(path))
        .any(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a process lives in a PID namespace below ours (a container's).
pub fn is_in_container(pid: Pid) -> bool {
    static OURS: LazyLock<(Option<PathBuf>, usize)> = LazyLock::new(|| {
        let me = std::process::id() as Pid;
        (namespace(me), depth(me))
    });
    // To tell the depth takes the kernel much longer, and is seldom needed.
    let is_ours = || namespace(pid).is_some_and(|theirs| OURS.0.as_ref() == Some(&theirs));
    !is_ours() && depth(pid) > OURS.1
}

/// The PID namespace that a process is in; `None` where we may not look.
fn namespace(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// How many PID namespaces, of those that we see, a process is in.
fn depth(pid: Pid) -> usize {
    depth_in(&text_of(pid, "status").unwrap_or_default())
}

/// The same from the text of /proc/PID/status.
pub fn depth_in(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.map_or(1, |pids| pids.split_whitespace().count())
}

/// Whether two processes run the same program file.
pub fn is_same_program(pid: Pid) -> bool {
    let identity = |pid: &str| {
        let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some(link.as_os_str().as_bytes().to_owned())
    };
    identity(&pid.to_string()).is_some_and(|theirs| Some(theirs) == identity("self"))
}
