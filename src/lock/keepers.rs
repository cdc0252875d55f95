//! Finds the processes that keep the machine's lock: those with an open descriptor of its file on
//! which the kernel has set one of gpuctl's locks, as far as this process may look into them.

use super::record::KeeperProcess;
use crate::model::Pid;
use rustix::fd::{AsRawFd, BorrowedFd};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the processes that keep the machine's lock, other than this one, in the order of their
/// PIDs.
pub fn keepers(file: &File, path: &Path) -> Vec<KeeperProcess> {
    let (Ok(meta), Ok(entries)) = (file.metadata(), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let me = std::process::id() as Pid;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let keeps = |pid: &Pid| *pid != me && keeps(*pid, path, meta.ino());
    let mut keepers: Vec<KeeperProcess> = pids.filter(keeps).map(named).collect();
    keepers.sort_by_key(|keeper| keeper.pid);
    keepers
}

fn named(pid: Pid) -> KeeperProcess {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    KeeperProcess { pid, name: super::record::shown(name.trim_end()) }
}

fn keeps(pid: Pid, path: &Path, inode: u64) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| {
        // A process of another mount namespace may have the file at another path, but under no
        // other name.
        let is_it = fs::read_link(entry.path()).is_ok_and(|at| at.file_name() == path.file_name());
        is_it && {
            let number = entry.file_name();
            let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
            fs::read_to_string(info).is_ok_and(|info| tells_of_a_lock(&info, inode))
        }
    })
}

/// Reports whether a descriptor, by its `fdinfo`, has the file's door or is inside. A waiter has
/// neither: its lock is one of its process, not of the descriptor.
fn tells_of_a_lock(info: &str, inode: u64) -> bool {
    let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.any(|lock| {
        let fields: Vec<&str> = lock.split_whitespace().collect();
        let is_of_description = fields.iter().any(|field| matches!(*field, "FLOCK" | "OFDLCK"));
        let is_on_file =
            fields.iter().any(|field| field.rsplit(':').next() == Some(&inode.to_string()));
        is_of_description && is_on_file
    })
}

/// Returns the descriptors of this file that the caller of gpuctl has passed on to it.
pub fn inherited(file: &File) -> std::io::Result<Vec<BorrowedFd<'static>>> {
    let ours = file.metadata()?;
    let numbers = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let meta = fs::metadata(entry.path()).ok()?;
        let is_it = (meta.dev(), meta.ino()) == (ours.dev(), ours.ino());
        (is_it && number > 2 && number != file.as_raw_fd()).then_some(number)
    });
    // SAFETY: none of our own has such a number, and nobody else closes them.
    #[expect(unsafe_code, reason = "they were opened by our caller")]
    Ok(numbers.map(|number| unsafe { BorrowedFd::borrow_raw(number) }).collect())
}
