//! Processes, told by a mark that only one test knows, and signalled by their PID.

use crate::wait;
use rustix::process::{Pid, Signal};
use std::fs;
use std::path::Path;

/// Those that have `mark` somewhere in their command line. Zombies have none.
pub fn mentioning(mark: &str) -> Vec<i32> {
    find(mark, &["cmdline"])
}

/// Those that run a program and have `mark` in their environment.
pub fn running(program: &Path, mark: &str) -> Vec<i32> {
    find(mark, &["environ"]).into_iter().filter(runs(program)).collect()
}

/// Those that run a program and have `mark` in their command line.
pub fn executing(program: &Path, mark: &str) -> Vec<i32> {
    find(mark, &["cmdline"]).into_iter().filter(runs(program)).collect()
}

fn runs(program: &Path) -> impl Fn(&i32) -> bool + use<> {
    let program = fs::canonicalize(program).unwrap();
    move |pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|at| at == program)
}

/// The kernel's letter for what a process does: S sleeps, T is stopped; None once it has ended.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let facts: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // Its first thread may have ended before the others, which have its sockets.
    let has_ended = matches!(facts[0], "Z" | "X") && matches!(facts[17], "0" | "1");
    facts[0].chars().next().filter(|_| !has_ended)
}

pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// SIGKILL to all that have `mark` in their command line or environment, and to what they fork meanwhile.
/// Tells whether they are gone.
pub fn end_all(mark: &str) -> bool {
    wait::comes(|| {
        let living = find(mark, &["cmdline", "environ"]);
        living.iter().for_each(|pid| signal(*pid, Signal::KILL));
        living.is_empty()
    })
}

/// That it has gone already is no fault.
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a PID is not 0");
    rustix::process::kill_process(pid, signal).ok();
}

fn find(mark: &str, files: &[&str]) -> Vec<i32> {
    assert!(mark.len() >= 8, "{mark:?} is too short to be only ours");
    let bears = |pid: &i32| {
        files.iter().any(|file| {
            // It may have ended since, or not be ours to look at.
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
