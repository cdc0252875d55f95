//! Processes that gpuctl has not started: a service started by hand, a `tail -f`, an editor.

use std::process::{Child, Command, Stdio};

/// A process that gpuctl has not started. Dropping the `Bystander` ends the process.
pub struct Bystander {
    process: Child,
}

impl Bystander {
    /// Starts a command, without input or output, in the environment that the command has.
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
