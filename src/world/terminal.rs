//! What happens to a terminal whose screen is ours: it gets another size, Ctrl-Z takes it away, or
//! a key is pressed.

use super::wait::is_ignored;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::process::Pid;
use rustix::stdio::stdin;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};
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

/// The keys of the terminal at our input, each told as it is pressed and not shown, until it is
/// dropped. Ctrl-C and Ctrl-Z stay signals.
pub struct Keys {
    before: Termios,
}

impl Keys {
    /// Takes them where they are ours to read: `None` where the input is no terminal, or one that
    /// is another's now.
    pub fn take() -> Option<Keys> {
        if !is_in_foreground() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut each = before.clone();
        each.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // Ctrl-\ would leave the terminal like this.
        each.special_codes[SpecialCodeIndex::VQUIT] = 0;
        // A read never waits: another one at the same terminal may have been faster.
        each.special_codes[SpecialCodeIndex::VMIN] = 0;
        each.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Now, &each).ok()?;
        Some(Keys { before })
    }

    /// Readable when one was pressed; `None` while we are in the background, where the kernel stops
    /// whoever reads.
    pub fn fd(&self) -> Option<BorrowedFd<'static>> {
        is_in_foreground().then(stdin)
    }

    /// Whether this key was pressed. What was typed after it is left for whoever reads next.
    pub fn have(&self, key: u8) -> bool {
        let mut pressed = [0];
        while self.fd().is_some_and(|fd| rustix::io::read(fd, &mut pressed) == Ok(1)) {
            if pressed == [key] {
                return true;
            }
        }
        false
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // In the background it is another's, who has set it as it likes, and we would be stopped.
        if is_in_foreground() {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
        }
    }
}

/// Whether the input is the terminal that we are called from, and ours for now.
fn is_in_foreground() -> bool {
    is_foreground(own_group(), stdin())
}

/// Returns our process group; `None` where who leads it is in another PID namespace, as after
/// `nsenter --pid` or `unshare --pid`, and so has no number here.
pub fn own_group() -> Option<Pid> {
    // SAFETY: a plain system call.
    #[expect(unsafe_code, reason = "rustix takes for granted that there is a number")]
    let group = unsafe { libc::getpgrp() };
    Pid::from_raw(group)
}

/// Whether a group is in the foreground of a terminal.
pub fn is_foreground(group: Option<Pid>, terminal: impl AsFd) -> bool {
    group.is_some_and(|group| tcgetpgrp(terminal) == Ok(group))
}
