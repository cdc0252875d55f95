//! Gathers from /proc what processes show of themselves, for those processes that could matter.

use super::ownership::{self, Credentials, Evidence, Ownership, Panes};
use crate::config::Config;
use crate::model::{Container, Managed, Manager, Native, Pid, variable};
use crate::pattern::{Pattern, candidates};
use crate::world::docker;
use crate::world::ports::{Listeners, local_port};
use crate::world::process::{self, Id, Process, ProcessTable};
use crate::world::scope;
use crate::world::starts::{self, FileId};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::path::Path;

/// Names of programs that mention a service on their command line without being it.
const VIEWERS: &str = "ag awk bat batcat cat code cp curl cursor diff ed egrep emacs emacsclient find \
    gdb gedit git gpuctl grep gvim head helix hx joe journalctl jq kak kate less lnav man mcedit micro more \
    most multitail mv nano nvim pgrep pico pkill rg rsync scp screen script sed ssh strace subl sudo \
    tail tar tee tmux vi view vim vimdiff watch wget zed";

/// Names of programs that call others for somebody; such a process is no service if gpuctl is on
/// its command line.
const CALLERS: &str = "bash busybox chrt dash doas env fish flock ionice ksh nice nohup setsid sh \
    systemd-run taskset time timeout xargs zsh";

/// The processes of this machine at one moment, and what they show of themselves.
pub struct Scene {
    pub table: ProcessTable,
    pub listeners: Listeners,
    evidence: HashMap<Pid, Evidence>,
    /// The control groups of the processes that show something or are in the scope of a start.
    groups: HashMap<Pid, String>,
    /// The processes that are in the scope of a service's start, each with that service.
    scopes: HashMap<Pid, usize>,
    /// The processes that were recorded, each with its service.
    recorded: Vec<(usize, Id)>,
    /// The services that have been ready since a recorded start.
    pub was_ready: HashSet<usize>,
    /// The ports that processes listen on, kept for each process that was asked about, so that its
    /// descriptors are looked through only once.
    ports: RefCell<HashMap<Pid, Vec<u16>>>,
}

/// Reads the processes of this machine and what they show of themselves. `on_card` are those that
/// hold memory on the card.
pub fn look_around(config: &Config, on_card: &HashSet<Pid>, listeners: Listeners) -> Scene {
    let table = ProcessTable::read();
    let mut evidence: HashMap<Pid, Evidence> = HashMap::new();
    let (mut recorded, mut was_ready) = (Vec::new(), HashSet::new());
    on_card.iter().for_each(|pid| evidence.entry(*pid).or_default().is_on_card = true);
    let mut scopes = Vec::new();
    if natives(config).next().is_some() {
        let logs;
        (logs, scopes) = read_records(config, &mut recorded, &mut was_ready);
        add_marks(config, &table, &mut evidence);
        add_scopes(config, &table, &evidence, &mut scopes);
        add_matches(config, &table, &mut evidence);
        add_logs(&logs, &table, &mut evidence);
    }
    let groups = table.each(|pid| {
        let shown = evidence.get(&pid);
        let ticks = table.get(pid)?.ticks;
        let mut young = scopes.iter().filter(|scope| ticks >= scope.since).peekable();
        if shown.is_none() && young.peek().is_none() {
            return None;
        }
        let groups = process::control_groups(pid);
        let scope = young.find(|scope| scope::is_in(&groups, &scope.name));
        let scope = scope.filter(|scope| !is_of_another(pid, scope)).map(|scope| scope.service);
        let is_told = shown.is_some() || scope.is_some();
        is_told.then(|| {
            let is_contained = table.get(pid).is_some_and(|it| is_contained(it, &groups));
            (pid, groups, is_contained, scope)
        })
    });
    // The panes of a multiplexer may belong to anybody, so a scope with a multiplexer in it proves
    // nothing.
    let is_shared = |pid: Pid| table.get(pid).is_some_and(ownership::is_multiplexer);
    let multiplexers = groups.iter().filter(|(pid, ..)| is_shared(*pid));
    let shared: HashSet<usize> = multiplexers.filter_map(|(.., scope)| *scope).collect();
    let mut scene = Scene {
        table,
        listeners,
        evidence,
        groups: HashMap::new(),
        scopes: HashMap::new(),
        recorded,
        was_ready,
        ports: RefCell::default(),
    };
    for (pid, groups, is_contained, scope) in groups {
        scene.evidence.entry(pid).or_default().is_contained = is_contained;
        let scope = scope.filter(|service| !shared.contains(service));
        scene.scopes.extend(scope.map(|service| (pid, service)));
        scene.groups.insert(pid, groups);
    }
    scene
}

impl Scene {
    /// Decides which service each process belongs to, given what the managers have said. `more` are
    /// processes that are known to be a service's besides the recorded ones.
    pub fn ownership(
        &mut self,
        config: &Config,
        managed: &[Managed],
        more: &[(usize, Id)],
    ) -> Ownership {
        let mut claims: Vec<Credentials> = config
            .services
            .iter()
            .map(|service| {
                let port = service.health.as_ref().and_then(local_port);
                Credentials {
                    is_native: matches!(service.manager, Manager::Native(_)),
                    is_port_taken: port.is_some_and(|port| self.listeners.is_taken(port)),
                    port,
                    ..Credentials::default()
                }
            })
            .collect();
        for (claim, managed) in claims.iter_mut().zip(managed) {
            claim.containers = managed.containers.iter().filter_map(Container::main).collect();
        }
        for (service, id) in self.recorded.iter().chain(more) {
            claims[*service].recorded.push(*id);
        }
        for (pid, groups) in &self.groups {
            if let Some(shown) = self.evidence.get_mut(pid) {
                shown.control_group = in_groups(groups, managed);
                shown.control_group.extend(self.scopes.get(pid));
            }
        }
        let listens = |pid: Pid, port: u16| {
            // A port on which a process in a container listens is the container's.
            let is_own = |it: &Process| match self.evidence.get(&pid) {
                Some(shown) => !shown.is_contained,
                None => !is_contained(it, &process::control_groups(pid)),
            };
            self.listens(pid, port) && self.table.get(pid).is_some_and(is_own)
        };
        ownership::decide(&self.table, &claims, &self.evidence, &listens)
    }

    /// Returns what a start may have left in the panes of terminal multiplexers. `since` is the
    /// time of the start, in clock ticks since boot.
    pub fn panes_since(&self, ownership: &Ownership, service: usize, since: u64) -> Panes {
        ownership::panes_since(&self.table, &self.evidence, ownership, service, since)
    }

    /// Returns the ids of the containers in which a process has started since a time, in clock
    /// ticks since boot.
    pub fn containers_since(&self, since: u64) -> BTreeSet<String> {
        let young = self.table.iter().filter(|process| process.ticks >= since);
        let groups = young.map(|process| process::control_groups(process.pid));
        groups.filter_map(|groups| process::container_of(&groups).map(str::to_owned)).collect()
    }

    /// Reports whether a service's `match` finds a process, and whether the process is on the card.
    pub fn shows(&self, pid: Pid, service: usize) -> (bool, bool) {
        let shown = self.evidence.get(&pid);
        shown.map_or((false, false), |it| (it.matches.contains(&service), it.is_on_card))
    }

    /// Reports whether a process listens on a port; `false` if gpuctl may not look.
    pub fn listens(&self, pid: Pid, port: u16) -> bool {
        let ports = || self.table.get(pid).map_or_else(Vec::new, |it| self.listeners.ports_of(it));
        self.listeners.is_taken(port)
            && self.ports.borrow_mut().entry(pid).or_insert_with(ports).contains(&port)
    }
}

/// Returns the services whose unit or container a process with these control groups is in.
pub fn in_groups(groups: &str, managed: &[Managed]) -> Vec<usize> {
    let is_in = |of: &&Managed| {
        of.containers.iter().any(|container| groups.contains(container.id.as_str()))
            || of.control_groups.iter().any(|group| process::is_within(groups, group))
    };
    let found = managed.iter().enumerate().filter(|(_, of)| is_in(of));
    found.map(|(service, _)| service).collect()
}

/// Reports whether a process with these control groups is in a container that gpuctl is not in
/// itself, or is a container engine or its port forwarder.
pub fn is_contained(process: &Process, groups: &str) -> bool {
    process::is_in_container(process.pid)
        || is_in_other_container(groups)
        || docker::is_engines_own(process)
}

/// Reports whether these control groups are those of a container that shares the machine's PID
/// namespace and is not gpuctl's own.
fn is_in_other_container(groups: &str) -> bool {
    process::container_of(groups).is_some()
        && groups != process::control_groups(std::process::id() as Pid)
}

fn natives(config: &Config) -> impl Iterator<Item = (usize, &Native)> {
    config.services.iter().enumerate().filter_map(|(at, service)| match &service.manager {
        Manager::Native(native) => Some((at, native)),
        _ => None,
    })
}

/// A log to which a recorded start writes, and the time of that start, in clock ticks since boot.
struct Log {
    service: usize,
    file: FileId,
    since: u64,
}

/// The systemd scope of a start, and the time since which a process can be in it, in clock ticks
/// since boot.
struct StartScope {
    service: usize,
    /// The name that the service had when it was started.
    mark: String,
    name: String,
    since: u64,
}

/// Reads which processes were recorded when services were started, and returns the logs and the
/// scopes of these starts.
fn read_records(
    config: &Config,
    recorded: &mut Vec<(usize, Id)>,
    was_ready: &mut HashSet<usize>,
) -> (Vec<Log>, Vec<StartScope>) {
    let (mut logs, mut scopes) = (Vec::new(), Vec::new());
    let Ok(state_dir) = config.state_dir() else { return (logs, scopes) };
    for start in starts::recorded(state_dir) {
        let Some(service) = start.service_of(&config.services, config.path.as_deref()) else {
            continue;
        };
        logs.extend(start.log.map(|file| Log { service, file, since: start.since }));
        let (mark, since) = (start.service, start.since);
        scopes.extend(start.scope.map(|name| StartScope { service, mark, name, since }));
        was_ready.extend(start.was_ready.then_some(service));
        recorded.extend(start.processes.into_iter().map(|id| (service, id)));
    }
    (logs, scopes)
}

/// Reports whether a process in a scope comes from another service's start within this start, or
/// works under the lock.
fn is_of_another(pid: Pid, scope: &StartScope) -> bool {
    let [mark, token] = process::variables(pid, [variable::SERVICE, variable::LOCK_TOKEN]);
    token.is_some() || mark.is_some_and(|mark| mark != scope.mark)
}

/// Notes which processes bear the mark of a service that gpuctl has started with this
/// configuration.
fn add_marks(config: &Config, table: &ProcessTable, evidence: &mut HashMap<Pid, Evidence>) {
    let services: HashMap<&str, usize> =
        natives(config).map(|(at, _)| (config.services[at].name.as_str(), at)).collect();
    let own = config.path.as_deref();
    let file = own.and_then(FileId::of);
    let is_own = |from: &str| {
        // Both are compared as text, because that is how the mark is written, even for a path that
        // is not UTF-8.
        let is_same = own.is_none_or(|own| from == own.to_string_lossy());
        is_same || (file.is_some() && FileId::of(Path::new(from)) == file)
    };
    let mark = |pid: Pid| {
        let [mark, from, token] =
            process::variables(pid, [variable::SERVICE, variable::CONFIG, variable::LOCK_TOKEN]);
        let service = *services.get(mark?.as_str())?;
        // A process that works under the lock uses the service, or is tried in its place.
        let is_ours = token.is_none() && from.as_deref().is_none_or(is_own);
        is_ours.then_some((pid, service))
    };
    for (pid, service) in table.each(mark) {
        evidence.entry(pid).or_default().mark = Some(service);
    }
}

/// Adds the scopes in which a process bears a service's mark. Their starts may be recorded in
/// another state folder: a gpuctl in a unit has another one than a gpuctl in a shell.
fn add_scopes(
    config: &Config,
    table: &ProcessTable,
    evidence: &HashMap<Pid, Evidence>,
    scopes: &mut Vec<StartScope>,
) {
    for (pid, shown) in evidence {
        let (Some(service), Some(process)) = (shown.mark, table.get(*pid)) else { continue };
        let (mark, groups) = (&config.services[service].name, process::control_groups(*pid));
        let Some(name) = scope::of_service(&groups, mark) else { continue };
        match scopes.iter_mut().find(|scope| scope.name == name) {
            Some(known) => known.since = known.since.min(process.ticks),
            None => scopes.push(StartScope {
                service,
                mark: mark.clone(),
                name: name.to_owned(),
                since: process.ticks,
            }),
        }
    }
}

/// Notes which processes the services' patterns find, and which of these only mention a service.
fn add_matches(config: &Config, table: &ProcessTable, evidence: &mut HashMap<Pid, Evidence>) {
    let patterns: Vec<(usize, &str)> =
        natives(config).filter_map(|(at, native)| Some((at, native.pattern.as_deref()?))).collect();
    if patterns.is_empty() {
        return;
    }
    let (pids, lines): (Vec<Pid>, Vec<CString>) = table.command_lines().into_iter().unzip();
    let texts: Vec<&str> = patterns.iter().map(|(_, text)| *text).collect();
    let callers = table.callers();
    for ((service, text), lines_to_ask) in patterns.iter().zip(candidates(&texts, &lines)) {
        let mut lines_to_ask =
            lines_to_ask.into_iter().filter(|at| !callers.contains(&pids[*at])).peekable();
        // A pattern that is no valid expression was refused with the configuration.
        let pattern = lines_to_ask.peek().and_then(|_| Pattern::new(text).ok());
        for at in lines_to_ask {
            if pattern.as_ref().is_some_and(|pattern| pattern.matches(&lines[at])) {
                evidence.entry(pids[at]).or_default().matches.push(*service);
            }
        }
    }
    for (pid, shown) in evidence.iter_mut().filter(|(_, shown)| !shown.matches.is_empty()) {
        shown.is_bystander = is_bystander(table, *pid);
    }
}

/// Notes which processes write to the log of a recorded start.
fn add_logs(logs: &[Log], table: &ProcessTable, evidence: &mut HashMap<Pid, Evidence>) {
    let Some(earliest) = logs.iter().map(|log| log.since).min() else { return };
    let outputs = |pid: Pid| {
        let process = table.get(pid).filter(|process| process.ticks >= earliest)?;
        let folder = process::descriptors(process);
        let outputs = [1, 2].map(|number| starts::open_file(&folder, number));
        let is_written =
            |log: &&Log| process.ticks >= log.since && outputs.contains(&Some(log.file));
        let written: Vec<usize> = logs.iter().filter(is_written).map(|log| log.service).collect();
        (!written.is_empty()).then_some((pid, written))
    };
    for (pid, services) in table.each(outputs) {
        let shown = evidence.entry(pid).or_default();
        shown.log = services;
        shown.is_bystander = is_bystander(table, pid);
    }
}

/// Reports whether a process cannot be a service, because its command only mentions one or it works
/// under the lock.
fn is_bystander(table: &ProcessTable, pid: Pid) -> bool {
    let Some(process) = table.get(pid) else { return true };
    let arguments = process::arguments(pid);
    let programs = programs(process, &arguments);
    let is_one_of = |names| programs.iter().any(|program| is_listed(names, program));
    // The process has ended since it was seen.
    if arguments.is_empty() {
        return true;
    }
    let [token] = process::variables(pid, [variable::LOCK_TOKEN]);
    let calls_gpuctl = || arguments.iter().any(|argument| names_gpuctl(argument));
    // A process that works under the lock uses the service, or is tried in its place.
    token.is_some()
        || is_one_of(VIEWERS)
        || (is_one_of(CALLERS) && calls_gpuctl())
        || process::is_same_program(pid)
}

/// Returns what a process calls itself, and the script that it interprets, if it does.
fn programs<'a>(process: &'a Process, arguments: &'a [String]) -> Vec<&'a str> {
    let word = |argument: &'a String| base_name(argument.split_whitespace().next().unwrap_or(""));
    let own = arguments.first().map(word).map(|name| name.trim_start_matches('-'));
    // The kernel names an interpreter's process after the script, and keeps 15 bytes of that name.
    let script = arguments.get(1).map(word).filter(|script| {
        script.starts_with(process.name.as_str()) && own != Some(process.name.as_str())
    });
    own.into_iter().chain(script).collect()
}

/// Reports whether a program is on a list of names; `vim.basic` counts as `vim`, and `tmux: server`
/// as `tmux`.
fn is_listed(names: &str, program: &str) -> bool {
    let word = program.split(['.', ':']).next().unwrap_or(program);
    names.split_whitespace().any(|name| name == word)
}

/// Reports whether an argument is gpuctl, or a shell's text that calls it.
fn names_gpuctl(argument: &str) -> bool {
    argument
        .split(|c: char| c.is_whitespace() || ";|&()`'\"".contains(c))
        .any(|word| base_name(word) == "gpuctl")
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
