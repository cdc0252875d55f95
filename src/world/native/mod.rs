//! Native services: which processes are theirs, how they are started, and how they are ended
//! without ending anybody else's.
//!
//! gpuctl marks what it starts (`GPUCTL_SERVICE` in the environment, inherited by every child).
//! A pattern is for what somebody else started: it proposes processes, and those that gpuctl can
//! tell to be the caller's, a viewer's or a container's are left out.

mod end;
mod start;

pub use end::{Targets, run_stop_command};
pub use start::{Started, could_start, start};

use super::process::{self, Process, Table};
use crate::model::{Native, Pid, Presence, Running, Service, Trouble, Unproven, variable};
use crate::pattern::{Pattern, candidates};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::path::Path;

/// Programs that mention a service on their command line without being it.
const VIEWERS: &str = "ag awk bat batcat cat code cp curl cursor diff ed egrep emacs emacsclient find \
    gdb gedit git gpuctl grep gvim head helix hx joe journalctl jq kak kate less lnav man mcedit micro more \
    most multitail mv nano nvim pgrep pico pkill rg rsync scp screen script sed ssh strace subl sudo \
    tail tar tee tmux vi view vim vimdiff watch wget zed";

/// Programs that call gpuctl for somebody; one that has gpuctl on its command line is no service.
const CALLERS: &str = "bash busybox chrt dash doas env fish flock ionice ksh nice nohup setsid sh \
    systemd-run taskset time timeout xargs zsh";

/// The processes of a native service, at one moment.
pub struct Processes {
    pub members: Vec<Pid>,
    pub unproven: Unproven,
}

/// What tells a service's own process from one that only mentions it.
pub struct Evidence<'a> {
    /// Processes that hold GPU memory.
    pub on_gpu: &'a HashSet<Pid>,
    /// Whether one of these processes listens on the service's health port.
    pub listens: &'a dyn Fn(&Service, Pid) -> bool,
}

/// Finds the processes of each native service.
pub fn find(
    services: &[(&Service, &Native)],
    config: Option<&Path>,
    table: &Table,
    evidence: &Evidence,
) -> HashMap<String, Processes> {
    let callers = table.callers();
    let patterns: Vec<&str> =
        services.iter().filter_map(|(_, native)| native.pattern.as_deref()).collect();
    let (pids, lines): (Vec<Pid>, Vec<CString>) = match patterns.is_empty() {
        true => Default::default(),
        false => table.command_lines().into_iter().unzip(),
    };
    let mut with_text = candidates(&patterns, &lines).into_iter();
    let mut marked = marked(table, config);
    let mut found = HashMap::new();
    for (service, native) in services {
        let mut proven = marked.remove(&service.name).unwrap_or_default();
        let mut proposed = HashSet::new();
        if let Some(text) = &native.pattern {
            let is_new = |at: &usize| !proven.contains(&pids[*at]) && !callers.contains(&pids[*at]);
            let mut lines_to_ask = with_text.next().into_iter().flatten().filter(is_new).peekable();
            // One that is no expression was refused with the configuration.
            let pattern = lines_to_ask.peek().and_then(|_| Pattern::new(text).ok());
            let matches = |at: &usize| pattern.as_ref().is_some_and(|p| p.matches(&lines[*at]));
            let matching = lines_to_ask.filter(matches).map(|at| pids[at]);
            proposed.extend(matching.filter(|pid| !is_bystander(table, *pid)));
        }
        proven.extend(proposed.iter().filter(|pid| {
            let family = table.families(&HashSet::from([**pid]));
            family
                .iter()
                .any(|pid| evidence.on_gpu.contains(pid) || (evidence.listens)(service, *pid))
        }));
        // Where nothing proves anything, the pattern's word is taken.
        let roots = if proven.is_empty() { &proposed } else { &proven };
        let mut members: Vec<Pid> =
            table.families(roots).into_iter().filter(|pid| !callers.contains(pid)).collect();
        members.sort_unstable();
        let is_unproven = |pid: &&Pid| proven.is_empty() || !members.contains(pid);
        let unproven = Unproven {
            processes: proposed
                .iter()
                .filter(is_unproven)
                .map(|pid| (*pid, process::arguments(*pid).join(" ")))
                .collect(),
            taken: proven.is_empty(),
        };
        found.insert(service.name.clone(), Processes { members, unproven });
    }
    found
}

/// The processes that gpuctl started, by service.
fn marked(table: &Table, config: Option<&Path>) -> HashMap<String, HashSet<Pid>> {
    let callers = table.callers();
    let mark = |pid| Some((mark_of(pid, config).filter(|_| !callers.contains(&pid))?, pid));
    let mut marked: HashMap<String, HashSet<Pid>> = HashMap::new();
    for (service, pid) in table.each(mark) {
        marked.entry(service).or_default().insert(pid);
    }
    marked
}

/// The service that a process was started for by this configuration's gpuctl.
fn mark_of(pid: Pid, config: Option<&Path>) -> Option<String> {
    let [mark, from, token] =
        process::variables(pid, [variable::SERVICE, variable::CONFIG, variable::LOCK_TOKEN]);
    let mark = mark?;
    // Both as text: that is how the mark was written, also for a path that is none.
    let foreign =
        matches!((&from, config), (Some(from), Some(config)) if *from != config.to_string_lossy());
    (!foreign && token.is_none() && !process::is_in_container(pid)).then_some(mark)
}

/// Whether a matched process cannot be a service: it only mentions one, or is a container's.
fn is_bystander(table: &Table, pid: Pid) -> bool {
    let Some(process) = table.get(pid) else { return true };
    let arguments = process::arguments(pid);
    let programs = programs(process, &arguments);
    let is_one_of = |names| programs.iter().any(|program| is_listed(names, program));
    // It has ended since it was seen.
    if arguments.is_empty() {
        return true;
    }
    let [token] = process::variables(pid, [variable::LOCK_TOKEN]);
    let calls_gpuctl = || arguments.iter().any(|argument| names_gpuctl(argument));
    // What works under the lock uses the service, or is tried in its place.
    token.is_some()
        || is_one_of(VIEWERS)
        || (is_one_of(CALLERS) && calls_gpuctl())
        || process::is_same_program(pid)
        || process::is_in_container(pid)
}

/// What a process calls itself, and the script that it interprets, if it does.
fn programs<'a>(process: &'a Process, arguments: &'a [String]) -> Vec<&'a str> {
    let word = |argument: &'a String| base_name(argument.split_whitespace().next().unwrap_or(""));
    let own = arguments.first().map(word).map(|name| name.trim_start_matches('-'));
    // The kernel names an interpreter's process after the script, and keeps 15 bytes of it.
    let script = arguments.get(1).map(word).filter(|script| {
        script.starts_with(process.name.as_str()) && own != Some(process.name.as_str())
    });
    own.into_iter().chain(script).collect()
}

/// Whether a program is on a list, as `vim.basic` and `tmux: server` are too.
fn is_listed(names: &str, program: &str) -> bool {
    let word = program.split(['.', ':']).next().unwrap_or(program);
    names.split_whitespace().any(|name| name == word)
}

/// Whether an argument is gpuctl, or a shell's text that calls it.
fn names_gpuctl(argument: &str) -> bool {
    argument
        .split(|c: char| c.is_whitespace() || ";|&()`'\"".contains(c))
        .any(|word| base_name(word) == "gpuctl")
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a native service's processes say of its state.
pub fn presence(members: &[Pid], table: &Table) -> Presence {
    let living: Vec<_> = members.iter().filter_map(|pid| table.get(*pid)).collect();
    let Some(age) = living.iter().map(|process| table.age(process)).max() else {
        return Presence::Down(None);
    };
    let suspended = living.iter().all(|process| process.is_suspended());
    Presence::Up(Running {
        pids: members.to_vec(),
        age: Some(age),
        trouble: suspended.then_some(Trouble::Suspended),
        ..Running::default()
    })
}
