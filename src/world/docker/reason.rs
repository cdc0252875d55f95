//! Finds out why a call of Docker's client failed. The engine's own words come after what the
//! client prints about itself.

use super::Output;
use crate::error::Failure;
use crate::exit::Code;
use crate::redact::mask;

/// Beginnings of lines that clients print on standard error before the reason of a failure.
const CHATTER: [&str; 5] = ["WARNING:", "Emulate Docker CLI", "time=\"", "DEPRECATED", "level="];

/// Returns why the engine failed a call, in the engine's own words.
pub fn reason(output: &Output) -> String {
    reasons(&output.stderr).next().map_or_else(|| output.reason(), mask)
}

fn reasons(stderr: &str) -> impl Iterator<Item = &str> {
    let is_chatter = |line: &&str| CHATTER.iter().any(|word| line.starts_with(word));
    stderr.lines().map(str::trim).filter(|line| !line.is_empty()).filter(move |l| !is_chatter(l))
}

/// Returns why an answer does not describe all containers, or `None` if the only reason is that
/// some do not exist.
pub fn beside_missing(stderr: &str) -> Option<Failure> {
    let is_missing = |line: &&str| line.to_lowercase().contains("no such container");
    reasons(stderr).find(|line| !is_missing(line)).map(|line| refusal(&mask(line)))
}

/// Reports whether a call failed because the engine was shutting down or starting up: the same call
/// may succeed a moment later.
pub fn is_away(reason: &str) -> bool {
    const WORDS: [&str; 7] = [
        "cannot connect to the docker daemon",
        "error during connect",
        "connection refused",
        "connection reset",
        "unexpected eof",
        "shutting down",
        "context canceled",
    ];
    let text = reason.to_lowercase();
    WORDS.iter().any(|word| text.contains(word))
}

/// Reports whether something in front of the engine's socket, such as a proxy, refused the call.
pub fn is_forbidden(reason: &str) -> bool {
    let text = reason.to_lowercase();
    ["403 forbidden", "daemon: forbidden"].iter().any(|word| text.contains(word))
}

/// Returns the failure for an engine that did not do or answer what it was asked, with the code and
/// the hint that fit its reason.
pub fn refusal(reason: &str) -> Failure {
    let text = reason.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["permission denied"]) {
        return Failure::new(Code::Permission, format!("Docker denies access: {reason}"))
            .hint("add your user to the group docker (and log in again), or run gpuctl as root");
    }
    if is_forbidden(reason) {
        return Failure::new(
            Code::Permission,
            "what stands before Docker's socket forbids this call (403 Forbidden)",
        )
        .hint("a socket proxy has to let containers be inspected, started and stopped, for example CONTAINERS=1, POST=1, ALLOW_START=1, ALLOW_STOP=1, ALLOW_RESTARTS=1");
    }
    if has(&["multiple ids found", "more than one result"]) {
        return Failure::new(Code::Config, format!("the container is not named clearly: {reason}"))
            .hint("write its name, or its whole id");
    }
    unreachable(reason)
}

fn unreachable(reason: &str) -> Failure {
    Failure::new(Code::Unavailable, format!("Docker cannot be reached: {reason}"))
        .hint("is the engine running? `systemctl start docker`; DOCKER_HOST names another one")
}

/// Returns the failure for output of `docker container inspect` that cannot be parsed.
pub fn not_understood(error: &serde_json::Error) -> Failure {
    let message = format!("cannot understand the output of `docker container inspect`: {error}");
    Failure::new(Code::Unavailable, message).hint("is `docker` in PATH the Docker client?")
}
