//! Tests of whose configuration gpuctl reads: as it runs commands, nobody else may be able to write
//! it. Files that are no text are refused as well.

use rig::{Rig, root_or_skip};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

/// ID of a user who owns nothing on the machine.
const STRANGER: u32 = 12345;

#[test]
fn row_44_a_file_that_others_may_write_is_refused() {
    let rig = Rig::new();
    rig.write_config("");
    if root_or_skip() {
        chown(rig.path("gpuctl.toml"), None, Some(STRANGER)).unwrap();
        fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(0o620)).unwrap();
        let refused = rig.gpuctl("status").run().fails("permission");
        let refused = refused.stderr_has("others may write to it (mode 0620)");
        drop(refused.stderr_has("group 12345 has, or may have, other members"));
    }
    for mode in [0o602, 0o666, 0o777] {
        fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(mode)).unwrap();
        for command in ["config check", "config show", "status", "can-fit 1"] {
            let refused = rig.gpuctl(command).run().fails("permission");
            let refused = refused.stderr_has(&format!("others may write to it (mode {mode:04o})"));
            drop(refused.stderr_has("hint: chmod go-w "));
        }
    }
    for mode in [0o600, 0o400, 0o644, 0o755] {
        fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(mode)).unwrap();
        rig.gpuctl("config check").run().succeeds().stdout_has("good");
    }
}

#[test]
fn a_file_that_the_owners_private_group_may_write_is_read_as_umask_002_leaves_it() {
    let rig = Rig::new();
    if !root_or_skip() {
        return;
    }
    rig.write_config("");
    chown(rig.path("gpuctl.toml"), None, Some(0)).unwrap();
    fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(0o664)).unwrap();
    rig.gpuctl("config check").run().succeeds().stdout_has("good");
}

#[test]
fn a_link_does_not_hide_that_others_may_write_the_file() {
    let rig = Rig::new();
    let target = rig.file("target.toml", "");
    fs::set_permissions(&target, Permissions::from_mode(0o666)).unwrap();
    symlink(&target, rig.path("link.toml")).unwrap();
    let check = || rig.gpuctl("config check --config").arg(rig.path("link.toml")).run();
    check().fails("permission").stderr_has("others may write to it");
    fs::set_permissions(&target, Permissions::from_mode(0o600)).unwrap();
    check().succeeds().stdout_has("target.toml: good");
}

#[test]
fn a_file_of_another_user_is_refused_and_one_of_root_is_not() {
    let rig = Rig::new();
    if !root_or_skip() {
        return;
    }
    rig.write_config("");
    chown(rig.path("gpuctl.toml"), Some(STRANGER), None).unwrap();
    let refused = rig.gpuctl("config check").run().fails("permission");
    drop(refused.stderr_has("belongs to user 12345").stderr_has("hint: make it yours: chown 0"));

    // The stranger calls gpuctl with a file of its own, one of root's, and one of somebody else's.
    fs::set_permissions(rig.path(""), Permissions::from_mode(0o711)).unwrap();
    // The program is copied, because the folder that it was built in need not be open to others.
    let program = rig.path("gpuctl-for-all");
    // Another process copies it: a child that this process forks for another test would have the
    // copy open too for a moment, and the copy would then be busy.
    rig.shell("exec cp \"$FROM\" \"$TO\"")
        .env("FROM", rig.path("bin/gpuctl"))
        .env("TO", &program)
        .run()
        .succeeds();
    let as_stranger = || {
        rig.shell(&format!(
            "exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups {} config check",
            program.display()
        ))
    };
    as_stranger().run().succeeds().stdout_has("good");
    chown(rig.path("gpuctl.toml"), Some(0), None).unwrap();
    fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(0o644)).unwrap();
    as_stranger().run().succeeds().stdout_has("good");
    chown(rig.path("gpuctl.toml"), Some(STRANGER + 1), None).unwrap();
    as_stranger().run().fails("permission").stderr_has("belongs to user 12346");
    chown(rig.path("gpuctl.toml"), Some(0), None).unwrap();
    fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(0o600)).unwrap();
    as_stranger().run().fails("permission").stderr_has("cannot be read: Permission denied");
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let rig = Rig::new();
    let fifo = rig.path("fifo.toml");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let socket = rig.path("socket.toml");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [fifo, rig.path("home"), "/dev/zero".into()] {
        let check = rig.gpuctl("config check --config").arg(&path).run().fails("config");
        drop(check.stderr_has(&format!("{}: not a regular file", path.display())));
    }
    let check = rig.gpuctl("config check --config").arg(&socket).run();
    drop(check.fails("io").stderr_has("socket.toml: cannot be read"));
}

#[test]
fn a_path_that_leads_nowhere_is_told_as_such() {
    let rig = Rig::new();
    let check = |path: &str| rig.gpuctl("config check --config").arg(path).run();
    check("no/such/file").fails("config").stderr_has("no/such/file: cannot be read: No such file");
    check("/dev/null/file")
        .fails("io")
        .stderr_has("/dev/null/file: cannot be read: Not a directory");
    check(&"x".repeat(5000)).fails("io").stderr_has("name too long");
    symlink("loop", rig.path("home/loop")).unwrap();
    check("loop").fails("io").stderr_has("loop: cannot be read");
}

#[test]
fn a_file_of_more_than_a_mebibyte_is_refused() {
    let rig = Rig::new();
    rig.write_config(&"#".repeat(1024 * 1024));
    rig.gpuctl("config check").run().succeeds().stdout_has("good");
    rig.write_config(&"#".repeat(1024 * 1024 + 1));
    rig.gpuctl("config check").run().fails("config").stderr_has("larger than 1048576 bytes");
}

#[test]
fn what_is_not_utf_8_is_refused() {
    let rig = Rig::new();
    for bytes in [&b"\xff\xfe[\0g\0p\0u\0]\0"[..], b"# caf\xe9", b"\xf0\x9f"] {
        rig.write_config("");
        fs::write(rig.path("gpuctl.toml"), bytes).unwrap();
        rig.gpuctl("config check").run().fails("config").stderr_has("not UTF-8 text");
    }
}
