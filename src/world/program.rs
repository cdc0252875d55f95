//! Finds a program that is to be started, as execvp(3) and the shell find it, and explains why a
//! program could not be started.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Folders in which programs are looked for if there is no `PATH`, whichever C library is used.
const DEFAULT_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// Finds a program as it would be started in the folder `cwd`, which is empty for gpuctl's own. A
/// program with a slash is a path; any other is looked for in the folders of `path`, the value of
/// `PATH` if there is one. Fails as its start would, by [`Code::CommandNotFound`] or
/// [`Code::NotExecutable`].
pub fn find(program: &OsStr, cwd: &Path, path: Option<&OsStr>) -> Result<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        let file = cwd.join(program);
        return match examine(&file) {
            Ok(()) => Ok(file),
            Err(e) => Err(not_started(&file.to_string_lossy(), &e)),
        };
    }
    // The first file that can be executed counts; one that cannot is still worth reporting.
    let mut problem = None;
    for folder in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        let file = cwd.join(folder).join(program);
        match examine(&file) {
            Ok(()) => return Ok(file),
            Err(e) if is_absence(&e) || e.kind() == ErrorKind::NotADirectory => {}
            Err(e) => problem = Some(not_started(&file.to_string_lossy(), &e)),
        }
    }
    Err(problem.unwrap_or_else(|| {
        let name = program.to_string_lossy();
        let folders = if path.is_some() { "the PATH" } else { DEFAULT_PATH };
        let message = format!("there is no program `{name}` in {folders}");
        Failure::new(Code::CommandNotFound, message).hint("install it, or give its path")
    }))
}

/// Returns the failure of a program whose start has failed, or would fail, with `error`.
pub fn not_started(program: &str, error: &Error) -> Failure {
    let message = match is_absence(error) {
        true => format!("`{program}` does not exist"),
        false => format!("`{program}` cannot be executed: {error}"),
    };
    match error.kind() {
        ErrorKind::NotFound => {
            Failure::new(Code::CommandNotFound, message).hint("install or restore it")
        }
        ErrorKind::PermissionDenied => {
            Failure::new(Code::NotExecutable, message).hint("make it executable with `chmod +x`")
        }
        _ => Failure::new(Code::NotExecutable, message),
    }
}

/// Reports whether the file itself is missing, rather than something that it needs.
fn is_absence(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.raw_os_error().is_some()
}

/// Fails in the same way as an attempt to execute the file would.
fn examine(file: &Path) -> std::io::Result<()> {
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::IsADirectory, "it is not a file"));
    }
    access(file, Access::EXEC_OK)?;
    match interpreter(file).filter(|interpreter| !interpreter.exists()) {
        Some(missing) => {
            let why = format!("its interpreter {} is missing", missing.display());
            Err(Error::new(ErrorKind::NotFound, why))
        }
        None => Ok(()),
    }
}

/// Returns the interpreter that the first line of a script names, or `None` if the file is no
/// script.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let mut begin = [0; 256];
    let read = File::open(file).ok()?.read(&mut begin).ok()?;
    let line = begin[..read].split(|byte| *byte == b'\n').next()?.strip_prefix(b"#!")?;
    let line = std::str::from_utf8(line).ok()?;
    line.split_whitespace().next().map(PathBuf::from)
}
