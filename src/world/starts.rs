//! Records of the starts of native services, one file for each service in the state folder: which
//! processes they began with, and where their output goes. A process may set its title, clear its
//! environment and leave its session; it cannot change what stands here.

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

/// A file as the kernel tells it from all others, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    /// The file at a path, where there is one.
    pub fn of(path: &Path) -> Option<FileId> {
        path.metadata().ok().map(|meta| FileId { device: meta.dev(), inode: meta.ino() })
    }
}

/// A service's start, as it was recorded, or a service whose processes were adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    pub service: String,
    /// The configuration that named the service, as a path and as a file. Both paths are as text,
    /// also where they are none.
    pub config: Option<String>,
    pub config_file: Option<FileId>,
    /// The start command and its folder, by which a renamed service is known again.
    pub command: String,
    pub cwd: Option<String>,
    /// The process table that the processes are in: the same numbers mean others elsewhere.
    pub boot: String,
    pub pid_namespace: Option<u64>,
    /// Its log, and the length of it before the start, in bytes.
    pub log: Option<FileId>,
    pub log_from: u64,
    /// The systemd scope that was made for it.
    #[serde(default)]
    pub scope: Option<String>,
    /// It began then, in clock ticks since boot, as the kernel counts the starts of processes.
    pub since: u64,
    /// The service has been ready since.
    pub was_ready: bool,
    pub processes: Vec<Id>,
}

impl StartRecord {
    /// A start of a service that has no process yet.
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

    /// Adds those of these processes that it does not have; whether there were any.
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

    /// The service that it is a start of, by its place among these: the one of that name, else the
    /// only one with the very same command, which has been renamed. A start from another configuration
    /// that is still there is nobody's here; one that has been moved is known by its file, or was at a
    /// path where there is none any more.
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
/// Far more than a record has, in bytes.
const LONGEST: u64 = 1024 * 1024;

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn path_of(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{service}.json"))
}

/// The records of this boot. One that is not ours alone, or is no record, proves nothing.
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

/// Adds processes to what is recorded of a service, be it a start or nothing yet.
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

/// The length of a service's log, in bytes, before it was last started: what it said before is of an
/// earlier start.
pub fn log_from(state_dir: &Path, service: &Service, config: Option<&Path>) -> u64 {
    let services = std::slice::from_ref(service);
    let starts = recorded(state_dir).into_iter();
    let of_it = starts.filter(|start| start.service_of(services, config).is_some());
    of_it.map(|start| start.log_from).max().unwrap_or_default()
}

/// Forgets the starts under this name, nothing of which is left.
pub fn forget(state_dir: &Path, service: &str) {
    // A record that stays proves nothing: its processes are gone.
    let _ = fs::remove_file(path_of(state_dir, service));
}

/// The file that a descriptor of a process is open on; `None` where we may not look. It is not asked
/// for afresh of a server that may hang.
pub fn open_file(descriptors: &Path, number: u32) -> Option<FileId> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let path = descriptors.join(number.to_string());
    let told =
        statx(rustix::fs::CWD, &path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO | StatxFlags::TYPE);
    let told = told.ok()?;
    let device = rustix::fs::makedev(told.stx_dev_major, told.stx_dev_minor);
    Some(FileId { device, inode: told.stx_ino })
}

/// The identity of an open file.
pub fn identity(file: &File) -> Option<FileId> {
    file.metadata().ok().map(|meta| FileId { device: meta.dev(), inode: meta.ino() })
}
