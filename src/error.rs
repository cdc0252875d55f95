//! The one error type: a code for scripts, a sentence and hints for people, details for JSON.

use crate::exit::Code;
use serde_json::{Map, Value};
use std::fmt;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    /// It says what failed, on what, and why, and reads after "gpuctl: ".
    pub message: String,
    /// Each line says something to do next.
    pub hints: Vec<String>,
    /// Facts for programs, under `error.details`.
    pub details: Box<Map<String, Value>>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), hints: Vec::new(), details: Box::default() }
    }

    /// What nobody foresaw: a fault of gpuctl's own, which exits 70.
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
