//! Checks of the configuration: that it is found, trusted and valid, and holds no password that
//! others may read.

use super::check::{Check, CheckId};
use crate::config::{Config, Environment, trust, writes_secrets};
use crate::error::Result;
use crate::screen::text::counted;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MEND: &str = "correct it; `gpuctl config schema` shows what each key accepts";

pub fn examine(
    named: Option<&Path>,
    loaded: &Result<Config>,
    environment: &Environment,
) -> Vec<Check> {
    let valid = || match loaded {
        Ok(config) => {
            let services = counted(config.services.len() as u64, "service");
            let phases = counted(config.phases.len() as u64, "phase");
            Check::pass(CheckId::ConfigValid, format!("{services}, {phases}"))
        }
        Err(failure) => Check::failure(CheckId::ConfigValid, failure, MEND),
    };
    let Some(path) = environment.find_config(named) else {
        let mut checks = vec![Check::warn(
            CheckId::ConfigFile,
            "there is none: only status, can-fit, lock and config work without one",
            "write one with `gpuctl config init`, or name one with --config PATH",
        )];
        checks.extend(skipped([CheckId::ConfigPermissions, CheckId::ConfigSecrets]));
        // Variables of the environment can make even the defaults invalid.
        checks.push(valid());
        return checks;
    };
    let mut file = match trust::open(&path) {
        Ok(file) => file,
        Err(failure) => {
            let fix = "name another with --config PATH, or make it one that you may read";
            let mut checks = vec![Check::failure(CheckId::ConfigFile, &failure, fix)];
            checks.extend(skipped([
                CheckId::ConfigPermissions,
                CheckId::ConfigValid,
                CheckId::ConfigSecrets,
            ]));
            return checks;
        }
    };
    let mut checks = vec![Check::pass(CheckId::ConfigFile, path.display().to_string())];
    if let Err(failure) = trust::judge(&file, &path) {
        checks.push(Check::failure(CheckId::ConfigPermissions, &failure, "make it yours"));
        checks.extend(skipped([CheckId::ConfigValid, CheckId::ConfigSecrets]));
        return checks;
    }
    let mode = file.metadata().map_or(0, |meta| meta.mode() & 0o7777);
    let whose = format!("nobody else may write to it (mode {mode:04o})");
    checks.push(Check::pass(CheckId::ConfigPermissions, whose));
    checks.push(valid());
    checks.push(match loaded {
        Err(_) => Check::skip(CheckId::ConfigSecrets, "it is not valid"),
        Ok(_) if mode & 0o044 == 0 => {
            Check::pass(CheckId::ConfigSecrets, "nobody else may read it")
        }
        Ok(config) => {
            let text = trust::text(&mut file, &path).unwrap_or_default();
            match writes_secrets(&config.file, &text) {
                false => Check::pass(CheckId::ConfigSecrets, "it holds no password"),
                true => Check::warn(
                    CheckId::ConfigSecrets,
                    format!("it holds a password, but others may read it (mode {mode:04o})"),
                    format!(
                        "chmod go-r {}; or use a variable in its place: $PASSWORD",
                        path.display()
                    ),
                ),
            }
        }
    });
    checks.extend(loaded.as_ref().ok().map(token));
    checks
}

/// Checks whether `gpuctl http` can read the token that requests have to show.
fn token(config: &Config) -> Check {
    let id = CheckId::HttpToken;
    match config.http.token() {
        Ok(None) => Check::pass(id, "there is none: `gpuctl http` answers this machine alone"),
        Ok(Some(_)) => Check::pass(id, "`gpuctl http` answers whoever shows it"),
        Err(failure) => Check::failure(id, &failure, "make it a file that only you may read"),
    }
}

fn skipped<const N: usize>(ids: [CheckId; N]) -> [Check; N] {
    ids.map(|id| Check::skip(id, "there is no configuration to check"))
}
