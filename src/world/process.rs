//! A process for good, and the process table as /proc shows it, read once per look: parents, groups, sessions, ages, and
//! on demand command lines, environments and control groups.

use super::host;
use crate::model::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

/// It takes longer to look at this many processes than to begin a thread.
const MANY: usize = 64;

/// One process and no other: its number is given to a later one, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    pub pid: Pid,
    /// Its start in clock ticks since boot, as /proc has it.
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
            None => is_hidden(self.pid),
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
    /// The time since boot.
    pub started: Duration,
    /// Its start as the kernel counts it: with the PID, it names a process for good.
    pub ticks: u64,
    /// The program's name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// A thread of the kernel, which has no program.
    pub is_kernel: bool,
    pub threads: u64,
}

/// A kernel thread's bit of the flags (`PF_KTHREAD` in the kernel's sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

impl Process {
    /// It and no other that gets its number later.
    pub fn id(&self) -> Id {
        Id { pid: self.pid, start: self.ticks }
    }

    /// It holds nothing any more, and cannot be ended.
    fn is_dead(&self) -> bool {
        // Its first thread may have ended before the others.
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    pub fn is_suspended(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// The process of that number, be it a zombie or of the kernel; `None` where there is none, and
    /// where we may not look.
    pub fn of(pid: Pid) -> Option<Process> {
        read_stat(pid)
    }

    /// Parses the text of /proc/PID/stat.
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
            threads: number(17)?,
        })
    }
}

/// Every process but zombies and threads of the kernel, which are nobody's and cannot be ended.
pub struct ProcessTable {
    processes: HashMap<Pid, Process>,
    children: HashMap<Pid, Vec<Pid>>,
    /// Who is in the group or the session that a process made.
    made: HashMap<Pid, Vec<Pid>>,
    /// The time since boot.
    now: Duration,
    me: Pid,
}

impl ProcessTable {
    pub fn read() -> ProcessTable {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let processes = each(pids.collect(), read_stat);
        ProcessTable::of(processes, host::since_boot(), std::process::id() as Pid)
    }

    /// A table of these processes at a time since boot, as `me` sees it.
    pub fn of(
        processes: impl IntoIterator<Item = Process>,
        now: Duration,
        me: Pid,
    ) -> ProcessTable {
        let mut table = ProcessTable {
            processes: HashMap::new(),
            children: HashMap::new(),
            made: HashMap::new(),
            now,
            me,
        };
        for process in processes.into_iter().filter(|one| !one.is_dead() && !one.is_kernel) {
            let pid = process.pid;
            table.children.entry(process.parent).or_default().push(pid);
            table.made.entry(process.group).or_default().push(pid);
            if process.session != process.group {
                table.made.entry(process.session).or_default().push(pid);
            }
            table.processes.insert(pid, process);
        }
        table
    }

    /// gpuctl's own process; `None` where /proc shows nothing of it.
    pub fn me(&self) -> Option<&Process> {
        self.get(self.me)
    }

    /// The children of a process.
    pub fn children(&self, pid: Pid) -> &[Pid] {
        self.children.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Who is in the group or the session that a process made, itself among them.
    pub fn made_by(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        self.made.get(&pid).into_iter().flatten().copied()
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Returns what each process was called with, as pgrep sees it: the arguments with spaces
    /// between them.
    pub fn command_lines(&self) -> Vec<(Pid, CString)> {
        let line = |pid: Pid| {
            let mut line = read(pid, "cmdline").ok()?;
            line.truncate(line.iter().rposition(|byte| *byte != 0)? + 1);
            line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
            Some((pid, CString::new(line).ok()?))
        };
        self.each(line)
    }

    /// Returns what is to be told of each process, where there is something.
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
}

/// Returns what is to be told of each of these processes, on all processors where there are many of
/// them.
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

/// Reads a file of /proc/PID as it is, in one go: of a process that ends or executes a program between two reads, a
/// part would be shown. Where its first thread has ended before the others, theirs is read.
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

/// A thread of a process beside its first one.
fn second_thread(pid: Pid) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|tid| *tid != pid)
}

/// The folder of a process's descriptors: that of a thread which still has them.
pub fn descriptors(process: &Process) -> PathBuf {
    let pid = process.pid;
    let is_half_dead = matches!(process.state, 'Z' | 'X');
    match is_half_dead.then(|| second_thread(pid)).flatten() {
        Some(thread) => PathBuf::from(format!("/proc/{pid}/task/{thread}/fd")),
        None => PathBuf::from(format!("/proc/{pid}/fd")),
    }
}

/// Whether we may see what a process shows of itself: its environment and open files.
pub fn is_readable(process: &Process) -> bool {
    let looked = fs::read_dir(descriptors(process));
    !looked.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Whether a process lives that is not ours to signal, where /proc shows nothing of it.
pub fn is_hidden(pid: Pid) -> bool {
    rustix::process::Pid::from_raw(pid)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::PERM))
}

/// Whether a process is gone, or holds nothing but what the kernel is taking from it. One that may
/// not be looked at lives.
pub fn is_ending(pid: Pid) -> bool {
    match read_stat(pid) {
        Some(process) if process.is_dead() => true,
        // Its memory has been given up, and its arguments with it.
        Some(process) if process.is_kernel => false,
        Some(_) => {
            read(pid, "cmdline").is_ok_and(|text| text.is_empty())
                || text_of(pid, "status").is_some_and(|status| awaits_kill(&status))
        }
        None => rustix::process::Pid::from_raw(pid).is_some_and(|pid| {
            rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
        }),
    }
}

/// Whether SIGKILL has been sent and not been taken yet, from the text of /proc/PID/status.
fn awaits_kill(status: &str) -> bool {
    const KILL: u64 = 1 << (signal_hook::consts::SIGKILL - 1);
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & KILL != 0)
}

/// The arguments of a process; empty for kernel threads and where we may not look.
pub fn arguments(pid: Pid) -> Vec<String> {
    words(&read(pid, "cmdline").unwrap_or_default())
}

/// Parses the arguments from the text of /proc/PID/cmdline.
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

/// Finds the values of these names in the text of /proc/PID/environ.
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

/// Whether the network that a process is in has this address as its own.
pub fn has_address(pid: Pid, address: Ipv4Addr) -> bool {
    let routes = text_of(pid, "net/fib_trie").unwrap_or_default();
    let address = format!("|-- {address}");
    let mut lines = routes.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == address && lines.next().is_some_and(|kind| kind.ends_with("host LOCAL")) {
            return true;
        }
    }
    false
}

/// Whether anybody listens on a TCP port in the network that a process is in; `None` where we may not
/// look.
pub fn listens_in_network(pid: Pid, port: u16) -> Option<bool> {
    let sockets = [text_of(pid, "net/tcp"), text_of(pid, "net/tcp6")];
    if sockets.iter().all(Option::is_none) {
        return None;
    }
    // "0: 0100007F:1F90 00000000:0000 0A …": the local address, the remote one, and the state LISTEN.
    let address = format!(":{port:04X}");
    let listens = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&address)) && words.nth(1) == Some("0A")
    };
    Some(sockets.iter().flatten().flat_map(|text| text.lines()).any(listens))
}

/// The systemd service in whose control group a process is. A scope below one is none of its: a user's
/// manager is a service, too, and its scopes hold what nobody looks after.
pub fn unit_of(control_groups: &str) -> Option<&str> {
    let is_unit = |word: &&str| word.ends_with(".service") || word.ends_with(".scope");
    let mut units = control_groups.lines().filter_map(|line| line.trim().rsplit('/').find(is_unit));
    units.find(|unit| unit.ends_with(".service"))
}

/// The id of the container that a control group's path names, as every engine puts it there.
pub fn container_of(control_groups: &str) -> Option<&str> {
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    control_groups.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id)
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

/// Returns how many PID namespaces, of those that we see, a process is in.
pub fn depth(pid: Pid) -> usize {
    depth_in(&text_of(pid, "status").unwrap_or_default())
}

/// Parses the depth of its PID namespace from the text of /proc/PID/status.
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

/// The main processes of containers that are seen here, by their control groups: those whose parents are
/// outside.
pub fn mains_in(containers: &[&str]) -> Vec<Pid> {
    let table = ProcessTable::read();
    let of = |pid: Pid| {
        let groups = control_groups(pid);
        containers.iter().position(|id| groups.contains(id)).map(|at| (pid, at))
    };
    let inside: HashMap<Pid, usize> = table.each(of).into_iter().collect();
    let is_main = |(pid, at): &(&Pid, &usize)| {
        let parent = table.get(**pid).map(|process| process.parent);
        parent.and_then(|parent| inside.get(&parent)) != Some(*at)
    };
    inside.iter().filter(is_main).map(|(pid, _)| *pid).collect()
}
