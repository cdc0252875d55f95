//! Things that a machine may lack: a test that needs one is skipped and says so, or fails if
//! `GPUCTL_TEST_REQUIRE` asks for it.

use crate::programs;
use std::io::Write;
use std::panic::Location;
use std::path::Path;

/// Reports on stderr that the test is skipped because there is no `what`; fails the test if
/// `GPUCTL_TEST_REQUIRE` has `requirement`.
#[track_caller]
pub fn skip_or_fail(requirement: &str, what: &str) {
    let required = std::env::var("GPUCTL_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == requirement), "there is no {what}");
    let (thread, place) = (std::thread::current(), Location::caller());
    let test = thread.name().unwrap_or_default();
    // Not printed by eprintln!, which the test harness would swallow.
    writeln!(std::io::stderr(), "SKIPPED (no {what}): {test} at {place}").ok();
}

/// Returns whether the tests run as root; if not, reports the skip.
#[track_caller]
pub fn root_or_skip() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip_or_fail("root", "root");
    }
    is_root
}

/// The machine's own configuration file, which gpuctl uses if it finds no other.
pub const MACHINES_CONFIGURATION: &str = "/etc/gpuctl/config.toml";

/// Returns whether the machine has no configuration of its own, for a test of gpuctl without any;
/// if it has one, reports the skip.
#[track_caller]
pub fn unconfigured_or_skip() -> bool {
    let is_there = Path::new(MACHINES_CONFIGURATION).exists();
    if is_there {
        skip_or_fail("unconfigured", "machine without a configuration of its own");
    }
    !is_there
}

/// Returns whether there is Docker's client, for a test that needs no engine; if not, reports the
/// skip.
#[track_caller]
pub fn docker_client_or_skip() -> bool {
    let is_there = programs::works("docker", &["--version"]);
    if !is_there {
        skip_or_fail("docker", "Docker client");
    }
    is_there
}

/// Returns whether Docker's client has compose; if not, reports the skip.
#[track_caller]
pub fn compose_or_skip() -> bool {
    let is_there = programs::works("docker", &["compose", "version"]);
    if !is_there {
        skip_or_fail("compose", "compose, as a plugin of Docker's client");
    }
    is_there
}

/// Returns whether there is a `python3` to run the examples with; if not, reports the skip.
#[track_caller]
pub fn python_or_skip() -> bool {
    let is_there = programs::works("python3", &["--version"]);
    if !is_there {
        skip_or_fail("python", "python3");
    }
    is_there
}
