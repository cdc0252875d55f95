//! Records of the starts of native services, one file for each service in the state folder: which
//! processes they began with, and where their output goes. A process may set its title, clear its
//! environment and leave its session, but it cannot change its record.

use super::files;
use super::host;
use super::process::Id;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Manager, Native, Service};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Identity by which the kernel tells a file from all others, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    /// Returns the identity of the file at a path, or `None` if there is none.
    pub fn of(path: &Path) -> Option<FileId> {
        path.metadata().ok().map(|meta| FileId { device: meta.dev(), inode: meta.ino() })
    }
}

/// Record of a service's start, or of the processes that were adopted for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    pub service: String,
    /// Path of the configuration that named the service, as text even if it is not UTF-8.
    pub config: Option<String>,
    /// Identity of the configuration's file, by which it is recognised after it has been moved.
    pub config_file: Option<FileId>,
    /// Start command, by which, together with its working directory, a renamed service is
    /// recognised.
    pub command: String,
    /// Working directory of the start command, as text even if it is not UTF-8.
    pub cwd: Option<String>,
    /// Id of the boot in which the PIDs are valid: after another boot, the same numbers mean other
    /// processes.
    pub boot: String,
    /// PID namespace in which the PIDs are valid: elsewhere, the same numbers mean other processes.
    pub pid_namespace: Option<u64>,
    /// Identity of the service's log.
    pub log: Option<FileId>,
    /// Length of the log before the start, in bytes.
    pub log_from: u64,
    /// Name of the systemd scope that was made for the start, if any.
    #[serde(default)]
    pub scope: Option<String>,
    /// Time at which the start began, in clock ticks since boot, as the kernel counts the starts of
    /// processes.
    pub since: u64,
    /// Whether the service has been ready at any time since the start.
    pub was_ready: bool,
    pub processes: Vec<Id>,
}

impl StartRecord {
    /// Creates the record of a start that begins now and has no process yet.
    pub fn new(service: &Service, native: &Native, config: Option<&Path>) -> StartRecord {
        StartRecord {
            service: service.name.clone(),
            config: config.map(text_of),
            config_file: config.and_then(FileId::of),
            command: native.start.clone(),
            cwd: native.cwd.as_deref().map(text_of),
            boot: host::boot_id(),
            pid_namespace: host::pid_namespace(),
            log: None,
            log_from: 0,
            scope: None,
            since: host::ticks(),
            was_ready: false,
            processes: Vec::new(),
        }
    }

    /// Adds those of these processes that the record does not have yet; reports whether there were
    /// any.
    pub fn add(&mut self, processes: impl IntoIterator<Item = Id>) -> bool {
        let known = self.processes.len();
        for id in processes {
            if !self.processes.contains(&id) {
                self.processes.push(id);
            }
        }
        self.processes.len() > known
    }

    fn is_of_this_table(&self) -> bool {
        self.boot == host::boot_id() && self.pid_namespace == host::pid_namespace()
    }

    /// Returns the index of the service that the record belongs to: the one with its name, or else
    /// the only one with exactly its command and working directory, which has been renamed. If the
    /// record names another configuration that still exists, it belongs to none of `services`; a
    /// configuration that was moved is recognised by its file, or by a missing file at its old
    /// path.
    pub fn service_of(&self, services: &[Service], config: Option<&Path>) -> Option<usize> {
        let is_same_file =
            || self.config_file.is_some() && self.config_file == config.and_then(FileId::of);
        let has_moved = || self.config.as_deref().is_some_and(|path| !Path::new(path).exists());
        let is_named_here = self.config == config.map(text_of) || is_same_file();
        if !is_named_here && !has_moved() {
            return None;
        }
        let native = |at: &usize| match &services[*at].manager {
            Manager::Native(native) => Some(native),
            _ => None,
        };
        let natives = || (0..services.len()).filter(|at| native(at).is_some());
        let named = natives().find(|at| services[*at].name == self.service);
        if is_named_here && named.is_some() {
            return named;
        }
        let is_same_command = |at: &usize| {
            native(at).is_some_and(|it| {
                it.start == self.command && it.cwd.as_deref().map(text_of) == self.cwd
            })
        };
        let mut same = natives().filter(is_same_command);
        same.next().filter(|_| same.next().is_none())
    }

    /// Writes the record to the state folder, in place of the service's earlier one.
    pub fn write(&self, state_dir: &Path) -> Result<()> {
        let folder = state_dir.join(FOLDER);
        let path = path_of(state_dir, &self.service);
        let text = serde_json::to_vec(self).expect("a record of plain fields");
        let write = || {
            files::private_dir(state_dir)?;
            files::private_dir(&folder)?;
            files::replace(&path, &text)
        };
        write().map_err(|e| {
            Failure::new(Code::Io, format!("cannot record the start in {}: {e}", path.display()))
                .hint(
                    "free some space or repair the folder, or choose another with GPUCTL_STATE_DIR",
                )
        })
    }
}

const FOLDER: &str = "starts";
/// Limit in bytes on what is read of a record, far above the size of any.
const LONGEST: u64 = 1024 * 1024;

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn path_of(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{service}.json"))
}

/// Returns the records of this boot and this PID namespace. Records in a folder that others own or
/// may write to, and files that are not records, prove nothing and are left out.
pub fn recorded(state_dir: &Path) -> Vec<StartRecord> {
    let folder = state_dir.join(FOLDER);
    if files::is_private(state_dir).is_err() || files::is_private(&folder).is_err() {
        return Vec::new();
    }
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    let starts = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
    starts.filter_map(|path| read(&path)).filter(StartRecord::is_of_this_table).collect()
}

fn read(path: &Path) -> Option<StartRecord> {
    let mut text = Vec::new();
    files::existing(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Adds processes to the record of a service's start, or makes a record if there is none yet.
pub fn adopt(
    state_dir: &Path,
    service: &Service,
    native: &Native,
    config: Option<&Path>,
    processes: &[Id],
) -> Result<()> {
    let services = std::slice::from_ref(service);
    let is_of_it = |start: &StartRecord| {
        start.service == service.name && start.service_of(services, config).is_some()
    };
    let known = recorded(state_dir).into_iter().find(is_of_it);
    let mut start = known.unwrap_or_else(|| StartRecord::new(service, native, config));
    start.add(processes.iter().copied());
    start.write(state_dir)
}

/// Returns the length of a service's log, in bytes, before its last start: all output up to there
/// comes from earlier starts.
pub fn log_from(state_dir: &Path, service: &Service, config: Option<&Path>) -> u64 {
    let services = std::slice::from_ref(service);
    let starts = recorded(state_dir).into_iter();
    let of_it = starts.filter(|start| start.service_of(services, config).is_some());
    of_it.map(|start| start.log_from).max().unwrap_or_default()
}

/// Removes the record of a service of whose start no process is left.
pub fn forget(state_dir: &Path, service: &str) {
    // A record that cannot be removed proves nothing: its processes are gone.
    let _ = fs::remove_file(path_of(state_dir, service));
}

/// Returns the file that a descriptor of a process is open on, or `None` if that may not be
/// inspected. It uses cached attributes, so that a file server that hangs is not asked.
pub fn open_file(descriptors: &Path, number: u32) -> Option<FileId> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let path = descriptors.join(number.to_string());
    let told =
        statx(rustix::fs::CWD, &path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO | StatxFlags::TYPE);
    let told = told.ok()?;
    let device = rustix::fs::makedev(told.stx_dev_major, told.stx_dev_minor);
    Some(FileId { device, inode: told.stx_ino })
}

/// Returns the identity of an open file.
pub fn identity(file: &File) -> Option<FileId> {
    file.metadata().ok().map(|meta| FileId { device: meta.dev(), inode: meta.ino() })
}
