//! Reads a configuration file, whose commands gpuctl runs: the file has to belong to the caller or
//! root, and nobody else may be able to write to it.

use crate::error::{Failure, Result};
use crate::exit::Code;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Maximum size of a configuration in bytes (1 MiB), far more than any needs.
const LIMIT: u64 = 1024 * 1024;

/// Reads the text of a configuration file, provided that the file can be trusted.
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

/// Opens a configuration file, or fails if it is not a regular file.
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

/// Fails unless the file belongs to this user or root, and nobody else may write to it. It judges
/// the open file, which cannot be exchanged before it is read.
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
    let (by_group, by_all) = (meta.mode() & 0o020 != 0, meta.mode() & 0o002 != 0);
    if by_all || (by_group && !is_private_group(meta.gid(), meta.uid())) {
        let failure = Failure::new(
            Code::Permission,
            format!("configuration {shown}: others may write to it (mode {:04o}), and gpuctl runs commands from it", meta.mode() & 0o7777),
        )
        .hint(format!("chmod go-w {shown}"));
        return Err(match by_all {
            true => failure,
            false => failure.hint(format!(
                "a group that is its owner's alone may write to it; group {} has, or may have, other members",
                meta.gid()
            )),
        });
    }
    Ok(())
}

/// Reports whether a group has no member but this user, as far as /etc/group and /etc/passwd show.
fn is_private_group(gid: u32, uid: u32) -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    has_no_other_member(&read("/etc/group"), &read("/etc/passwd"), gid, uid)
}

/// Reports whether a group has no member but one user, judged by the texts of group(5) and
/// passwd(5): it is that user's first group, bears the user's name, lists nobody else, and is
/// nobody else's first group. `false` if they do not list the group or the user, which may then
/// have members that they do not list either.
pub fn has_no_other_member(groups: &str, users: &str, gid: u32, uid: u32) -> bool {
    let group = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut group = group.filter(|fields| fields.get(2) == Some(&gid.to_string().as_str()));
    let (Some(group), None) = (group.next(), group.next()) else { return false };
    let users = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut firsts = users.filter(|fields| fields.get(3) == Some(&gid.to_string().as_str()));
    let (Some(owner), None) = (firsts.next(), firsts.next()) else { return false };
    let members = group.get(3).copied().unwrap_or_default().split(',');
    owner.get(2) == Some(&uid.to_string().as_str())
        && owner[0] == group[0]
        && members.filter(|member| !member.is_empty()).all(|member| member == owner[0])
}

/// Reads the text of an open configuration file, or fails if it is too large or not UTF-8.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_where_nobody_else_can_be_in_it() {
        let users =
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:100::/:/bin/sh\n";
        let is_private = |groups: &str, users: &str| has_no_other_member(groups, users, 1000, 1000);
        assert!(is_private("root:x:0:\nann:x:1000:\n", users));
        assert!(is_private("ann:x:1000:ann\n", users));
        for (groups, users) in [
            ("ann:x:1000:bob\n", users),
            ("ann:x:1000:ann,bob\n", users),
            ("staff:x:1000:\n", users),
            ("ann:x:1000:\nanns:x:1000:bob\n", users),
            ("ann:x:1000:\n", "ann:x:1000:1000::/:/bin/sh\neve:x:1002:1000::/:/bin/sh\n"),
            ("ann:x:1000:\n", "bob:x:1001:1000::/:/bin/sh\n"),
            ("", users),
            ("ann:x:1000:\n", ""),
        ] {
            assert!(!is_private(groups, users), "{groups:?} {users:?}");
        }
    }
}
