//! The calls and probes of a service: those that its `api` key implies, and the keys that override
//! them.

use super::complaint::Complaint;
use super::file::{BusyTable, CallTable, ServiceTable};
use crate::model::{
    Api, ApiServer, CONTAINER, Headers, Health, HttpCall, JobProbe, Manager, Unload,
};
use ureq::http::{HeaderName, HeaderValue, Method};

type Resolved<T> = std::result::Result<T, Complaint<&'static str>>;

/// Calls and probes by which gpuctl asks one service for its health and jobs, and makes it load or
/// unload.
pub struct Calls {
    pub server: Option<ApiServer>,
    pub headers: Headers,
    pub health: Option<Health>,
    pub jobs: Option<JobProbe>,
    pub warm_up: Option<HttpCall>,
    pub unload: Option<Unload>,
}

impl Calls {
    /// Resolves the calls of a service from its table. Fails with the key that is wrong and the
    /// reason.
    pub fn of(entry: &ServiceTable, manager: &Manager) -> Resolved<Calls> {
        let server = server(entry, manager)?;
        let health = match (&entry.health, &server) {
            (Some(url), _) => Some(health(url, manager).map_err(|problem| ("health", problem))?),
            (None, Some(server)) => Some(Health::Http(server.health_url())),
            (None, None) => None,
        };
        let jobs = match (&entry.busy, &server) {
            (Some(busy), _) => Some(probe(busy, manager).map_err(|problem| ("busy", problem))?),
            // Ollama does not report its jobs.
            (None, Some(ApiServer { api: Api::Ollama, .. })) => None,
            (None, Some(server)) => Some(JobProbe::Server(server.clone())),
            (None, None) => None,
        };
        let unload = match (&entry.unload, &server) {
            (Some(own), _) => {
                Some(Unload::Call(call(own, manager).map_err(|problem| ("unload", problem))?))
            }
            (None, Some(server)) => Some(Unload::Server(server.clone())),
            (None, None) => None,
        };
        let warm_up = entry.warm_up.as_ref().map(|own| call(own, manager)).transpose();
        Ok(Calls {
            headers: headers(entry)?,
            warm_up: warm_up.map_err(|problem| ("warm_up", problem))?,
            server,
            health,
            jobs,
            unload,
        })
    }
}

fn server(entry: &ServiceTable, manager: &Manager) -> Resolved<Option<ApiServer>> {
    match (entry.api, &entry.url) {
        (Some(api), Some(url)) => {
            http_url(url, manager).map_err(|problem| ("url", problem))?;
            Ok(Some(ApiServer { api, url: url.trim_end_matches('/').to_owned() }))
        }
        (Some(_), None) => Err(("api", "needs url, the server's base URL".to_owned())),
        (None, Some(_)) => Err(("url", "needs api, the kind of server that it is".to_owned())),
        (None, None) => Ok(None),
    }
}

/// Validates the headers of a service. A complaint never shows a header's value, which may be
/// secret.
fn headers(entry: &ServiceTable) -> Resolved<Headers> {
    for (name, value) in &entry.headers {
        let problem = match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            (Err(_), _) => format!("\"{}\" is not the name of a header", name.escape_default()),
            (Ok(_), Err(_)) => format!("the value of {name} cannot be sent in a header"),
            (Ok(_), Ok(_)) => continue,
        };
        return Err(("headers", problem));
    }
    Ok(Headers(entry.headers.clone()))
}

fn probe(busy: &BusyTable, manager: &Manager) -> std::result::Result<JobProbe, String> {
    let BusyTable { url, json, metric, command } = busy;
    match (url, json, metric, command) {
        (Some(url), Some(pointer), None, None) => {
            http_url(url, manager)?;
            match pointer.is_empty() || pointer.starts_with('/') {
                true => Ok(JobProbe::Json { url: url.clone(), pointer: pointer.clone() }),
                false => Err("json must be a JSON pointer, such as \"/queue/length\"".to_owned()),
            }
        }
        (Some(url), None, Some(name), None) => {
            http_url(url, manager)?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
            match !name.is_empty() && name.chars().all(plain) {
                true => Ok(JobProbe::Metric { url: url.clone(), name: name.clone() }),
                false => Err("metric must be the name of a metric, without labels".to_owned()),
            }
        }
        (None, None, None, Some(text)) if text.trim().is_empty() || text.contains('\0') => {
            Err("command cannot be run".to_owned())
        }
        (None, None, None, Some(text)) => {
            let (env, cwd) = match manager {
                Manager::Native(native) => (native.env.clone(), native.cwd.clone()),
                Manager::Containers(_) | Manager::Systemd { .. } => Default::default(),
            };
            Ok(JobProbe::Command { text: text.clone(), env, cwd })
        }
        _ => Err("give url with either json or metric, or command alone".to_owned()),
    }
}

fn health(url: &str, manager: &Manager) -> std::result::Result<Health, String> {
    let form = || "not a http://, https:// or tcp://host:port URL".to_owned();
    if let Some(address) = url.strip_prefix("tcp://") {
        let (host, port) = address.trim_end_matches('/').rsplit_once(':').ok_or_else(form)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        refuse_address(host, manager)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
        return match host.is_empty() {
            true => Err(form()),
            false => Ok(Health::Tcp { host: host.to_owned(), port }),
        };
    }
    match is_http(url) {
        true => http_url(url, manager).map(|()| Health::Http(url.to_owned())),
        false => Err(form()),
    }
}

/// Refuses a URL that is not http:// or https://, or that contains `{container}` although the
/// service is not a container.
fn http_url(url: &str, manager: &Manager) -> std::result::Result<(), String> {
    refuse_address(url, manager)?;
    match is_http(url) {
        true => Ok(()),
        false => Err("not a http:// or https:// URL".to_owned()),
    }
}

/// Refuses a URL or host that contains `{container}` if the service is not a container.
fn refuse_address(place: &str, manager: &Manager) -> std::result::Result<(), String> {
    match place.contains(CONTAINER) && !matches!(manager, Manager::Containers(_)) {
        true => Err(format!("{CONTAINER} stands for the address of a container, which it is not")),
        false => Ok(()),
    }
}

fn is_http(url: &str) -> bool {
    let Ok(uri) = url.replacen(CONTAINER, "localhost", 1).parse::<ureq::http::Uri>() else {
        return false;
    };
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if !authority.host().is_empty() => {
            // The parser accepts any number as a port, and then reports an impossible one as
            // missing.
            let address = authority.as_str().rsplit('@').next().unwrap_or_default();
            match address[authority.host().len()..].strip_prefix(':') {
                Some(port) => port.parse().is_ok_and(|port: u16| port != 0),
                None => true,
            }
        }
        _ => false,
    }
}

fn call(entry: &CallTable, manager: &Manager) -> std::result::Result<HttpCall, String> {
    http_url(&entry.url, manager)?;
    let method = entry.method.clone().unwrap_or_else(|| "POST".to_owned());
    match Method::from_bytes(method.as_bytes()) {
        Ok(_) => Ok(HttpCall { url: entry.url.clone(), method, body: entry.body.clone() }),
        Err(_) => Err(format!("\"{method}\" is not an HTTP method")),
    }
}
