//! Where a process runs: its control groups, the unit or container that they name, its network and
//! its PID namespace.

use super::text_of;
use crate::model::Pid;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Returns the text of /proc/PID/cgroup, one control group per line; empty if the process may not
/// be inspected.
pub fn control_groups(pid: Pid) -> String {
    text_of(pid, "cgroup").unwrap_or_default()
}

/// Reports whether one of these control groups (lines of /proc/PID/cgroup) is the group at `path`
/// or one below it.
pub fn is_within(control_groups: &str, path: &str) -> bool {
    let paths = control_groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths
        .filter_map(|own| own.strip_prefix(path))
        .any(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Reports whether the network that a process is in has this address as one of its own.
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

/// Reports whether any process listens on a TCP port in the network that process `pid` is in;
/// `None` if that may not be inspected.
pub fn listens_in_network(pid: Pid, port: u16) -> Option<bool> {
    let sockets = [text_of(pid, "net/tcp"), text_of(pid, "net/tcp6")];
    if sockets.iter().all(Option::is_none) {
        return None;
    }
    // "0: 0100007F:1F90 00000000:0000 0A …": the local address, the remote one, and the state
    // LISTEN.
    let address = format!(":{port:04X}");
    let listens = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&address)) && words.nth(1) == Some("0A")
    };
    Some(sockets.iter().flatten().flat_map(|text| text.lines()).any(listens))
}

/// Returns the systemd service to which these control groups assign a process. A process in a scope
/// below a service belongs to no service: a user's manager is itself a service, and nothing looks
/// after the processes in its scopes.
pub fn unit_of(control_groups: &str) -> Option<&str> {
    let is_unit = |word: &&str| word.ends_with(".service") || word.ends_with(".scope");
    let mut units = control_groups.lines().filter_map(|line| line.trim().rsplit('/').find(is_unit));
    units.find(|unit| unit.ends_with(".service"))
}

/// Returns the id of the container that these control groups name: 64 hexadecimal digits, which
/// every engine puts into the path.
pub fn container_of(control_groups: &str) -> Option<&str> {
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    control_groups.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id)
}

/// Reports whether a process is in a PID namespace below that of this process, as in a container.
pub fn is_in_container(pid: Pid) -> bool {
    static OURS: LazyLock<(Option<PathBuf>, usize)> = LazyLock::new(|| {
        let me = std::process::id() as Pid;
        (namespace(me), depth(me))
    });
    // The kernel takes much longer to report the depth, which is seldom needed.
    let is_ours = || namespace(pid).is_some_and(|theirs| OURS.0.as_ref() == Some(&theirs));
    !is_ours() && depth(pid) > OURS.1
}

/// Returns the PID namespace that a process is in, or `None` if it may not be inspected.
fn namespace(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Returns the number of nested PID namespaces that a process is in, of those that are visible
/// here; 1 if it may not be inspected.
pub fn depth(pid: Pid) -> usize {
    depth_in(&text_of(pid, "status").unwrap_or_default())
}

/// Parses the number of nested PID namespaces that a process is in from the text of
/// /proc/PID/status; 1 if there is none.
pub fn depth_in(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.map_or(1, |pids| pids.split_whitespace().count())
}
