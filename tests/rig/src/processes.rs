//! Finding processes by a mark that only one test knows, and signalling them by their PID.

use crate::wait;
use rustix::process::{Pid, Signal};
use std::fs;
use std::path::Path;

/// Returns the processes that have `mark` somewhere in their command line; zombies have no command
/// line.
pub fn mentioning(mark: &str) -> Vec<i32> {
    find(mark, &["cmdline"])
}

/// Returns the processes that run a program and have `mark` in their environment.
pub fn running(program: &Path, mark: &str) -> Vec<i32> {
    find(mark, &["environ"]).into_iter().filter(runs(program)).collect()
}

/// Returns the processes that run a program and have `mark` in their command line.
pub fn executing(program: &Path, mark: &str) -> Vec<i32> {
    find(mark, &["cmdline"]).into_iter().filter(runs(program)).collect()
}

fn runs(program: &Path) -> impl Fn(&i32) -> bool + use<> {
    let program = fs::canonicalize(program).unwrap();
    move |pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|at| at == program)
}

/// Returns the kernel's letter for the state of a process (S: it sleeps, T: it is stopped), or
/// `None` once it has ended.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let facts: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // The first thread of a process may have ended before the others, which hold its sockets.
    let has_ended = matches!(facts[0], "Z" | "X") && matches!(facts[17], "0" | "1");
    facts[0].chars().next().filter(|_| !has_ended)
}

/// Returns the PID of a process's parent, or `None` if there is no such process.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Sends SIGKILL to all processes that have `mark` in their command line or environment, and to
/// those that they fork meanwhile. Reports whether all of them are gone.
pub fn end_all(mark: &str) -> bool {
    wait::comes(|| {
        let living = find(mark, &["cmdline", "environ"]);
        living.iter().for_each(|pid| signal(*pid, Signal::KILL));
        living.is_empty()
    })
}

/// Sends a signal to a process, and ignores errors: the process may have gone already.
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a PID is not 0");
    rustix::process::kill_process(pid, signal).ok();
}

fn find(mark: &str, files: &[&str]) -> Vec<i32> {
    assert!(mark.len() >= 8, "{mark:?} is too short to be only ours");
    let bears = |pid: &i32| {
        files.iter().any(|file| {
            // The process may have ended since, or belong to somebody who keeps others from looking
            // at it.
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.windows(mark.len()).any(|part| part == mark.as_bytes())
        })
    };
    let me = std::process::id() as i32;
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me && bears(pid))
        .collect()
}
