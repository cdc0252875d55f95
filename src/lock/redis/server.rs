//! The server itself, as far as a lock depends on it: what it is, and how far away.

use super::{CALL_LIMIT, ERROR, Redis, text_of};
use crate::error::Result;
use crate::world::wait::Stop;
use std::time::{Duration, Instant};

/// So many questions are asked, of which the fastest counts: one may be held up by anything.
const QUESTIONS: usize = 3;

/// What is not told (a user of the server may not be permitted to ask) is `None`.
#[derive(Clone, Debug, Default)]
pub struct ServerFacts {
    pub place: String,
    pub latency: Duration,
    pub version: Option<String>,
    /// "master" or "slave".
    pub role: Option<String>,
    /// What it may throw away when its memory is full; "noeviction" where it has no limit.
    pub eviction: Option<String>,
}

impl Redis {
    pub fn server(&mut self) -> Result<ServerFacts> {
        let stop = Stop::never();
        let mut latency = Duration::MAX;
        // The first one connects.
        for question in 0..=QUESTIONS {
            let asked = Instant::now();
            self.ask(redis::cmd("PING"), CALL_LIMIT, &stop)?;
            if question > 0 {
                latency = latency.min(asked.elapsed());
            }
        }
        let key = self.beside("fence");
        let rights = include_str!("rights.lua");
        self.script(rights, [&key], [], (CALL_LIMIT, &stop))?;
        let server = ServerFacts { place: self.place(), latency, ..ServerFacts::default() };
        let info = match self.ask(redis::cmd("INFO"), CALL_LIMIT, &stop) {
            Ok(info) => text_of(&info),
            Err(failure) if failure.details.get(ERROR) == Some(&"NOPERM".into()) => {
                return Ok(server);
            }
            Err(failure) => return Err(failure),
        };
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(|value| value.trim().to_owned())
        };
        let has_limit = field("maxmemory").is_some_and(|bytes| bytes != "0");
        Ok(ServerFacts {
            version: field("redis_version"),
            role: field("role"),
            eviction: match has_limit {
                true => field("maxmemory_policy"),
                false => Some("noeviction".to_owned()),
            },
            ..server
        })
    }
}
