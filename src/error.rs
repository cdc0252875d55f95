//! The one error type: a code for scripts, a sentence and hints for people, details for JSON.

use crate::exit::Code;
use serde_json::{Map, Value};
use std::fmt;

pub type Result<T> = std::result::Result<T, Failure>;

/// Why something could not be done, for people and for scripts.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    /// What failed, on what, and why; reads after "gpuctl: ".
    pub message: String,
    /// What to do next, one suggestion per line.
    pub hints: Vec<String>,
    /// Facts for programs, shown under `error.details` in JSON.
    pub details: Box<Map<String, Value>>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), hints: Vec::new(), details: Box::default() }
    }

    /// Returns the failure for what nobody foresaw: a fault of gpuctl's own, which exits 70.
    pub fn bug(what: impl fmt::Display) -> Self {
        Failure::new(Code::Internal, what.to_string())
            .hint("this is a bug in gpuctl; please report it with the command and its output")
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
