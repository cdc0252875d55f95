//! Health checks over HTTP(S) and TCP. Each try ends within its limit whatever the server does, and
//! an HTTP status counts only once the answer is complete.

use super::http::{self, ServiceReply};
use super::wait::Aside;
use crate::error::Result;
use crate::model::{Headers, Health, Healthy};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest time that one try of a health check may take.
pub const TRY_LIMIT: Duration = Duration::from_secs(10);

/// Begins one try of a health check, on a thread of its own.
pub fn begin(health: &Health, headers: &Headers, limit: Duration) -> Result<Aside<Healthy>> {
    let (health, headers) = (health.clone(), headers.clone());
    Aside::begin(move || match &health {
        Health::Http(url) => of_reply(http::call(&http::client(limit), "GET", url, &headers, None)),
        Health::Tcp { host, port } => tcp(host, *port, limit),
    })
}

/// Returns what the reply to a health check means: any success status is healthy.
pub fn of_reply(reply: ServiceReply) -> Healthy {
    match reply.success() {
        Ok(_) => Healthy::Yes,
        Err(failed) if failed.is_silence => Healthy::Silent(failed.why),
        Err(failed) => Healthy::No(failed.why),
    }
}

/// Reports whether a server accepts a TCP connection within `limit`, which is shared out among the
/// addresses of the host.
pub fn tcp(host: &str, port: u16, limit: Duration) -> Healthy {
    let shown = format!("tcp://{host}:{port}");
    let addresses = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect::<Vec<_>>(),
        Err(e) => return Healthy::No(format!("{shown}: {e}")),
    };
    let mut reason = "no address".to_owned();
    for address in &addresses {
        match TcpStream::connect_timeout(address, limit / addresses.len() as u32) {
            Ok(_) => return Healthy::Yes,
            Err(e) => reason = e.to_string(),
        }
    }
    Healthy::No(format!("{shown}: {reason}"))
}
