//! TCP ports for services that will listen only later. A port is claimed for as long as the rig lives by an abstract Unix
//! socket of its name: other tests, also those of other processes, see it taken, and nothing is left behind.

use rustix::net::{Shutdown, shutdown};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range from which the kernel gives ports to clients.
const FIRST: u16 = 20_000;
const COUNT: u64 = 12_000;

/// A port, and what keeps it ours.
pub fn claim() -> (u16, UnixListener) {
    let from = RandomState::new().hash_one("port");
    (0..COUNT)
        .map(|step| FIRST + (from.wrapping_add(step) % COUNT) as u16)
        .find_map(|port| {
            let name = SocketAddr::from_abstract_name(format!("gpuctl-test-port-{port}")).unwrap();
            let claim = UnixListener::bind_addr(&name).ok()?;
            close(TcpListener::bind(("127.0.0.1", port)).ok()?);
            Some((port, claim))
        })
        .expect("no free port between 20000 and 32000")
}

/// Nobody listens from now on. Dropping it is not enough: what another thread is starting has it too, until it is a
/// program.
pub fn close(listener: TcpListener) {
    shutdown(&listener, Shutdown::Both).unwrap();
}
