//! What an error of Redis means, and what to do about it: judged by its code, and by its text only
//! where Redis has no code for it.

use super::{ERROR, LOADING, Redis};
use crate::config::UrlSource;
use crate::error::Failure;
use crate::exit::Code;
use crate::redact::mask;
use redis::{ErrorKind, RedisError};
use std::error::Error;
use std::io;
use std::sync::Arc;

/// Reports whether a call was broken off by a signal; the library keeps the system's error behind
/// an `Arc`.
pub(super) fn is_interruption(error: &RedisError) -> bool {
    let shared =
        error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let system = shared.and_then(|error| error.downcast_ref::<io::Error>());
    system.is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
}

impl Redis {
    pub(super) fn unavailable(&self, why: &str) -> Failure {
        Failure::new(Code::Unavailable, format!("Redis at {} {why}", self.place()))
    }

    pub(super) fn refused(&self, why: &str) -> Failure {
        Failure::new(Code::Permission, format!("Redis at {} {why}", self.place()))
    }

    /// Returns the failure that an error means to a user, with the server's own error code in its
    /// details.
    pub(super) fn explain(&self, error: &RedisError) -> Failure {
        let failure = self.explain_code(error);
        match error.code() {
            Some(code) => failure.detail(ERROR, code),
            None => failure,
        }
    }

    fn explain_code(&self, error: &RedisError) -> Failure {
        let detail = mask(error.detail().unwrap_or_default());
        // The name of the script means nothing to a user.
        let detail = detail.split(" script: ").next().unwrap_or_default().to_owned();
        let of_a_script = ["user executing the script can't", "ACL failure in script"];
        match (error.kind(), error.code().unwrap_or_default()) {
            (ErrorKind::AuthenticationFailed, _) | (_, "WRONGPASS") => self
                .refused("does not take the user and password of the lock's URL")
                .hint(format!("correct {} (a server that has no password takes none)", self.source)),
            (_, "NOAUTH") => self
                .refused("wants a password, and the lock's URL has none")
                .hint("put it into the URL: redis://:PASSWORD@HOST:PORT"),
            // A refusal of what a script does has no code of its own.
            (_, code) if code == "NOPERM" || of_a_script.iter().any(|told| detail.contains(told)) => self
                .refused(&format!("does not let this user do what the lock needs: {detail}"))
                .hint(format!(
                    "its ACL must allow ~{}* and the commands eval, type, get, set, del, exists, pttl, pexpire, \
                     time, info, lpush, blpop and those of sorted sets",
                    self.key
                )),
            (_, "CROSSSLOT") => self
                .unavailable("is a cluster, in which keys that belong together need a common tag")
                .hint(format!("put the lock's name into braces: lock.key = \"{{{}}}\"", self.key)),
            (_, "MOVED" | "ASK") => self
                .unavailable("is a node of a cluster that does not keep this key")
                .hint("name the node that does in lock.url (`redis-cli -c cluster slots`), or a Redis of its own"),
            _ if detail.contains("unknown command") => self
                .unavailable("does not know EVAL: it is a Sentinel, or that command is renamed")
                .hint(
                    "name the primary itself in lock.url (`redis-cli -p 26379 SENTINEL get-master-addr-by-name NAME`), \
                     or have it know EVAL",
                ),
            (_, "WRONGTYPE") => Failure::new(
                Code::Config,
                format!("a key beside {} is used for something else: {detail}", self.key),
            )
            .hint("choose another lock.key"),
            (_, LOADING) => self.unavailable("is still loading its data"),
            (_, "READONLY") => {
                self.unavailable("is a read-only replica").hint("name its primary in lock.url")
            }
            (_, "OOM") => self.unavailable("has no memory left").hint("raise its maxmemory"),
            (_, "MISCONF") => self
                .unavailable("cannot save to disk and takes no writes")
                .hint("see its log, and the disk that it saves to"),
            (_, "NOREPLICAS") => self.unavailable("has too few replicas and takes no writes"),
            (_, code) if !code.is_empty() => {
                self.unavailable(&format!("answers {code}: {detail}"))
            }
            _ => self
                .unavailable(&format!("cannot be reached: {}", mask(&error.to_string())))
                .hint(match self.source {
                    UrlSource::RedisUrl => "start it; or, if $REDIS_URL is meant for another program, set lock.url or $GPUCTL_LOCK_URL, or unset it: without a URL the lock is a file".to_owned(),
                    source => format!("start it, or correct {source}; without a URL the lock is a file"),
                }),
        }
    }

    pub(super) fn wrong_type(&self, kind: &str) -> Failure {
        Failure::new(
            Code::Config,
            format!("the key {} in Redis at {} is a {kind}, not a lock", self.key, self.place()),
        )
        .hint("choose another lock.key, or remove that key if nobody needs it")
    }
}
