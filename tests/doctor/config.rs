//! Tests that the doctor finds faults of the configuration file.

use super::{Machine, finds};
use rig::works;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

const NO_LIBRARY: super::Fault<'static> =
    ("fail", "nvml.library", "cannot be loaded", "install the NVIDIA driver");

/// Returns a fault of the configuration with those that are found beside it: while the
/// configuration cannot be used, neither the rig's NVML library nor its Docker is found.
fn beside(fault: super::Fault<'static>) -> [super::Fault<'static>; 3] {
    let no_docker = match works("docker", &["--version"]) {
        true => ("fail", "docker.engine", "Docker cannot be reached", "start docker"),
        false => ("fail", "docker.client", "there is no program `docker`", "install Docker's"),
    };
    [fault, no_docker, NO_LIBRARY]
}

fn mode(machine: &Machine, mode: u32) {
    fs::set_permissions(machine.rig.path("gpuctl.toml"), Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_is_missing_or_none_is_found() {
    let machine = Machine::new();
    let config = machine.rig.path("gpuctl.toml");
    fs::remove_file(&config).unwrap();
    finds(
        machine.doctor(),
        &beside(("fail", "config.file", "cannot be read", "gpuctl config init")),
    );
    mknodat(CWD, &config, FileType::Fifo, Mode::RUSR, 0).unwrap();
    finds(
        machine.doctor(),
        &beside(("fail", "config.file", "not a regular file", "--config PATH")),
    );
}

#[test]
fn a_file_that_others_may_write_or_own_is_found() {
    let machine = Machine::new();
    mode(&machine, 0o666);
    let fault = ("fail", "config.permissions", "others may write to it (mode 0666)", "chmod go-w");
    finds(machine.doctor(), &beside(fault));
    mode(&machine, 0o600);
    if rustix::process::geteuid().is_root() {
        chown(machine.rig.path("gpuctl.toml"), Some(12345), None).unwrap();
        let fault =
            ("fail", "config.permissions", "belongs to user 12345", "make it yours: chown 0");
        finds(machine.doctor(), &beside(fault));
    }
}

#[test]
fn a_token_that_is_missing_or_that_others_may_read_is_found() {
    let machine = Machine::new();
    let file = machine.rig.path("token");
    machine.rig.set("http.token_file", file.to_str().unwrap());
    let fault = ("fail", "http.token", "cannot be read", "openssl rand -hex 32");
    finds(machine.doctor(), &beside(fault)[..1]);
    fs::write(&file, "correct-horse").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let fault = ("fail", "http.token", "others may read or write it", "chmod 600");
    finds(machine.doctor(), &beside(fault)[..1]);
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    finds(machine.doctor(), &[]);
}

#[test]
fn a_password_that_others_may_read_is_found_and_the_name_of_a_variable_is_none() {
    let machine = Machine::new();
    let Some(redis) = machine.rig.redis_with(&["--requirepass", "pass4word"]) else { return };
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", redis.port());
    machine.rig.set("lock.url", url("$PASSWORD"));
    mode(&machine, 0o644);
    finds(machine.doctor().env("PASSWORD", "pass4word"), &[]);
    machine.rig.set("lock.url", url("pass4word"));
    finds(machine.doctor(), &[]);
    mode(&machine, 0o640);
    let fault = (
        "warn",
        "config.secrets",
        "it holds a password, but others may read it (mode 0640)",
        "chmod go-r",
    );
    finds(machine.doctor(), &[fault]);
}

#[test]
fn a_file_that_is_wrong_is_found_by_line_and_key() {
    let rows: [(&str, &str, &str, &str); 9] = [
        ("no TOML", "[gpu]\nindex = = 1\n", "gpuctl.toml:2:", "config schema"),
        (
            "an unknown key",
            "[gpu]\nreserve = 1\n",
            "gpuctl.toml:2: gpu.reserve: there is no such key",
            "did you mean `reserve_mb`?",
        ),
        (
            "another type",
            "[gpu]\nreserve_mb = \"much\"\n",
            "gpuctl.toml:2: gpu.reserve_mb: \"much\" is not a valid size",
            "config schema",
        ),
        (
            "a variable that is not set",
            "[lock]\nurl = \"redis://$NOT_SET_ANYWHERE/0\"\n",
            "lock.url: the environment variable NOT_SET_ANYWHERE is not set",
            "correct it",
        ),
        (
            "a lock that is none",
            "[lock]\nurl = \"http://h/\"\n",
            "lock.url: not a redis://",
            "correct it",
        ),
        (
            "one container twice",
            "[services.a]\ntype = \"docker\"\ncontainer = \"x\"\nvram_mb = 1\n[services.b]\ntype = \"docker\"\ncontainer = \"x\"\nvram_mb = 1\n",
            "services.b: manages the same container as service a",
            "correct it",
        ),
        (
            "a pattern for everything",
            "[services.a]\ntype = \"native\"\nstart = \"x\"\nmatch = \".*\"\nvram_mb = 1\n",
            "services.a.match: \".*\" matches processes of every kind",
            "correct it",
        ),
        (
            "a canary of nothing",
            "[canary]\nservice = \"x\"\n",
            "canary.service: no service \"x\" is configured",
            "correct it",
        ),
        ("not UTF-8", "", "not UTF-8 text", "correct it"),
    ];
    let machine = Machine::new();
    for (name, text, message, fix) in rows {
        machine.rig.write_config(text);
        if name == "not UTF-8" {
            fs::write(machine.rig.path("gpuctl.toml"), [0xff, 0xfe]).unwrap();
        }
        finds(machine.doctor(), &beside(("fail", "config.valid", message, fix)));
    }
}

#[test]
fn a_variable_of_the_environment_that_is_wrong_is_found() {
    let machine = Machine::new();
    let fault = ("fail", "config.valid", "$GPUCTL_LOCK_URL: not a redis://", "correct it");
    finds(machine.doctor().env("GPUCTL_LOCK_URL", "nonsense"), &beside(fault));
    let fault = ("fail", "config.valid", "$KLR_CANARY_PORT: \"x\" is not a port", "correct it");
    finds(machine.doctor().env("KLR_CANARY_PORT", "x"), &beside(fault));
}
