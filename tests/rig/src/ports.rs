//! TCP ports for services that will listen only later. While a rig lives, each of its ports is
//! claimed by an abstract Unix socket named after the port: other tests, even those of other
//! processes, see that it is taken, and nothing is left behind.

use rustix::net::{Shutdown, shutdown};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Lowest port that is claimed; the range ends below the one from which the kernel gives ports to
/// clients.
const FIRST: u16 = 20_000;
const COUNT: u64 = 12_000;

/// Claims a free port, and returns it with the socket that keeps it claimed until dropped.
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

/// Stops a listener, so that connections are refused from now on. Dropping it is not enough: a
/// child that another thread is just starting has it too, until the child runs its program.
pub fn close(listener: TcpListener) {
    shutdown(&listener, Shutdown::Both).unwrap();
}
