//! Who listens on a local TCP port, from /proc/net/tcp and the descriptors of processes.

use crate::model::{Health, Pid};
use std::collections::HashSet;
use std::fs;

/// The port that a health check asks on this machine; `None` when it asks elsewhere.
pub fn local_port(health: &Health) -> Option<u16> {
    let (host, port) = match health {
        Health::Tcp { host, port } => (host.clone(), *port),
        Health::Http(url) => {
            let uri: ureq::http::Uri = url.parse().ok()?;
            let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
            (uri.host()?.to_owned(), uri.port_u16().unwrap_or(default))
        }
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback() || address.is_unspecified());
    is_loopback.then_some(port)
}

/// The sockets that listen on a port in this network namespace.
pub struct Listeners {
    inodes: HashSet<String>,
}

impl Listeners {
    pub fn on(port: u16) -> Listeners {
        const LISTEN: &str = "0A";
        let mut inodes = HashSet::new();
        for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else {
                    continue;
                };
                let is_ours = local
                    .rsplit_once(':')
                    .is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port));
                if state == LISTEN && is_ours {
                    inodes.insert(format!("socket:[{inode}]"));
                }
            }
        }
        Listeners { inodes }
    }

    /// Whether a process holds one of the sockets; false where we may not look.
    pub fn held_by(&self, pid: Pid) -> bool {
        if self.inodes.is_empty() {
            return false;
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| self.inodes.contains(target)))
    }

    /// The processes that hold one of the sockets, as far as we may look.
    pub fn holders(&self, pids: impl Iterator<Item = Pid>) -> Vec<Pid> {
        pids.filter(|pid| self.held_by(*pid)).collect()
    }
}
