//! The highest fence that this machine has seen. It has to rise also where the server, or the lock's
//! folder, has forgotten everything.

use crate::config::Config;
use crate::world::files;
use rustix::fs::{FlockOperation, OFlags, flock};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// In the state folder.
const FILE: &str = "fence";

/// 0 where nothing is remembered.
pub fn remembered(config: &Config) -> u64 {
    let file = config.state_dir().map(|folder| folder.join(FILE));
    let text =
        file.ok().and_then(|file| std::io::read_to_string(files::existing(&file).ok()?).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Keeps a fence for later; tells why where that is not possible. In place and one at a time, since
/// several locks (of several cards) may share the state folder, and the next one waits for it.
pub fn remember(config: &Config, fence: u64) -> Option<String> {
    if fence <= remembered(config) {
        return None;
    }
    let keep = |folder: &Path| {
        files::private_dir(folder)?;
        let file = files::open(&folder.join(FILE), OFlags::RDWR)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Another lock's, which keeps its own; ours is kept with the next holder.
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
            locked => locked?,
        }
        if fence > remembered(config) {
            let text = fence.to_string();
            file.write_all_at(text.as_bytes(), 0)?;
            file.set_len(text.len() as u64)?;
        }
        std::io::Result::Ok(())
    };
    match config.state_dir() {
        Ok(folder) => keep(folder)
            .err()
            .map(|e| format!("the lock's fence cannot be remembered in {}: {e}", folder.display())),
        Err(failure) => Some(format!("the lock's fence cannot be remembered: {failure}")),
    }
}
