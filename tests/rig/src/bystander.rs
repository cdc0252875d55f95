//! Processes that gpuctl has not started: a service started by hand, a `tail -f`, an editor. They end when dropped.

use std::process::{Child, Command, Stdio};

pub struct Bystander {
    process: Child,
}

impl Bystander {
    /// `sh -c`, in the environment that `command` has.
    pub fn start(mut command: Command) -> Bystander {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Bystander { process }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
