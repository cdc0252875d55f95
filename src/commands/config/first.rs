//! `gpuctl config init` and `gpuctl config import`: write a first configuration.

use crate::cli::{ConfigExample, ConfigImportArgs, ConfigInitArgs, ConfigTarget, Global};
use crate::config::{
    DOCKER, Environment, Gpu, LLM_BOX, MINIMAL, PIPELINE, SMALL_BOX, imported, is_json,
};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::inventory;
use crate::report::{Form, PathReport, print};
use crate::session::load;
use crate::world::docker::Docker;
use crate::world::wait::Stop;
use crate::world::{compose, files};
use std::fs;
use std::path::Path;

/// Writes a first configuration: an example, or a draft from what is found on this machine.
pub fn init(
    arguments: &ConfigInitArgs,
    global: &Global,
    environment: &Environment,
) -> Result<Answer> {
    begin_with(&arguments.target, global, environment, || {
        Ok(match arguments.example {
            Some(ConfigExample::Pipeline) => PIPELINE.to_owned(),
            Some(ConfigExample::LlmBox) => LLM_BOX.to_owned(),
            Some(ConfigExample::SmallBox) => SMALL_BOX.to_owned(),
            Some(ConfigExample::Minimal) => MINIMAL.to_owned(),
            None => {
                let stop = Stop::on_signals()
                    .map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
                // A configuration that is to be overwritten still says which card and which engine
                // are meant.
                let before = load(global, environment).ok();
                let gpu = before.as_ref().map(|config| config.gpu.clone());
                let gpu = gpu.unwrap_or_else(|| Gpu::unconfigured(global.gpu.as_deref()));
                let docker = before.as_ref().map_or(DOCKER, |config| config.docker.as_str());
                let mut found = inventory::gather(&gpu, docker, environment.search_path(), &stop);
                before.as_ref().inspect(|config| found.recall(config));
                stop.check()?;
                inventory::draft(&found)
            }
        })
    })
}

/// Writes a first configuration from what a compose project says about its services.
pub fn import(
    arguments: &ConfigImportArgs,
    global: &Global,
    environment: &Environment,
) -> Result<Answer> {
    begin_with(&arguments.target, global, environment, || {
        let file = &arguments.file;
        let unread = |e: std::io::Error| {
            Failure::new(Code::Io, format!("cannot read {}: {e}", file.display()))
        };
        let file = file.canonicalize().map_err(unread)?;
        let before = load(global, environment).ok();
        let docker = before.as_ref().map_or(DOCKER, |config| config.docker.as_str());
        let project = match is_json(&file) {
            true => fs::read(&file).map_err(unread)?,
            false => {
                let stop = Stop::on_signals()
                    .map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
                compose::resolved(&Docker::of(docker, &stop), &file)?
            }
        };
        imported(&project, &file, docker)
    })
}

/// Writes a first configuration and prints its path. Refuses a path ending in .json, and an
/// existing file unless `--force` is given.
fn begin_with(
    target: &ConfigTarget,
    global: &Global,
    environment: &Environment,
    text: impl FnOnce() -> Result<String>,
) -> Result<Answer> {
    let typed = target.output.as_deref().or(global.config.as_deref());
    let path = environment.named_config(typed).or_else(|| environment.user_config());
    let path = path.ok_or_else(|| {
        Failure::new(Code::Config, "no place for a configuration: HOME is not set")
            .hint("name one with --output PATH")
    })?;
    if is_json(&path) {
        let code = if typed.is_some() { Code::Usage } else { Code::Config };
        let message = format!(
            "cannot write {}: the starting configuration is TOML, and a file of that name is read as JSON",
            path.display()
        );
        return Err(Failure::new(code, message).hint("name it .toml, with --output PATH"));
    }
    refuse_existing(&path, target.force)?;
    let failed =
        |e: std::io::Error| Failure::new(Code::Io, format!("cannot write {}: {e}", path.display()));
    files::put_in_place(&path, text()?.as_bytes()).map_err(failed)?;
    let report = PathReport { path: Some(path.display().to_string()) };
    print(&report, &Form::new(global.json, environment)).map(|()| Answer::Yes)
}

fn refuse_existing(path: &Path, overwrite: bool) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) if !overwrite => {
            Err(Failure::new(Code::Io, format!("{} already exists", path.display()))
                .hint("overwrite it with --force, or write elsewhere with --output PATH"))
        }
        _ => Ok(()),
    }
}
