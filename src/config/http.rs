//! The `[http]` section: the token that a request over HTTP has to show.

use super::file::HttpTable;
use crate::error::{Failure, Result};
use crate::exit::Code;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Maximum number of bytes that are read from the token's file, far more than any token has.
const LONGEST: u64 = 4096;

/// The token of `gpuctl http`, or the place where it is kept.
#[derive(Clone, Debug)]
pub enum HttpToken {
    /// No token is needed, and only clients on this machine may ask.
    None,
    /// The token itself, as the configuration contains it.
    Written(String),
    /// Path of the file that contains the token. Only `gpuctl http` needs to be able to read that
    /// file.
    InFile(PathBuf),
}

impl HttpToken {
    /// Resolves the `[http]` table. Fails with the key that is wrong and the reason.
    pub fn of(table: &HttpTable) -> std::result::Result<HttpToken, (&'static str, String)> {
        let wrong = |key, problem: &str| Err((key, problem.to_owned()));
        match (&table.token, &table.token_file) {
            (None, None) => Ok(HttpToken::None),
            (Some(_), Some(_)) => wrong("token_file", "give either token or token_file, not both"),
            (Some(token), None) if !can_be_shown(token) => {
                wrong("token", "must be ASCII letters, digits and signs, and no space")
            }
            (Some(token), None) => Ok(HttpToken::Written(token.clone())),
            (None, Some(path)) if !Path::new(path).is_absolute() => {
                wrong("token_file", "is not the absolute path of a file")
            }
            (None, Some(path)) => Ok(HttpToken::InFile(path.into())),
        }
    }

    /// Returns the token, or `None` if none is needed. A file that contains it has to belong to
    /// this user or root; nobody else may change it, and nobody outside its group may read it.
    pub fn token(&self) -> Result<Option<String>> {
        let path = match self {
            HttpToken::None => return Ok(None),
            HttpToken::Written(token) => return Ok(Some(token.clone())),
            HttpToken::InFile(path) => path,
        };
        let shown = path.display();
        let failed = |e: std::io::Error| {
            let code = match e.kind() {
                ErrorKind::NotFound => Code::Config,
                ErrorKind::PermissionDenied => Code::Permission,
                _ => Code::Io,
            };
            Failure::new(code, format!("http.token_file {shown}: cannot be read: {e}"))
                .hint(format!("make one: (umask 077; openssl rand -hex 32 > {shown})"))
        };
        let mut file = open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let me = rustix::process::geteuid().as_raw();
        if ![me, 0].contains(&meta.uid()) || meta.mode() & 0o027 != 0 {
            let message = format!(
                "http.token_file {shown}: others may read or write it (user {}, mode {:04o})",
                meta.uid(),
                meta.mode() & 0o7777
            );
            let hint = format!("chown {me} {shown}; chmod 600 {shown}");
            return Err(Failure::new(Code::Permission, message).hint(hint));
        }
        let mut text = String::new();
        Read::take(&mut file, LONGEST).read_to_string(&mut text).map_err(failed)?;
        match text.trim() {
            token if can_be_shown(token) => Ok(Some(token.to_owned())),
            _ => {
                let message = format!("http.token_file {shown}: has no token of one word of ASCII");
                Err(Failure::new(Code::Config, message))
            }
        }
    }
}

/// Opens a regular file. Anything else is refused, since opening a FIFO that nobody writes to would
/// never end.
fn open(path: &Path) -> std::io::Result<File> {
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(std::io::Error::other("not a regular file")),
    }
}

/// Reports whether a token fits into a header field: printable ASCII characters, at least one, and
/// no space.
fn can_be_shown(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}
