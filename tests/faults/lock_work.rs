//! Work under the lock that goes on until the test says so: `gpuctl run` with a command that waits for a file.

use rig::{Rig, Running, until};
use std::fs;

pub struct Work<'a> {
    rig: &'a Rig,
    pub gpuctl: Running,
    /// The command's.
    pub pid: i32,
}

impl Work<'_> {
    /// Returns when the command works.
    #[track_caller]
    pub fn begin(rig: &Rig) -> Work<'_> {
        rig.native("vidi").add();
        let command = "echo $$ >pid.new; mv pid.new pid; until [ -e done ]; do sleep 0.05; done";
        let gpuctl = rig.gpuctl("run vidi -- sh -c").arg(command).spawn();
        let pid = || fs::read_to_string(rig.path("home/pid")).unwrap_or_default();
        until("the command works", || !pid().is_empty());
        Work { rig, gpuctl, pid: pid().trim_end().parse().unwrap() }
    }

    /// Whether the command is still there; a zombie has no command line.
    pub fn goes_on(&self) -> bool {
        !fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default().is_empty()
    }

    /// The command ends by itself, and with success.
    pub fn is_done(&self) {
        self.rig.file("home/done", "");
    }
}
