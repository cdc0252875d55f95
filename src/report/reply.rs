//! The answer to an HTTP request: one JSON document, which is never followed by a second one.

use crate::world::client;
use crate::world::host::now;
use serde_json::Value;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use ureq::http::StatusCode;

/// The answer to one HTTP request, which is sent at most once. Clones share this answer.
#[derive(Clone, Default)]
pub struct Reply {
    is_sent: Rc<Cell<bool>>,
    is_bare: Rc<Cell<bool>>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

impl Reply {
    /// Makes `send` leave out the body, as a HEAD request asks for.
    pub fn without_body(&self) {
        self.is_bare.set(true);
    }

    /// Sends the answer, with the methods in `allowed` in its `Allow` header. Returns false, and
    /// sends nothing, if the request was answered before. Fails if the client has gone away.
    pub fn send(
        &self,
        status: u16,
        allowed: Option<&str>,
        document: &Value,
    ) -> std::io::Result<bool> {
        if self.is_sent.replace(true) {
            return Ok(false);
        }
        let body = format!("{document:#}\n");
        let allow = allowed.map(|methods| format!("Allow: {methods}\r\n")).unwrap_or_default();
        let reason = StatusCode::from_u16(status).ok().and_then(|it| it.canonical_reason());
        let head = format!(
            "HTTP/1.1 {status} {}\r\nDate: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n",
            reason.unwrap_or_default(),
            now().strftime("%a, %d %b %Y %H:%M:%S GMT"),
            body.len(),
        );
        let body = if self.is_bare.get() { String::new() } else { body };
        client::write((head + &body).as_bytes())?;
        client::hang_up()?;
        Ok(true)
    }
}
