//! Tests of a state folder that cannot be used (row 45): nothing is started, and no existing file
//! is touched.

use rig::{Rig, Service};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Asserts that a start is refused because of the state folder, while `status` still works.
#[track_caller]
fn assert_refused(rig: &Rig, vidi: &Service, folder: &Path, why: &str) {
    let start = rig.gpuctl("start vidi --quiet").env("GPUCTL_STATE_DIR", folder).run();
    start.fails("io").stderr_has(why).stderr_has("GPUCTL_STATE_DIR");
    rig.assert_no_process_of(vidi);
    // Commands that need no state work all the same.
    let status = rig.gpuctl("status").env("GPUCTL_STATE_DIR", folder).run();
    status.succeeds().stdout_has("vidi");
}

#[test]
fn row_45_a_read_only_state_folder_is_told() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    // Not even root can make folders there.
    assert_refused(&rig, &vidi, Path::new("/sys/gpuctl-state"), "/sys/gpuctl-state");
    let file = rig.file("a-file", "precious");
    assert_refused(&rig, &vidi, &file, "not a folder");
    assert_refused(&rig, &vidi, &file.join("below"), "a-file/below");
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn row_45_a_full_state_folder_is_told() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    // The file system is the test's own and has room for the folder of the logs and for nothing in
    // it.
    let full = "mount -t tmpfs -o mode=0700,nr_inodes=2 none \"$GPUCTL_STATE_DIR\"";
    let with = |command: &str| format!("unshare --mount sh -c '{full} && {command}' 2>&1");
    if rig.shell(&format!("{} || echo no", with("true"))).run().succeeds().text() != "" {
        return rig::skip_or_fail("namespaces", "file system that can be mounted");
    }
    let start = rig.shell(&with("gpuctl start vidi --quiet")).run();
    start.fails("io").stdout_has("No space left on device");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_45_no_link_is_followed_elsewhere() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let elsewhere = rig.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let precious = elsewhere.join("vidi.log");
    fs::write(&precious, "precious").unwrap();

    let state = rig.path("linked-state");
    symlink(&elsewhere, &state).unwrap();
    assert_refused(&rig, &vidi, &state, "linked-state");

    let logs = rig.state_dir().join("logs");
    symlink(&elsewhere, &logs).unwrap();
    assert_refused(&rig, &vidi, &rig.state_dir(), "logs");

    fs::remove_file(&logs).unwrap();
    fs::create_dir(&logs).unwrap();
    symlink(&precious, logs.join("vidi.log")).unwrap();
    assert_refused(&rig, &vidi, &rig.state_dir(), "vidi.log");
    fs::remove_file(logs.join("vidi.log")).unwrap();
    symlink(elsewhere.join("new"), logs.join("vidi.log")).unwrap();
    assert_refused(&rig, &vidi, &rig.state_dir(), "vidi.log");

    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(!elsewhere.join("new").exists());
}

#[test]
fn row_45_a_log_that_is_no_file_or_a_folder_that_others_may_write_is_refused() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let logs = rig.state_dir().join("logs");
    fs::create_dir(&logs).unwrap();
    fs::set_permissions(&logs, Permissions::from_mode(0o777)).unwrap();
    assert_refused(&rig, &vidi, &rig.state_dir(), "others may write");
    fs::set_permissions(&logs, Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(logs.join("vidi.log")).unwrap();
    assert_refused(&rig, &vidi, &rig.state_dir(), "vidi.log");
}

#[test]
fn row_45_what_gpuctl_makes_is_private() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let state = rig.path("fresh/state");
    let start = rig.gpuctl("start vidi").env("GPUCTL_STATE_DIR", &state).run();
    start.succeeds().stdout_has("started vidi").progress();
    let mode = |path: &str| fs::metadata(state.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("logs"), mode("logs/vidi.log")), (0o700, 0o700, 0o600));
}
