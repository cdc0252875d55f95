//! Reading a file whose content gets run: it must be the caller's or root's, and nobody else may
//! write it.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Far more than any configuration needs.
const LIMIT: u64 = 1024 * 1024;

pub fn read(path: &Path) -> Result<String> {
    let mut file = open(path)?;
    judge(&file, path)?;
    text(&mut file, path)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => Code::Config,
        std::io::ErrorKind::PermissionDenied => Code::Permission,
        _ => Code::Io,
    };
    let message = format!("configuration {}: cannot be read: {error}", path.display());
    match code {
        Code::Config => {
            Failure::new(code, message).hint("write one with `gpuctl config init --output PATH`")
        }
        _ => Failure::new(code, message),
    }
}

/// Opens a regular file.
pub fn open(path: &Path) -> Result<fs::File> {
    let failed = |e: std::io::Error| unreadable(path, &e);
    // Not blocking: a FIFO that nobody writes to would never open otherwise.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let file = fs::File::from(fd);
    if !file.metadata().map_err(failed)?.is_file() {
        let message = format!("configuration {}: not a regular file", path.display());
        return Err(Failure::new(Code::Config, message));
    }
    Ok(file)
}

/// Whose it is, and who may write it; of the open file, so that it cannot be exchanged in between.
pub fn judge(file: &fs::File, path: &Path) -> Result<()> {
    let shown = path.display();
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(Failure::new(
            Code::Permission,
            format!(
                "configuration {shown}: belongs to user {}, and gpuctl runs commands from it",
                meta.uid()
            ),
        )
        .hint(format!("make it yours: chown {me} {shown}")));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(Failure::new(
            Code::Permission,
            format!("configuration {shown}: others may write to it (mode {:04o}), and gpuctl runs commands from it", meta.mode() & 0o7777),
        )
        .hint(format!("chmod go-w {shown}")));
    }
    Ok(())
}

pub fn text(file: &mut fs::File, path: &Path) -> Result<String> {
    let shown = path.display();
    let mut text = String::new();
    match file.take(LIMIT + 1).read_to_string(&mut text) {
        Ok(read) if read as u64 > LIMIT => Err(Failure::new(
            Code::Config,
            format!("configuration {shown}: larger than {LIMIT} bytes"),
        )),
        Ok(_) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Failure::new(Code::Config, format!("configuration {shown}: not UTF-8 text")))
        }
        Err(e) => Err(unreadable(path, &e)),
    }
}
