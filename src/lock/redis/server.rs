//! The facts about the Redis server that a lock depends on: what it is, and how far away.

use super::{CALL_LIMIT, ERROR, Redis, text_of};
use crate::error::Result;
use crate::world::wait::Stop;
use std::time::{Duration, Instant};

/// Number of questions that measure the latency. The fastest counts, since a single question may be
/// held up by anything.
const QUESTIONS: usize = 3;

/// Facts about the Redis server that keeps the lock. A fact is `None` if the server does not tell
/// it, for instance because its user may not ask.
#[derive(Clone, Debug, Default)]
pub struct ServerFacts {
    pub place: String,
    pub latency: Duration,
    pub version: Option<String>,
    /// The server's role in replication: `master` or `slave`.
    pub role: Option<String>,
    /// Policy by which the server throws keys away when its memory is full; `noeviction` if its
    /// memory has no limit.
    pub eviction: Option<String>,
}

impl Redis {
    /// Asks the server about itself and measures its latency. Fails if the server cannot be asked,
    /// or does not let this user do what the lock needs.
    pub fn server(&mut self) -> Result<ServerFacts> {
        let stop = Stop::never();
        let mut latency = Duration::MAX;
        // The first question also connects, so its time does not count.
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
