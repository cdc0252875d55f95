//! Compose, a part of Docker's command line, which reads a project and creates its containers.

use super::docker::Docker;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Compose, ComposeFiles};
use std::path::Path;
use std::time::Duration;

/// Longest time that compose may take to read a project.
const READ_LIMIT: Duration = Duration::from_secs(15);

/// Hint at other ways to read a project if the client cannot.
const ELSEWHERE: &str = "install Docker's client with the compose plugin, or import what `docker compose config --format json` printed elsewhere, from a file named .json";

/// Returns the client's arguments that run `compose up` for services of one project, or for all of
/// it.
fn arguments(services: &[&Compose], files: &ComposeFiles, then: &[&str]) -> Vec<String> {
    let mut words = vec!["compose".to_owned(), "--project-name".to_owned()];
    words.extend(services.first().map(|compose| compose.project.clone()));
    if let Some(folder) = &files.folder {
        words.extend(["--project-directory".to_owned(), folder.display().to_string()]);
    }
    for (option, files) in [("--env-file", &files.env_files), ("--file", &files.files)] {
        for file in files {
            words.extend([option.to_owned(), file.display().to_string()]);
        }
    }
    words.push("up".to_owned());
    words.extend(then.iter().map(|word| (*word).to_owned()));
    let names: Option<Vec<String>> = services.iter().map(|it| it.service.clone()).collect();
    // A service that stands for the whole project has no name, and then none is given.
    words.extend(names.unwrap_or_default());
    words
}

/// Returns the command that creates and starts the containers of a service by hand.
pub fn command_line(engine: &Docker, compose: &Compose, files: &ComposeFiles) -> String {
    format!("{} {}", engine.program(), arguments(&[compose], files, &["--detach"]).join(" "))
}

/// Returns the failure of a compose service that has no containers and, as far as gpuctl knows, no
/// files to create them from. Its hints say how to create them.
pub fn not_created(engine: &Docker, compose: &Compose) -> Failure {
    Failure::new(Code::NotFound, format!("there is no container of {}", compose.told()))
        .hint(format!(
            "create it, in the folder of its compose file: {}",
            command_line(engine, compose, &ComposeFiles::default())
        ))
        .hint("with files = [\"/path/to/compose.yaml\"] in its section, gpuctl does so itself")
}

/// Makes sure that the containers of a service could be created. Fails if there are no files to
/// create them from, or if the client has no compose.
pub fn could_create(
    engine: &Docker,
    compose: &Compose,
    files: Option<&ComposeFiles>,
) -> Result<()> {
    let Some(files) = files else { return Err(not_created(engine, compose)) };
    match engine.run(&["compose", "version"], None) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err(Failure::new(
            Code::NotFound,
            format!(
                "there is no container of {}, and `{} compose`, which would create it, is not installed",
                compose.told(),
                engine.program()
            ),
        )
        .hint(format!("create it by hand: {}", command_line(engine, compose, files)))),
        Err(failure) => Err(failure),
    }
}

/// Returns a project as compose understands its file, in JSON, with the services of all profiles.
pub fn resolved(engine: &Docker, file: &Path) -> Result<Vec<u8>> {
    let shown = file.to_string_lossy();
    let words = ["compose", "--profile", "*", "--file", &shown, "config", "--format", "json"];
    let output = engine.run(&words, Some(READ_LIMIT)).map_err(|failure| failure.hint(ELSEWHERE))?;
    let can_compose =
        || engine.run(&["compose", "version"], None).is_ok_and(|it| it.status.success());
    match output.status.success() {
        true => Ok(output.stdout),
        false if can_compose() => Err(Failure::new(
            Code::Config,
            format!("compose cannot read {shown}: {}", output.reason()),
        )),
        false => Err(Failure::new(
            Code::Unavailable,
            format!("`{} compose`, which reads {shown}, is not installed", engine.program()),
        )
        .hint(ELSEWHERE)),
    }
}

/// Creates the missing containers of services of one project, and of the services that these depend
/// on, and leaves existing ones as they are. None is started, since gpuctl decides what is started
/// when. All is done in one call, as two calls of compose get in each other's way.
pub fn create(
    engine: &Docker,
    services: &[&Compose],
    files: &ComposeFiles,
    limit: Duration,
) -> Result<()> {
    let words = arguments(services, files, &["--no-start", "--no-recreate"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = engine.run(&words, Some(limit))?;
    if output.status.success() {
        return Ok(());
    }
    let told: Vec<String> = services.iter().map(|compose| compose.told()).collect();
    let failure = Failure::new(
        Code::StartFailed,
        format!(
            "`{} compose up` cannot create the containers of {}: {}",
            engine.program(),
            told.join(" and "),
            output.reason()
        ),
    );
    Err(services.iter().fold(failure, |failure, compose| {
        failure.hint(format!("try it by hand: {}", command_line(engine, compose, files)))
    }))
}
