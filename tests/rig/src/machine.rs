//! Machines of a rig's own, as far as the lock is concerned: a command sees, in a mount namespace
//! of its own, a folder of the rig in place of the one in which a machine keeps its locks.

use crate::programs;
use crate::skip::skip_or_fail;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Folders in which gpuctl may keep the machine's lock; it uses the first one that is there.
const FOLDERS: [&str; 2] = ["/run/lock", "/var/tmp"];

/// Returns whether a machine of a rig's own can be made here, as tried once with this folder; if it
/// cannot, reports the skip.
#[track_caller]
pub fn can_be_had_or_skip(folder: &Path) -> bool {
    static CAN_BE_HAD: OnceLock<bool> = OnceLock::new();
    let try_it = || {
        let mut command = programs::command("true");
        on(&mut command, folder);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let can_be_had = *CAN_BE_HAD.get_or_init(try_it);
    if !can_be_had {
        skip_or_fail("namespaces", "mount namespace for a machine of the test's own");
    }
    can_be_had
}

/// Makes a command run on the machine whose locks are in this folder.
pub fn on(command: &mut Command, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o1777)).unwrap();
    let machines = FOLDERS.iter().find(|folder| Path::new(folder).is_dir()).expect("a folder");
    let machines = CString::new(*machines).unwrap();
    let folder = CString::new(folder.as_os_str().as_bytes()).unwrap();
    let (uid, gid) = (geteuid(), getegid());
    let (user, group) = (format!("{0} {0} 1", uid.as_raw()), format!("{0} {0} 1", gid.as_raw()));
    let enter = move || {
        let others = if uid.is_root() { UnshareFlags::empty() } else { UnshareFlags::NEWUSER };
        // SAFETY: the call concerns the new process alone, which has one thread and is about to
        // become another program.
        #[expect(unsafe_code, reason = "the program cannot do it itself")]
        unsafe {
            unshare_unsafe(UnshareFlags::NEWNS | others)?;
        }
        if !uid.is_root() {
            // The process keeps its user and its group.
            put(c"/proc/self/setgroups", "deny")?;
            put(c"/proc/self/uid_map", &user)?;
            put(c"/proc/self/gid_map", &group)?;
        }
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        Ok(mount_bind(folder.as_c_str(), machines.as_c_str())?)
    };
    // SAFETY: the closure only makes system calls, on data that was made before the fork.
    #[expect(unsafe_code, reason = "a namespace is entered between fork and exec")]
    unsafe {
        command.pre_exec(enter);
    }
}

fn put(path: &std::ffi::CStr, text: &str) -> io::Result<()> {
    let file = open(path, OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}
