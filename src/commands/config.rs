//! `gpuctl config init|check|show|path|schema`.

use super::load;
use crate::cli::{self, ConfigImportArgs, ConfigInitArgs, ConfigTarget, Global};
use crate::config::{
    Config, Environment, Gpu, LLM_BOX, MINIMAL, Overlap, PIPELINE, SMALL_BOX, file::ConfigFile,
    imported, is_json, masked, overlaps,
};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::inventory;
use crate::model::Service;
use crate::redact::mask;
use crate::report::{CheckReport, Form, PathReport, print, print_json, print_text};
use crate::world::compose;
use crate::world::docker::Docker;
use crate::world::wait::Stop;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub fn run(
    command: &cli::ConfigCommand,
    global: &Global,
    environment: &Environment,
) -> Result<Answer> {
    match command {
        cli::ConfigCommand::Init(arguments) => init(arguments, global, environment),
        cli::ConfigCommand::Import(arguments) => import(arguments, global, environment),
        cli::ConfigCommand::Check => check(global, environment),
        cli::ConfigCommand::Show => show(global, environment),
        cli::ConfigCommand::Path => path(global, environment),
        cli::ConfigCommand::Schema => {
            let schema = schemars::schema_for!(ConfigFile);
            print_json(schema.as_value()).map(|()| Answer::Yes)
        }
    }
}

fn init(arguments: &ConfigInitArgs, global: &Global, environment: &Environment) -> Result<Answer> {
    begin_with(&arguments.target, global, environment, || {
        Ok(match arguments.example {
            Some(cli::ConfigExample::Pipeline) => PIPELINE.to_owned(),
            Some(cli::ConfigExample::LlmBox) => LLM_BOX.to_owned(),
            Some(cli::ConfigExample::SmallBox) => SMALL_BOX.to_owned(),
            Some(cli::ConfigExample::Minimal) => MINIMAL.to_owned(),
            None => {
                let stop = Stop::on_signals()
                    .map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
                // One that is to be overwritten still says which card and which engine are meant.
                let before = load(global, environment).ok();
                let gpu = before.as_ref().map(|config| config.gpu.clone());
                let gpu = gpu.unwrap_or_else(|| Gpu::unconfigured(global.gpu.as_deref()));
                let docker = before.as_ref().map_or("docker", |config| config.docker.as_str());
                let mut found = inventory::gather(&gpu, docker, &stop);
                before.as_ref().inspect(|config| found.recall(config));
                stop.check()?;
                inventory::draft(&found)
            }
        })
    })
}

/// Writes what a compose project says of its services.
fn import(
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
        let project = match is_json(&file) {
            true => fs::read(&file).map_err(unread)?,
            false => {
                let stop = Stop::on_signals()
                    .map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
                let before = load(global, environment).ok();
                let docker = before.as_ref().map_or("docker", |config| config.docker.as_str());
                compose::resolved(&Docker::of(docker, &stop), &file)?
            }
        };
        imported(&project, &file)
    })
}

/// Writes a first configuration where nothing is in its way, and tells where.
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
    write(&path, &text()?)?;
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

/// Writes the text as a new private file, which replaces an old one only as a whole.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed =
        |e: std::io::Error| Failure::new(Code::Io, format!("cannot write {}: {e}", path.display()));
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new: PathBuf = folder.join(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|e| {
        // The failure to be told is the first one.
        let _ = fs::remove_file(&new);
        failed(e)
    })
}

fn check(global: &Global, environment: &Environment) -> Result<Answer> {
    let config = load(global, environment)?;
    config.require_file()?;
    let overlaps = overlaps(&config);
    if let Some(overlap) = overlaps.iter().find(|overlap| overlap.is_certain) {
        return Err(Failure::new(
            Code::Config,
            format!("configuration {}: {overlap}", path_of(&config)),
        )
        .hint(overlap.hint()));
    }
    let warning = |overlap: &Overlap| format!("{overlap}: {}", overlap.hint());
    let report = CheckReport {
        valid: true,
        path: path_of(&config),
        warnings: overlaps
            .iter()
            .map(warning)
            .chain(config.services.iter().filter_map(of_sleep))
            .collect(),
        services: config.services.into_iter().map(|service| service.name).collect(),
        phases: config.phases.into_keys().collect(),
    };
    print(&report, &Form::new(global.json, environment)).map(|()| Answer::Yes)
}

/// Warns of a server that its unload puts to sleep and no plan would wake.
fn of_sleep(service: &Service) -> Option<String> {
    let (name, base) = (&service.name, mask(service.sleeps_for_good()?));
    Some(format!(
        "services.{name}.unload puts the server to sleep, and no plan wakes it: set services.{name}.api = \"vllm\" and services.{name}.url = \"{base}\""
    ))
}

fn path_of(config: &Config) -> String {
    config.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn show(global: &Global, environment: &Environment) -> Result<Answer> {
    let config = load(global, environment)?;
    let document = masked(&config.file).map_err(Failure::bug)?;
    match global.json {
        true => print_json(&document)?,
        false => print_text(&toml::to_string(&document).map_err(Failure::bug)?)?,
    }
    Ok(Answer::Yes)
}

fn path(global: &Global, environment: &Environment) -> Result<Answer> {
    let path = environment.find_config(global.config.as_deref());
    let Some(path) = path else {
        return Err(Failure::new(Code::Config, "no configuration found")
            .hint("write one with `gpuctl config init`"));
    };
    let report = PathReport { path: Some(path.display().to_string()) };
    print(&report, &Form::new(global.json, environment)).map(|()| Answer::Yes)
}
