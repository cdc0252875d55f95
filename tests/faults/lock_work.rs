//! Work under the lock that goes on until the test says so: a `gpuctl run` whose command waits for
//! a file.

use rig::{Rig, Running, until};
use std::fs;

/// A `gpuctl run` whose command is at work.
pub struct Work<'a> {
    rig: &'a Rig,
    pub gpuctl: Running,
    /// PID of the command.
    pub pid: i32,
}

impl Work<'_> {
    /// Adds the service `vidi`, starts the run under it and returns when its command works.
    #[track_caller]
    pub fn begin(rig: &Rig) -> Work<'_> {
        rig.native("vidi").add();
        let command = "echo $$ >pid.new; mv pid.new pid; until [ -e done ]; do sleep 0.05; done";
        let gpuctl = rig.gpuctl("run vidi -- sh -c").arg(command).spawn();
        let pid = || fs::read_to_string(rig.path("home/pid")).unwrap_or_default();
        until("the command works", || !pid().is_empty());
        Work { rig, gpuctl, pid: pid().trim_end().parse().unwrap() }
    }

    /// Reports whether the command still runs. A zombie, which has no command line, does not.
    pub fn goes_on(&self) -> bool {
        !fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default().is_empty()
    }

    /// Makes the command end by itself, with success.
    pub fn is_done(&self) {
        self.rig.file("home/done", "");
    }
}
