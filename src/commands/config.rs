//! `gpuctl config`: checks and shows the configuration, and finds its path; `first` writes a new
//! one.

mod first;

use crate::cli::{self, Global};
use crate::config::{Config, Environment, Overlap, file::ConfigFile, masked, overlaps};
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::Service;
use crate::redact::mask;
use crate::report::{CheckReport, Form, PathReport, print, print_json, print_text};
use crate::session::Session;

pub fn run(
    command: &cli::ConfigCommand,
    global: &Global,
    environment: &Environment,
    session: impl FnOnce() -> Result<Session>,
) -> Result<Answer> {
    match command {
        cli::ConfigCommand::Init(arguments) => first::init(arguments, global, environment),
        cli::ConfigCommand::Import(arguments) => first::import(arguments, global, environment),
        cli::ConfigCommand::Check => check(session()?),
        cli::ConfigCommand::Show => show(session()?),
        cli::ConfigCommand::Path => path(global, environment),
        cli::ConfigCommand::Schema => {
            let schema = schemars::schema_for!(ConfigFile);
            print_json(schema.as_value()).map(|()| Answer::Yes)
        }
    }
}

fn check(session: Session) -> Result<Answer> {
    let Session { config, form, .. } = session;
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
    print(&report, &form).map(|()| Answer::Yes)
}

/// Returns a warning if the service's unload call puts its server to sleep and no plan would wake
/// it.
fn of_sleep(service: &Service) -> Option<String> {
    let (name, base) = (&service.name, mask(service.sleeps_for_good()?));
    Some(format!(
        "services.{name}.unload puts the server to sleep, and no plan wakes it: set services.{name}.api = \"vllm\" and services.{name}.url = \"{base}\""
    ))
}

fn path_of(config: &Config) -> String {
    config.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn show(session: Session) -> Result<Answer> {
    let document = masked(&session.config.file).map_err(Failure::bug)?;
    match matches!(session.form, Form::Json) {
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
