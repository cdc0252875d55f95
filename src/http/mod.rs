//! One request over HTTP: what it says, who may ask it, and which command it is. Everything here is
//! decided from the text alone, but for `receive`, which reads it.

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

/// An answer to a request that is no command.
#[derive(Debug)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// The methods that the path has, where it has not the one that was asked.
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

    /// A failure of which the client, who has not shown who it is, is told nothing.
    pub fn concealed(code: Code) -> Rejection {
        let message = "the token cannot be read; what is wrong with it is in the log of gpuctl";
        Rejection::new(code.http_status(), code, message)
    }

    fn hint(mut self, hint: impl Into<String>) -> Rejection {
        self.failure = self.failure.hint(hint);
        self
    }
}

/// A command's own failure.
impl From<Failure> for Rejection {
    fn from(failure: Failure) -> Self {
        Rejection { status: failure.code.http_status(), allowed: None, failure }
    }
}
