//! Turns arguments as they were typed into the values that they mean.

use crate::cli::{DrainArgs, ReleaseIdleArgs, WaitArgs};
use crate::config::{Config, Span};
use crate::error::{Failure, Result};
use crate::execute::drain::Drain;
use crate::exit::Code;
use crate::model::{Mb, Service};
use std::time::Duration;

/// Parses a duration of at most 7 days as it was typed for `flag`.
pub fn duration(flag: &str, text: &str) -> Result<Duration> {
    Span::parse(text).map(|span| span.0).ok_or_else(|| no_duration(flag, text, ", 7 days at most"))
}

/// Returns the failure for a text that is not a duration; `limit` ends the hint.
pub fn no_duration(flag: &str, text: &str, limit: &str) -> Failure {
    Failure::new(Code::Usage, format!("{flag}: \"{text}\" is not a duration"))
        .hint(format!("90s, 10m, 1h30m or a number of seconds{limit}"))
}

/// Parses a size as it was typed.
pub fn size(text: &str) -> Result<Mb> {
    Mb::parse(text).ok_or_else(|| {
        Failure::new(Code::Usage, format!("\"{text}\" is not a valid size"))
            .hint(format!("a size is {}", Mb::FORM))
    })
}

impl DrainArgs {
    /// Returns how long to wait for work in flight.
    pub fn drain(&self) -> Result<Drain> {
        match &self.drain {
            _ if self.no_drain => Ok(Drain::CutOff),
            Some(text) => duration("--drain", text).map(Drain::Within),
            None => Ok(Drain::Configured),
        }
    }
}

impl WaitArgs {
    /// Returns how long to wait for the lock.
    pub fn patience(&self, config: &Config) -> Result<Duration> {
        match &self.wait {
            _ if self.no_wait => Ok(Duration::ZERO),
            Some(text) => duration("--wait", text),
            None => Ok(config.lock.wait),
        }
    }
}

impl ReleaseIdleArgs {
    /// Returns the services that may be released: those that were named, or else all. Fails if a
    /// named service has no `idle` time and no `after` is given.
    pub fn names(&self, after: Option<Duration>, config: &Config) -> Result<Vec<String>> {
        let named = &self.services;
        config.require_file()?;
        for name in named {
            if config.service(name)?.idle.or(after).is_none() {
                let message = format!("{name} has no `idle`, after which it might be released");
                let hint = format!("set services.{name}.idle, or give --after, as in --after 30m");
                return Err(Failure::new(Code::Usage, message).hint(hint));
            }
        }
        let is_meant = |service: &&Service| named.is_empty() || named.contains(&service.name);
        Ok(config.services.iter().filter(is_meant).map(|service| service.name.clone()).collect())
    }
}
