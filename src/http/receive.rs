//! Reads a request from the client: its head and its body, within a time limit.

use super::Rejection;
use super::endpoint::Endpoint;
use super::request::{BODY, HEAD, Request};
use super::words::fields;
use crate::exit::Code;
use crate::world::client::{self, Arrival};
use std::time::{Duration, Instant};

/// Time that a request has to arrive, its body included.
const LIMIT: Duration = Duration::from_secs(10);

/// A request that has arrived completely and may be answered.
pub struct Received {
    pub endpoint: &'static Endpoint,
    /// Segments of the path that stand in the place of the endpoint's names.
    pub arguments: Vec<String>,
    /// Parameters from the query and the body.
    pub given: Vec<(String, String)>,
    /// Token of the GPU lock that the caller holds, if it has sent one.
    pub lock_token: Option<String>,
}

/// Reads a request. `admit` may refuse it by its head, before anything more of it is looked at.
pub fn receive(
    admit: impl FnOnce(&Request) -> Result<(), Rejection>,
) -> Result<Received, Rejection> {
    let deadline = Instant::now() + LIMIT;
    let mut bytes = Vec::new();
    let (request, size) = loop {
        more(&mut bytes, HEAD, deadline)?;
        if let Some(parsed) = Request::parse(&bytes)? {
            break parsed;
        }
    };
    admit(&request)?;
    let (endpoint, arguments) = Endpoint::find(&request.method, &request.path)?;
    let mut body = bytes.split_off(size);
    if request.waits && body.len() < request.length {
        client::write(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|e| lost(&e))?;
    }
    while body.len() < request.length {
        let most = request.length - body.len();
        more(&mut body, most.min(BODY), deadline)?;
    }
    body.truncate(request.length);
    let mut given = request.query;
    if endpoint.method == "POST" {
        given.extend(fields(&body)?);
    }
    Ok(Received { endpoint, arguments, given, lock_token: request.lock_token })
}

fn more(bytes: &mut Vec<u8>, most: usize, deadline: Instant) -> Result<(), Rejection> {
    match client::read(bytes, most, deadline).map_err(|e| lost(&e))? {
        Arrival::More => Ok(()),
        Arrival::End => Err(Rejection::malformed("it ends too early")),
        Arrival::Late => {
            let message = format!("it did not arrive within {} s", LIMIT.as_secs());
            Err(Rejection::new(408, Code::Usage, message))
        }
    }
}

fn lost(error: &std::io::Error) -> Rejection {
    Rejection::malformed(format!("the connection broke: {error}"))
}
