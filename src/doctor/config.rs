//! The configuration: found, trusted, valid, and no place for passwords that others may read.

use super::check::{Check, Id};
use crate::config::{Config, Environment, trust, writes_secrets};
use crate::error::Result;
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
            let (services, phases) = (config.services.len(), config.phases.len());
            Check::pass(Id::ConfigValid, format!("{services} services, {phases} phases"))
        }
        Err(failure) => Check::failure(Id::ConfigValid, failure, MEND),
    };
    let Some(path) = environment.find_config(named) else {
        let mut checks = vec![Check::warn(
            Id::ConfigFile,
            "there is none: only status, can-fit, lock and config work without one",
            "write one with `gpuctl config init`, or name one with --config PATH",
        )];
        checks.extend(skipped([Id::ConfigPermissions, Id::ConfigSecrets]));
        // The environment has its say all the same.
        checks.push(valid());
        return checks;
    };
    let mut file = match trust::open(&path) {
        Ok(file) => file,
        Err(failure) => {
            let fix = "name another with --config PATH, or make it one that you may read";
            let mut checks = vec![Check::failure(Id::ConfigFile, &failure, fix)];
            checks.extend(skipped([Id::ConfigPermissions, Id::ConfigValid, Id::ConfigSecrets]));
            return checks;
        }
    };
    let mut checks = vec![Check::pass(Id::ConfigFile, path.display().to_string())];
    if let Err(failure) = trust::judge(&file, &path) {
        checks.push(Check::failure(Id::ConfigPermissions, &failure, "make it yours"));
        checks.extend(skipped([Id::ConfigValid, Id::ConfigSecrets]));
        return checks;
    }
    let mode = file.metadata().map_or(0, |meta| meta.mode() & 0o7777);
    let whose = format!("nobody else may write to it (mode {mode:04o})");
    checks.push(Check::pass(Id::ConfigPermissions, whose));
    checks.push(valid());
    checks.push(match loaded {
        Err(_) => Check::skip(Id::ConfigSecrets, "it is not valid"),
        Ok(_) if mode & 0o044 == 0 => Check::pass(Id::ConfigSecrets, "nobody else may read it"),
        Ok(config) => {
            let text = trust::text(&mut file, &path).unwrap_or_default();
            match writes_secrets(&config.file, &text) {
                false => Check::pass(Id::ConfigSecrets, "it holds no password"),
                true => Check::warn(
                    Id::ConfigSecrets,
                    format!("it holds a password, but others may read it (mode {mode:04o})"),
                    format!(
                        "chmod go-r {}; or use a variable in its place: $PASSWORD",
                        path.display()
                    ),
                ),
            }
        }
    });
    checks
}

fn skipped<const N: usize>(ids: [Id; N]) -> [Check; N] {
    ids.map(|id| Check::skip(id, "there is no configuration to check"))
}
