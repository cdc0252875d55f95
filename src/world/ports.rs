//! Who listens on a local TCP port, from /proc/net/tcp and the descriptors of processes.

use crate::model::{Health, Pid};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::thread;

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

/// The listening sockets of this network namespace, by port.
#[derive(Default)]
pub struct Listeners {
    sockets: HashMap<u16, HashSet<String>>,
}

impl Listeners {
    /// Takes some milliseconds: the kernel goes through its table of established connections to
    /// find that there are few.
    pub fn read() -> Listeners {
        thread::scope(|scope| {
            let newer = scope.spawn(|| read_table("/proc/self/net/tcp6"));
            let mut sockets = read_table("/proc/self/net/tcp");
            for (port, inodes) in newer.join().unwrap_or_default() {
                sockets.entry(port).or_default().extend(inodes);
            }
            Listeners { sockets }
        })
    }

    /// Whether a process listens on the port; false where we may not look.
    pub fn held_by(&self, port: u16, pid: Pid) -> bool {
        let Some(sockets) = self.sockets.get(&port) else { return false };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
    }
}

/// Listening sockets, named as the links in /proc/PID/fd name them.
fn read_table(path: &str) -> HashMap<u16, HashSet<String>> {
    const LISTEN: &str = "0A";
    let mut sockets: HashMap<u16, HashSet<String>> = HashMap::new();
    for line in fs::read_to_string(path).unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields[..] else { continue };
        let port = local.rsplit_once(':').and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
        if let Some(port) = port {
            sockets.entry(port).or_default().insert(format!("socket:[{inode}]"));
        }
    }
    sockets
}
