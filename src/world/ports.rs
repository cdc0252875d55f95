//! Finds the processes that listen on local TCP ports, by the kernel's sockets and the descriptors
//! of processes.

use super::process::{self, Process, ProcessTable};
use crate::model::{Health, Pid};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use rustix::fs::{Dir, DirEntry, readlinkat};
use std::collections::HashMap;
use std::fs;

/// Returns the port that a health check asks on this machine, or `None` if it does not ask
/// localhost.
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

/// Ports of the listening TCP sockets in this network namespace.
#[derive(Default)]
pub struct Listeners {
    /// The port of each socket, by the socket's name in the links of /proc/PID/fd.
    ports: HashMap<String, u16>,
}

impl Listeners {
    /// Asks the kernel for the listening sockets by netlink, since /proc/net/tcp takes milliseconds
    /// to go through the table of established connections. If the kernel does not answer, the
    /// result is empty.
    pub fn read() -> Listeners {
        let mut listeners = Listeners::default();
        for family in [AF_INET, AF_INET6] {
            if let Err(error) = listeners.add(family) {
                log::debug!("the kernel does not say who is listening: {error}");
            }
        }
        listeners
    }

    fn add(&mut self, family: u8) -> std::io::Result<()> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request(family), 0)?;
        loop {
            let (bytes, _) = socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(std::io::Error::other)?;
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        let port = response.header.socket_id.source_port;
                        let socket = format!("socket:[{}]", response.header.inode);
                        self.ports.insert(socket, port);
                    }
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => return Ok(()),
                }
                // Each message begins at an offset that is divisible by four.
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// Reports whether any socket listens on the port.
    pub fn is_taken(&self, port: u16) -> bool {
        self.ports.values().any(|taken| *taken == port)
    }

    /// Returns the processes that listen on each port, as far as this process may inspect them.
    pub fn holders(&self, table: &ProcessTable) -> HashMap<u16, Vec<Pid>> {
        let mut holders: HashMap<u16, Vec<Pid>> = HashMap::new();
        let ports = |pid| Some((pid, self.ports_of(table.get(pid)?)));
        for (pid, ports) in table.each(ports) {
            ports.iter().for_each(|port| holders.entry(*port).or_default().push(pid));
        }
        holders
    }

    /// Returns the ports that a process listens on, or none if this process may not inspect it.
    pub fn ports_of(&self, process: &Process) -> Vec<u16> {
        let Ok(folder) = fs::File::open(process::descriptors(process)) else { return Vec::new() };
        let descriptors = Dir::read_from(&folder).into_iter().flatten().flatten();
        let port = |entry: DirEntry| {
            let target = readlinkat(&folder, entry.file_name(), Vec::new()).ok()?;
            self.ports.get(target.to_str().ok()?).copied()
        };
        descriptors.filter_map(port).collect()
    }
}

/// Returns the netlink request for all listening TCP sockets of an address family.
fn request(family: u8) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: SocketId::new_v4(),
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
