//! A terminal with a command on it, as a person has one: it can be typed at and read.

use crate::wait::comes;
use rustix::fd::{AsFd, OwnedFd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;

/// A terminal with a command on it. Dropping the `Terminal` kills the command.
pub struct Terminal {
    ours: Arc<OwnedFd>,
    shown: Arc<Mutex<Vec<u8>>>,
    leader: Child,
}

impl Terminal {
    /// Starts a command on a new terminal. The command itself has to make that terminal, which is
    /// its input, the one of its session.
    pub fn start(mut command: Command) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = std::ffi::OsString::from_vec(ptsname(&ours, []).unwrap().into_bytes());
        // setsid(1) makes it the session's terminal; this process has one already, or wants none.
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let theirs = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let theirs = || File::from(theirs.try_clone().unwrap());
        command.stdin(theirs()).stdout(theirs()).stderr(theirs()).env("PS1", "ready> ");
        let leader = command.env("TERM", "dumb").spawn().unwrap();
        let (ours, shown) = (Arc::new(ours), Arc::new(Mutex::new(Vec::new())));
        let (source, sink) = (ours.clone(), shown.clone());
        thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = rustix::io::read(source.as_fd(), &mut part) {
                sink.lock().unwrap().extend(&part[..count]);
            }
        });
        Terminal { ours, shown, leader }
    }

    /// Returns the PID of the command that the terminal was started with.
    pub fn pid(&self) -> i32 {
        self.leader.id() as i32
    }

    /// Types a line and presses Enter.
    pub fn types(&self, line: &str) {
        self.presses(&format!("{line}\n"));
    }

    /// Presses keys; `"\x03"` is Ctrl-C.
    pub fn presses(&self, keys: &str) {
        assert_eq!(rustix::io::write(&*self.ours, keys.as_bytes()), Ok(keys.len()));
    }

    /// Returns everything that has been shown, what was typed included.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until a text has been shown.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        assert!(comes(|| self.text().contains(text)), "no {text:?}; it shows:\n{}", self.text());
    }

    /// Sets the rows and the columns at once, as a window does; stty(1) sets one after the other.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&*self.ours, size).unwrap();
    }

    /// Returns the process group in the foreground, or 0 if that cannot be found out.
    pub fn foreground(&self) -> i32 {
        rustix::termios::tcgetpgrp(&*self.ours).map_or(0, |group| group.as_raw_pid())
    }

    /// Waits until the command that the terminal was started with is in the foreground.
    #[track_caller]
    pub fn is_the_leaders(&self) {
        let has = || self.foreground() == self.pid();
        assert!(comes(has), "the foreground is another's; it shows:\n{}", self.text());
    }

    /// Waits until the command that the terminal was started with has ended, and returns how it
    /// ended.
    #[track_caller]
    pub fn ends(mut self) -> ExitStatus {
        let mut status = None;
        let ended = comes(|| {
            status = self.leader.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end; it shows:\n{}", self.text());
        status.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- terminal\n{}", self.text());
        }
        self.leader.kill().ok();
        self.leader.wait().ok();
    }
}
