//! Health checks over HTTP(S) and TCP. A try is bounded whatever the server does: the status counts
//! once the answer is complete, and nothing of the body is kept.

mod tries;

pub use tries::Tries;

use super::wait::Aside;
use crate::error::Result;
use crate::model::{Health, Healthy};
use crate::redact::mask;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// The longest that one try may take.
pub const TRY_LIMIT: Duration = Duration::from_secs(10);

const REDIRECTS: u32 = 5;

/// Far more than any health check has to say, in bytes.
const BODY_LIMIT: u64 = 16 * 1024 * 1024;

/// A connection's buffers, in bytes: as long as the header of an answer, and the URL, may be.
const BUFFER: usize = 16 * 1024;

/// One try under way.
pub fn begin(health: &Health, limit: Duration) -> Result<Aside<Healthy>> {
    let health = health.clone();
    Aside::begin(move || answer(&health, &client(limit), limit))
}

fn answer(health: &Health, client: &ureq::Agent, limit: Duration) -> Healthy {
    match health {
        Health::Http(url) => http(url, client),
        Health::Tcp { host, port } => tcp(host, *port, limit),
    }
}

/// An HTTP client with a limit on everything; statuses are answers, not errors. The services are
/// this machine's own, so a proxy of the environment is not asked, and certificates are judged by
/// the machine's own authorities (`SSL_CERT_FILE` names others).
pub fn client(limit: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .max_redirects(REDIRECTS)
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .user_agent(concat!("gpuctl/", env!("CARGO_PKG_VERSION")))
        .input_buffer_size(BUFFER)
        .output_buffer_size(BUFFER)
        .max_idle_connections(0)
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Addresses::default())
}

/// Addresses of URLs. Where one stands in the URL, or `localhost`, there is nothing to ask: to look
/// up a name in bounded time, a thread of its own is begun.
#[derive(Debug, Default)]
struct Addresses(DefaultResolver);

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let Some(known) = known(uri) else { return self.0.resolve(uri, config, timeout) };
        let mut addresses = self.empty();
        known.into_iter().for_each(|address| addresses.push(address));
        Ok(addresses)
    }
}

fn known(uri: &ureq::http::Uri) -> Option<Vec<SocketAddr>> {
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    })?;
    let addresses = match host.eq_ignore_ascii_case("localhost") {
        true => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        false => vec![host.parse().ok()?],
    };
    Some(addresses.into_iter().map(|address: IpAddr| SocketAddr::new(address, port)).collect())
}

fn http(url: &str, client: &ureq::Agent) -> Healthy {
    match client.get(url).call() {
        Ok(response) if response.status().is_success() => {
            let mut body = response.into_body().into_reader().take(BODY_LIMIT);
            match io::copy(&mut body, &mut io::sink()) {
                Ok(BODY_LIMIT) => Healthy::No(format!("{} sends an endless answer", mask(url))),
                Ok(_) => Healthy::Yes,
                Err(error) => Healthy::No(format!("{}: its answer broke off: {error}", mask(url))),
            }
        }
        Ok(response) => Healthy::No(format!("{} answers {}", mask(url), response.status())),
        Err(ureq::Error::Timeout(_)) => {
            Healthy::Silent(format!("{} did not answer in time", mask(url)))
        }
        Err(error) => Healthy::No(format!("{}: {error}", mask(url))),
    }
}

fn tcp(host: &str, port: u16, limit: Duration) -> Healthy {
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
