//! Tests that the doctor finds faults of the state folder and of the kernel.

use super::{DOCTOR, Fault, Machine, finds};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn a_state_folder_that_cannot_be_used_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    // The canary's ledger is kept in the same folder.
    let both = |message: &'static str| -> [Fault; 2] {
        [
            ("fail", "state.folder", message, "GPUCTL_STATE_DIR"),
            ("fail", "canary.ledger", message, "canary.state_dir"),
        ]
    };
    let state = rig.state_dir();
    fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    finds(machine.doctor(), &both("others may write to it"));
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();

    symlink(&state, rig.path("link")).unwrap();
    let elsewhere = |path: &str| machine.doctor().env("GPUCTL_STATE_DIR", rig.path(path));
    finds(elsewhere("link"), &both("not a folder, or a link"));
    finds(elsewhere("gpuctl.toml"), &both("not a folder, or a link"));
    fs::set_permissions(rig.path("home"), Permissions::from_mode(0o500)).unwrap();
    let below = rig.path("home/below/state");
    let unmakable = machine.doctor_without_privileges().env("GPUCTL_STATE_DIR", below);
    finds(unmakable, &both("home/below/state cannot be created in"));
}

#[test]
fn a_full_disk_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let user = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user" };
    let mount = format!("mount -t tmpfs -o size=1m,mode=700 none {}", rig.state_dir().display());
    let works =
        rig.shell(&format!("unshare {user} --mount sh -c '{mount}' >&- 2>&-; echo $?")).run();
    if works.succeeds().text() != "0\n" {
        return rig::skip_or_fail("namespaces", "mount namespace");
    }
    let fault = ("warn", "state.space", "1 MB free", "free some space there");
    let script = format!("exec unshare {user} --mount sh -c '{mount} && exec gpuctl {DOCTOR}'");
    finds(rig.shell(&script), &[fault]);
}

#[test]
fn logs_that_have_grown_large_are_found() {
    let machine = Machine::new();
    let logs = machine.rig.state_dir().join("logs");
    fs::create_dir(&logs).unwrap();
    // The file is sparse, so it takes no room.
    File::create(logs.join("vidi.log")).unwrap().set_len(1 << 30).unwrap();
    finds(machine.doctor(), &[]);
    File::create(logs.join("voice.log")).unwrap().set_len(1 << 20).unwrap();
    let largest = format!("truncate --size 0 {}", logs.join("vidi.log").display());
    finds(machine.doctor(), &[("warn", "state.logs", "1025 MB of logs", &largest)]);
}

#[test]
fn a_kernel_that_is_too_old_is_found() {
    let machine = Machine::new();
    let old = machine.rig.shell(&format!("exec setarch --uname-2.6 gpuctl {DOCTOR}"));
    finds(old, &[("fail", "system.kernel", "Linux 2.6.", "5.11 or later")]);
}
