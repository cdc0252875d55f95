//! A model server as Python programs are: it can overwrite its command line and environment, and do
//! whatever else hides it.

use crate::programs::works;
use crate::rig::Rig;
use crate::skip::skip_or_fail;

const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

impl Rig {
    /// Returns the command line of `python_server.py`, to which flags can be added. Returns `None`,
    /// after reporting the skip, if no Python has setproctitle.
    #[track_caller]
    pub fn python_server(&self) -> Option<String> {
        let python = python_with("setproctitle")?;
        let program = self.file("python_server.py", include_str!("python_server.py"));
        Some(format!("{python} {} --card {}", program.display(), self.card.folder().display()))
    }
}

/// Returns a Python that has this module, or `None`, after reporting the skip, if there is none.
#[track_caller]
pub fn python_with(module: &str) -> Option<&'static str> {
    let has = |python: &&&str| works(python, &["-c", &format!("import {module}")]);
    let python = PYTHONS.iter().find(has);
    if python.is_none() {
        skip_or_fail("python", &format!("Python with {module}"));
    }
    python.copied()
}
