//! What this machine remembers of the lock: its highest fence, and the command that works under it.
//! Both have to hold also where the server, or the lock's folder, has forgotten everything.

use super::Record;
use crate::config::Config;
use crate::world::files;
use rustix::fs::{FlockOperation, OFlags, flock};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// In the state folder, of all locks together.
const FENCE: &str = "fence";

pub struct Memory {
    /// `None`: there is none to be had, and nothing is remembered.
    folder: Option<PathBuf>,
    /// Of this lock. Its place may hold a password.
    command: String,
}

impl Memory {
    pub fn new(config: &Config) -> Memory {
        let mut hasher = DefaultHasher::new();
        (&config.lock.place, &config.lock.key).hash(&mut hasher);
        let command = format!("command-{:016x}.json", hasher.finish());
        Memory { folder: config.state_dir().ok().map(Path::to_owned), command }
    }

    fn read(&self, name: &str) -> Option<String> {
        let file = files::existing(&self.folder.as_ref()?.join(name)).ok()?;
        std::io::read_to_string(file).ok()
    }

    /// 0 where nothing is remembered.
    pub fn fence(&self) -> u64 {
        self.read(FENCE).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Keeps a fence for later; tells why where that is not possible. In place and one at a time,
    /// since several locks (of several cards) may share the state folder, and the next one waits
    /// for it.
    pub fn keep_fence(&self, fence: u64) -> Option<String> {
        if fence <= self.fence() {
            return None;
        }
        let Some(folder) = &self.folder else {
            return Some("the lock's fence cannot be remembered: no folder for state".to_owned());
        };
        let keep = || {
            files::private_dir(folder)?;
            let file = files::open(&folder.join(FENCE), OFlags::RDWR)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Another lock's, which keeps its own; ours is kept with the next holder.
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
                locked => locked?,
            }
            if fence > self.fence() {
                let text = fence.to_string();
                file.write_all_at(text.as_bytes(), 0)?;
                file.set_len(text.len() as u64)?;
            }
            std::io::Result::Ok(())
        };
        keep()
            .err()
            .map(|e| format!("the lock's fence cannot be remembered in {}: {e}", folder.display()))
    }

    /// Keeps what the lock's record says of the command, before that begins to work.
    pub fn keep_command(&self, record: &Record) {
        let Some(folder) = &self.folder else { return };
        let text = serde_json::to_string(record).expect("a record of plain fields");
        let kept = files::private_dir(folder)
            .and_then(|()| files::replace(&folder.join(&self.command), text.as_bytes()));
        if let Err(e) = kept {
            // The lock's record says it too.
            log::warn!("the command cannot be remembered in {}: {e}", folder.display());
        }
    }

    /// The last command, where something of it is still at work.
    pub fn command_at_work(&self) -> Option<Record> {
        let record = self.last_command()?;
        if record.command_members().is_empty() {
            self.forget_command(&record);
            return None;
        }
        Some(record)
    }

    /// Where it is not another's by now.
    pub fn forget_command(&self, record: &Record) {
        let is_it = self.last_command().is_some_and(|last| last.token == record.token);
        if let Some(folder) = self.folder.as_ref().filter(|_| is_it) {
            // One that stays is seen to be over by who comes next.
            let _ = std::fs::remove_file(folder.join(&self.command));
        }
    }

    fn last_command(&self) -> Option<Record> {
        serde_json::from_str(&self.read(&self.command)?).ok()
    }
}
