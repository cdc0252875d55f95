//! Answers to the health check, good and bad. Those that drip or never end are written to the
//! connection directly, because a proper HTTP server would buffer a drip and refuse to be endless.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use tiny_http::{Header, Request, Response};

use crate::args::Health;

const ENDLESS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";

/// Answers a health check as `health` says.
pub fn respond(health: Health, request: Request) {
    // An error means that the client has gone away, which ends the answer.
    let _ = match health {
        Health::Ok => request.respond(Response::from_string(r#"{"status":"ok"}"#)),
        Health::Error => request.respond(Response::from_string("{}").with_status_code(500)),
        Health::Hang => loop {
            thread::park();
        },
        Health::RedirectLoop => redirect_to_itself(request),
        Health::Drip => pour(request, ENDLESS, b"{", Duration::from_secs(1)),
        Health::Endless => pour(request, ENDLESS, &[b' '; 65536], Duration::ZERO),
    };
}

fn redirect_to_itself(request: Request) -> io::Result<()> {
    let location =
        Header::from_bytes("Location", request.url()).map_err(|()| io::ErrorKind::InvalidData)?;
    request.respond(Response::empty(302).with_header(location))
}

fn pour(request: Request, head: &str, drop: &[u8], pause: Duration) -> io::Result<()> {
    let mut connection = request.into_writer();
    connection.write_all(head.as_bytes())?;
    loop {
        connection.write_all(drop)?;
        connection.flush()?;
        thread::sleep(pause);
    }
}
