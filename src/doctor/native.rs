//! Checks of native services: the programs and folders that they are started with, and their
//! patterns.

use super::check::{Check, CheckId};
use super::programs::first;
use super::{Examined, UNCONFIGURED};
use crate::config::{Overlap, overlaps};
use crate::model::{Manager, Native};
use crate::world::program;
use std::ffi::OsStr;
use std::path::Path;

pub fn examine(case: &Examined) -> Vec<Check> {
    let Some(config) = &case.config else {
        return vec![Check::skip(CheckId::NativeStart, UNCONFIGURED)];
    };
    let natives: Vec<(&str, &Native)> = config
        .services
        .iter()
        .filter_map(|service| match &service.manager {
            Manager::Native(native) => Some((service.name.as_str(), native)),
            _ => None,
        })
        .collect();
    if natives.is_empty() {
        return vec![Check::skip(CheckId::NativeStart, "no service is native")];
    }
    let overlaps = overlaps(config);
    let mut checks = Vec::new();
    for (name, native) in natives {
        let fix = format!("correct services.{name}.cwd, or create that folder");
        let folder = native.cwd.as_ref().map(|cwd| match cwd.is_dir() {
            true => Check::pass(CheckId::NativeFolder, cwd.display().to_string()),
            false => Check::fail(
                CheckId::NativeFolder,
                format!("there is no folder {}", cwd.display()),
                fix,
            ),
        });
        let path = native.env.get("PATH").map(OsStr::new).or(case.path.as_deref());
        let program = |id, key, text: &str| {
            command(id, &format!("services.{name}.{key}"), text, native.cwd.as_deref(), path)
        };
        let start = program(CheckId::NativeStart, "start", &native.start);
        let stop = native.stop.as_ref().map(|text| program(CheckId::NativeStop, "stop", text));
        let pattern = native.pattern.as_ref().map(|_| finds(name, &overlaps));
        let all = [Some(start), stop, folder, pattern].into_iter().flatten();
        checks.extend(all.map(|check| check.of(name)));
    }
    checks
}

/// Checks whether a service's pattern finds another service's start command.
fn finds(name: &str, overlaps: &[Overlap]) -> Check {
    let id = CheckId::NativeMatch;
    let mut own = overlaps.iter().filter(|overlap| overlap.finder == name);
    let worst = own.clone().find(|overlap| overlap.is_certain).or_else(|| own.next());
    match worst {
        Some(overlap) if overlap.is_certain => Check::fail(id, overlap.to_string(), overlap.hint()),
        Some(overlap) => Check::warn(id, overlap.to_string(), overlap.hint()),
        None => Check::pass(id, "it matches no other service's start command"),
    }
}

/// Checks whether the program of the shell command `text`, which is the value of `key`, can be run
/// in the folder `cwd`. `path` is the value of `PATH`.
pub fn command(
    id: CheckId,
    key: &str,
    text: &str,
    cwd: Option<&Path>,
    path: Option<&OsStr>,
) -> Check {
    let Some(program) = first(text) else {
        return Check::skip(id, "only the shell can tell which program this is");
    };
    match program::find(OsStr::new(&program), cwd.unwrap_or(Path::new("")), path) {
        Ok(file) => Check::pass(id, file.display().to_string()),
        Err(failure) => {
            let fixes = failure.hints.iter().cloned().chain([format!("correct {key}")]);
            Check::fail(id, &failure.message, fixes.collect::<Vec<_>>().join(", or "))
        }
    }
}
