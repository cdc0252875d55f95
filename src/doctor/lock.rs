//! Checks of the GPU lock: the file of the machine's lock, the Redis beside it, and the lock that
//! is held.

use super::check::{Check, CheckId};
use super::{Examined, UNCONFIGURED};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::lock::{self, Ends, Held, ServerFacts};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Latency above which Redis is reported as slow, since every command that acts asks it several
/// times.
const SLOW: Duration = Duration::from_millis(100);

pub fn examine(case: &Examined) -> Vec<Check> {
    let Some(config) = &case.config else {
        return vec![Check::skip(CheckId::LockPlace, UNCONFIGURED)];
    };
    let source = config.lock.place.source;
    match lock::server(config) {
        Some(server) => in_redis(config, server),
        None => {
            let path = config.lock.place.file.display();
            let place = format!("the machine's, in the file {path}, from {source}");
            let folder = folder(config);
            let record = match folder.fix {
                Some(_) => Check::skip(CheckId::LockRecord, "its file cannot be used"),
                None => record(&lock::look(config)),
            };
            vec![Check::pass(CheckId::LockPlace, place), folder, record]
        }
    }
}

/// Checks the folder of the machine's lock: every user of the lock has to be able to open its file,
/// and nobody may be able to remove another user's file.
fn folder(config: &Config) -> Check {
    let path = &config.lock.place.file;
    let parent = path.parent().unwrap_or(Path::new("/"));
    if let Err(failure) = lock::could_open(config) {
        let fix = "make it a file that everybody who is to take the lock may open (chmod 666), or name another one in lock.url";
        return Check::failure(CheckId::LockFolder, &failure, fix);
    }
    let mode = parent.metadata().map_or(0, |meta| meta.permissions().mode());
    match mode & 0o002 != 0 && mode & 0o1000 == 0 {
        true => Check::warn(
            CheckId::LockFolder,
            format!("anybody may remove the lock file from {}", parent.display()),
            format!("chmod +t {}, or choose another place in lock.url", parent.display()),
        ),
        false => Check::pass(CheckId::LockFolder, parent.display().to_string()),
    }
}

/// Checks the lock that was found: who holds it, or why it cannot be read.
fn record(found: &Result<Option<Held>>) -> Check {
    let id = CheckId::LockRecord;
    match found {
        Err(failure) => Check::failure(id, failure, "repair it, or choose another lock.url"),
        Ok(Some(held)) if held.ends == Ends::Never => Check::warn(
            id,
            format!("held by {}, with no time limit", held.describe()),
            "it is never taken over; if its holder is gone: `gpuctl lock release --force`",
        ),
        Ok(Some(held)) => Check::pass(id, format!("held by {}", held.describe())),
        Ok(None) => Check::pass(id, "free"),
    }
}

fn in_redis(config: &Config, server: Result<ServerFacts>) -> Vec<Check> {
    let server = match server {
        Ok(server) => server,
        Err(failure) => return unreached(config, &failure),
    };
    let place = format!("Redis at {}", server.place);
    let found = lock::look(config);
    let (credentials, record) = match &found {
        Err(failure) if failure.code == Code::Permission => (
            Check::failure(CheckId::LockCredentials, failure, "correct its ACL"),
            Check::skip(CheckId::LockRecord, "reading it is not permitted"),
        ),
        found => (Check::pass(CheckId::LockCredentials, "taken"), record(found)),
    };
    let mut checks = vec![
        Check::pass(CheckId::LockPlace, place),
        folder(config),
        Check::pass(CheckId::LockRedis, "it answers"),
        credentials,
        record,
    ];
    checks.extend(judge(&server));
    checks
}

fn unreached(config: &Config, failure: &Failure) -> Vec<Check> {
    let place =
        || Check::pass(CheckId::LockPlace, format!("Redis, from {}", config.lock.place.source));
    let skip = |id| Check::skip(id, "the lock's Redis cannot be queried");
    match failure.code {
        Code::Permission => vec![
            place(),
            Check::pass(CheckId::LockRedis, "it answers"),
            Check::failure(
                CheckId::LockCredentials,
                failure,
                "correct the user and password of the lock's URL",
            ),
            skip(CheckId::LockRecord),
        ],
        _ => vec![
            place(),
            Check::failure(CheckId::LockRedis, failure, "wait until it is ready, or start it"),
            skip(CheckId::LockCredentials),
            skip(CheckId::LockRecord),
        ],
    }
}

fn judge(server: &ServerFacts) -> [Check; 4] {
    let untold = |id| Check::skip(id, "the server does not let this user run INFO");
    let version = server.version.as_deref().map_or(untold(CheckId::LockVersion), |version| {
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match major.is_some_and(|major| major < 7) {
            true => Check::warn(
                CheckId::LockVersion,
                format!("Redis {version} is older than gpuctl supports"),
                "update it to 7 or later",
            ),
            false => Check::pass(CheckId::LockVersion, version),
        }
    });
    let role = server.role.as_deref().map_or(untold(CheckId::LockRole), |role| match role {
        "master" => Check::pass(CheckId::LockRole, "it takes writes"),
        role => Check::fail(
            CheckId::LockRole,
            format!("it is a read-only replica ({role})"),
            "name its primary in lock.url",
        ),
    });
    let eviction =
        server.eviction.as_deref().map_or(untold(CheckId::LockEviction), |policy| match policy {
            "noeviction" => Check::pass(CheckId::LockEviction, "it evicts no keys"),
            policy => Check::warn(
                CheckId::LockEviction,
                format!(
                    "when its memory is full it may evict the lock (maxmemory-policy {policy})"
                ),
                "CONFIG SET maxmemory-policy noeviction, or a Redis of its own for the lock",
            ),
        });
    let took = format!("{:.1} ms", server.latency.as_secs_f64() * 1000.0);
    let latency = match server.latency > SLOW {
        true => Check::warn(
            CheckId::LockLatency,
            format!("it takes {took} to answer"),
            "use a Redis that is closer, or see what is loading it (`redis-cli --latency`, SLOWLOG)",
        ),
        false => Check::pass(CheckId::LockLatency, took),
    };
    [version, role, eviction, latency]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_server_is_judged_by_what_it_tells() {
        let verdict = |server: &ServerFacts, id| {
            judge(server).into_iter().find(|check| check.id == id).map(|check| check.verdict)
        };
        let of = |version: &str| ServerFacts {
            version: Some(version.to_owned()),
            ..ServerFacts::default()
        };
        assert_eq!(verdict(&of("6.2.14"), CheckId::LockVersion), Some(Verdict::Warn));
        assert_eq!(verdict(&of("7.0.15"), CheckId::LockVersion), Some(Verdict::Pass));
        assert_eq!(verdict(&of("10.0.0"), CheckId::LockVersion), Some(Verdict::Pass));
        for id in [CheckId::LockVersion, CheckId::LockRole, CheckId::LockEviction] {
            assert_eq!(verdict(&ServerFacts::default(), id), Some(Verdict::Skip));
        }
    }
}
