//! The one HTTP client, for health checks, questions and calls to services. A call ends within its
//! limit whatever the server does, and its answer is either complete or none.

use crate::model::Headers;
use crate::redact::mask;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use ureq::http::Request;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

const REDIRECTS: u32 = 5;

/// Longest body of an answer in bytes, which is far more than any service has to say.
const BODY_LIMIT: u64 = 16 * 1024 * 1024;

/// Size of each buffer of a connection in bytes, which limits the header of an answer and the URL.
const BUFFER: usize = 16 * 1024;

/// Outcome of a call. Its texts name the URL, without its secrets.
#[derive(Clone, Debug)]
pub enum ServiceReply {
    Answer {
        url: String,
        status: u16,
        body: Arc<[u8]>,
    },
    /// There was no complete answer in time.
    Silent(String),
    /// There was no usable answer for another reason: nobody listens, for example, or the answer
    /// broke off.
    Failed(String),
}

impl ServiceReply {
    /// Returns the body of an answer whose status is a success, or why there is none.
    pub fn success(self) -> std::result::Result<Arc<[u8]>, NoAnswer> {
        match self {
            ServiceReply::Answer { status, body, .. } if (200..300).contains(&status) => Ok(body),
            ServiceReply::Answer { url, status, .. } => {
                Err(NoAnswer::other(format!("{url} answers {}", named(status))))
            }
            ServiceReply::Silent(why) => Err(NoAnswer::silence(why)),
            ServiceReply::Failed(why) => Err(NoAnswer::other(why)),
        }
    }

    /// Returns the body of an answer whose status is a success, parsed as JSON, or why there is
    /// none.
    pub fn json(self) -> std::result::Result<Value, NoAnswer> {
        let url = match &self {
            ServiceReply::Answer { url, .. } => url.clone(),
            ServiceReply::Silent(_) | ServiceReply::Failed(_) => String::new(),
        };
        let body = self.success()?;
        serde_json::from_slice(&body)
            .map_err(|e| NoAnswer::other(format!("the answer of {url} is not JSON: {e}")))
    }
}

/// Reason why there is no answer that can be used.
#[derive(Clone, Debug)]
pub struct NoAnswer {
    pub why: String,
    /// Whether the reason is only that no complete answer came in time.
    pub is_silence: bool,
}

impl NoAnswer {
    /// Returns a reason other than silence.
    pub fn other(why: impl Into<String>) -> NoAnswer {
        NoAnswer { why: why.into(), is_silence: false }
    }

    /// Returns the reason that no complete answer came in time.
    pub fn silence(why: impl Into<String>) -> NoAnswer {
        NoAnswer { why: why.into(), is_silence: true }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Returns a status with its name: "503 Service Unavailable".
fn named(status: u16) -> String {
    ureq::http::StatusCode::from_u16(status)
        .map_or_else(|_| status.to_string(), |status| status.to_string())
}

/// Calls one URL. Headers are secrets, so a call that has any does not follow redirects.
pub fn call(
    agent: &ureq::Agent,
    method: &str,
    url: &str,
    headers: &Headers,
    body: Option<&str>,
) -> ServiceReply {
    let failed = |why: &dyn fmt::Display| ServiceReply::Failed(format!("{}: {why}", mask(url)));
    let silent = || ServiceReply::Silent(format!("{} did not answer in time", mask(url)));
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in &headers.0 {
        request = request.header(name, value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let sent = match request.body(body.unwrap_or_default()) {
        Ok(request) if headers.0.is_empty() => agent.run(request),
        Ok(request) => agent.run(agent.configure_request(request).max_redirects(0).build()),
        Err(error) => return failed(&error),
    };
    let response = match sent {
        Ok(response) => response,
        Err(ureq::Error::Timeout(_)) => return silent(),
        Err(error) => return failed(&error),
    };
    let status = response.status().as_u16();
    let mut text = Vec::new();
    let mut reader = response.into_body().into_reader().take(BODY_LIMIT);
    match reader.read_to_end(&mut text) {
        Ok(length) if length as u64 == BODY_LIMIT => {
            ServiceReply::Failed(format!("{} sends an endless answer", mask(url)))
        }
        Ok(_) => ServiceReply::Answer { url: mask(url), status, body: text.into() },
        Err(error) if is_timeout(&error) => silent(),
        Err(error) => failed(&format!("its answer broke off: {error}")),
    }
}

/// Reports whether the time was over before an answer that had begun was complete.
fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// All URLs that are fetched in one look. Each is asked once for the same headers, however many
/// services name it.
pub struct Fetcher {
    agent: ureq::Agent,
    replies: Mutex<HashMap<(String, Headers), Fetched>>,
}

/// A reply that the first caller fetches while the others wait for it.
type Fetched = Arc<OnceLock<ServiceReply>>;

impl Fetcher {
    /// Returns a fetcher that has fetched nothing yet, each of whose calls may take `limit`.
    pub fn new(limit: Duration) -> Fetcher {
        Fetcher { agent: client(limit), replies: Mutex::default() }
    }

    /// Returns the reply to a GET of `url`, which is called only once for the same headers.
    pub fn get(&self, url: &str, headers: &Headers) -> ServiceReply {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = replies.entry((url.to_owned(), headers.clone())).or_default().clone();
        drop(replies);
        reply.get_or_init(|| call(&self.agent, "GET", url, headers, None)).clone()
    }
}

/// Returns an HTTP client with a limit on everything, for which any status is an answer and not an
/// error. The services run on this machine, so a proxy of the environment is not used. Certificates
/// are checked against the machine's own authorities (`SSL_CERT_FILE` names others).
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

/// Resolver of the hosts in URLs. An address or `localhost` is not looked up, since it takes a
/// thread of its own to look up a name in limited time.
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
