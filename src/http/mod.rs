//! One request over HTTP: what it says, whether its client may ask, and which command it stands
//! for. Everything here is decided from the text alone, except that `receive` reads it.

mod access;
mod endpoint;
mod openapi;
mod receive;
mod request;
mod words;

pub use access::admit;
#[cfg(any(test, fuzzing))]
pub use endpoint::Endpoint;
pub use openapi::document;
pub use receive::receive;
#[cfg(any(test, fuzzing))]
pub use request::Request;
pub use words::command;
#[cfg(any(test, fuzzing))]
pub use words::fields;

use crate::error::Failure;
use crate::exit::Code;

/// The failure with which a request is answered, and its HTTP status.
#[derive(Debug)]
pub struct Rejection {
    /// HTTP status of the answer.
    pub status: u16,
    /// Methods that the path has, for the header `Allow`, if it does not have the one that was
    /// asked for.
    pub allowed: Option<String>,
    pub failure: Failure,
}

impl Rejection {
    fn new(status: u16, code: Code, message: impl Into<String>) -> Rejection {
        Rejection { status, allowed: None, failure: Failure::new(code, message) }
    }

    fn malformed(message: impl Into<String>) -> Rejection {
        Rejection::new(400, Code::Usage, message)
    }

    /// Returns the rejection for a token that cannot be read. It does not say why, since the client
    /// has not shown who it is.
    pub fn concealed(code: Code) -> Rejection {
        let message = "the token cannot be read; what is wrong with it is in the log of gpuctl";
        Rejection::new(code.http_status(), code, message)
    }

    fn hint(mut self, hint: impl Into<String>) -> Rejection {
        self.failure = self.failure.hint(hint);
        self
    }
}

/// Answers a command's own failure with the HTTP status of its exit code.
impl From<Failure> for Rejection {
    fn from(failure: Failure) -> Self {
        Rejection { status: failure.code.http_status(), allowed: None, failure }
    }
}
