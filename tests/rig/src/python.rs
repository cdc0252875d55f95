//! Python with this repository's client, in a fresh virtual environment of the rig's own.

use crate::gpuctl::Invocation;
use crate::page::repository;
use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use std::fs;

impl Rig {
    /// Makes the virtual environment; returns `false`, after reporting the skip, if there is no
    /// Python 3.9 or later.
    #[track_caller]
    pub fn has_python(&self) -> bool {
        let is_new = "import sys, venv; sys.exit(sys.version_info < (3, 9))";
        if !programs::works("python3", &["-c", is_new]) {
            skip_or_fail("python", "Python 3.9 or later");
            return false;
        }
        let make = format!(
            "python3 -m venv --without-pip {0} && {0}/bin/python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'",
            self.path("venv").display()
        );
        let made = self.shell(&make).run().succeeds().text();
        let ours = repository().join("python");
        fs::write(format!("{}/gpuctl.pth", made.trim()), format!("{}\n", ours.display())).unwrap();
        true
    }

    /// Prepares a call of a Python script, in which `gpuctl`, `asyncio`, `json`, `os`, `sys` and
    /// `time` are imported already.
    #[track_caller]
    pub fn python(&self, script: &str) -> Invocation {
        let program = self.path("venv/bin/python");
        let path = self.file(
            "script.py",
            &format!("import asyncio, json, os, sys, time\nimport gpuctl\n{script}"),
        );
        self.shell(&format!("exec {} -B {}", program.display(), path.display()))
    }
}
