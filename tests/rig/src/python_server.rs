//! The model server as Python programs are: one that overwrites its command line and environment, and does whatever else
//! hides it.

use crate::programs::works;
use crate::rig::Rig;
use crate::skip::skip_or_fail;

const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

impl Rig {
    /// The command line of `python_server.py`, to which flags are added. None, loudly, where no Python has setproctitle.
    #[track_caller]
    pub fn python_server(&self) -> Option<String> {
        let python = python_with("setproctitle")?;
        let program = self.file("python_server.py", include_str!("python_server.py"));
        Some(format!("{python} {} --card {}", program.display(), self.card.folder().display()))
    }
}

/// A Python that has a module; if there is none, it has been said so.
#[track_caller]
pub fn python_with(module: &str) -> Option<&'static str> {
    let has = |python: &&&str| works(python, &["-c", &format!("import {module}")]);
    let python = PYTHONS.iter().find(has);
    if python.is_none() {
        skip_or_fail("python", &format!("Python with {module}"));
    }
    python.copied()
}
