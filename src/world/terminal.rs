//! What happens to a terminal whose screen is ours: it gets another size, or Ctrl-Z takes it away.

use super::wait::is_ignored;
use rustix::fd::{AsFd, BorrowedFd};
use signal_hook::consts::{SIGTSTP, SIGWINCH};
use signal_hook::{flag, low_level::pipe};
use std::io::{Read, Result};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Terminal {
    changed: UnixStream,
    suspends: Arc<AtomicBool>,
}

impl Terminal {
    pub fn observed() -> Result<Terminal> {
        let (changed, sender) = UnixStream::pair()?;
        changed.set_nonblocking(true)?;
        let suspends = Arc::new(AtomicBool::new(false));
        if !is_ignored(SIGTSTP) {
            flag::register(SIGTSTP, suspends.clone())?;
            pipe::register(SIGTSTP, sender.try_clone()?)?;
        }
        pipe::register(SIGWINCH, sender)?;
        Ok(Terminal { changed, suspends })
    }

    /// Readable when something has happened.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Takes note of it; whether it is to be left now.
    pub fn is_taken_away(&self) -> bool {
        // As many as there were: one look at it is enough.
        while (&self.changed).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        self.suspends.swap(false, Ordering::SeqCst)
    }
}
