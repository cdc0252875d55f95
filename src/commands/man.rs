//! `gpuctl man`: prints the manual page of gpuctl, or writes all pages into a folder.

use crate::cli::ManArgs;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::manual::pages;
use crate::report::print_text;
use std::fs;
use std::io::Error;
use std::path::Path;

pub fn run(arguments: &ManArgs) -> Result<Answer> {
    let pages = pages();
    match &arguments.out {
        None => print_text(&pages[0].text)?,
        Some(folder) => {
            let failed = |path: &Path, error: Error| {
                Failure::new(Code::Io, format!("cannot write {}: {error}", path.display()))
            };
            fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
            for page in pages {
                let path = folder.join(&page.name);
                fs::write(&path, page.text).map_err(|e| failed(&path, e))?;
            }
        }
    }
    Ok(Answer::Yes)
}
