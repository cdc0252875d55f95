//! Events of a terminal whose screen gpuctl draws: it gets another size, Ctrl-Z takes it away, or a
//! key is pressed.

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

/// Observer of a terminal, which notices a change of its size and Ctrl-Z.
pub struct Terminal {
    changed: UnixStream,
    suspends: Arc<AtomicBool>,
}

impl Terminal {
    /// Begins to observe the terminal by its signals. Ctrl-Z is left out if its signal is ignored.
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

    /// Returns a descriptor that is readable when something has happened to the terminal.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Takes note of what has happened, and reports whether the terminal is to be left now, because
    /// of Ctrl-Z.
    pub fn is_taken_away(&self) -> bool {
        // However many signals there were, one look at the terminal is enough.
        while (&self.changed).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        self.suspends.swap(false, Ordering::SeqCst)
    }
}

/// The keys of the terminal at gpuctl's input. Until this is dropped, each key can be read as soon
/// as it is pressed, and is not shown. Ctrl-C and Ctrl-Z stay signals.
pub struct Keys {
    before: Termios,
}

impl Keys {
    /// Begins to read single keys. Returns `None` if the input is no terminal, or one that another
    /// process group uses now.
    pub fn take() -> Option<Keys> {
        if !is_in_foreground() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut each = before.clone();
        each.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // Ctrl-\ would end gpuctl and leave the terminal like this.
        each.special_codes[SpecialCodeIndex::VQUIT] = 0;
        // A read never waits, since another process at the same terminal may have been faster.
        each.special_codes[SpecialCodeIndex::VMIN] = 0;
        each.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Now, &each).ok()?;
        Some(Keys { before })
    }

    /// Returns a descriptor that is readable when a key was pressed. Returns `None` while gpuctl is
    /// in the background, where the kernel stops a process that reads from the terminal.
    pub fn fd(&self) -> Option<BorrowedFd<'static>> {
        is_in_foreground().then(stdin)
    }

    /// Reports whether a key was pressed. Input that was typed after it is left for the next
    /// reader.
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
        // In the background, the terminal is another process's, which has set it as it likes, and
        // the kernel would stop gpuctl.
        if is_in_foreground() {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
        }
    }
}

/// Reports whether the input is the terminal from which gpuctl was called, and gpuctl is in its
/// foreground.
fn is_in_foreground() -> bool {
    is_foreground(own_group(), stdin())
}

/// Returns the process group of gpuctl. Returns `None` if its leader is in another PID namespace,
/// as after `nsenter --pid` or `unshare --pid`, and so has no number in this one.
pub fn own_group() -> Option<Pid> {
    // SAFETY: a plain system call.
    #[expect(unsafe_code, reason = "rustix takes for granted that there is a number")]
    let group = unsafe { libc::getpgrp() };
    Pid::from_raw(group)
}

/// Reports whether a process group is in the foreground of a terminal.
pub fn is_foreground(group: Option<Pid>, terminal: impl AsFd) -> bool {
    group.is_some_and(|group| tcgetpgrp(terminal) == Ok(group))
}
