//! Docker: its client, its engine, and how the containers were made.

use super::check::{Check, CheckId};
use super::gpu::names_card;
use super::{Examined, UNCONFIGURED};
use crate::config::Selector;
use crate::error::Failure;
use crate::exit::Code;
use crate::model::{Health, Manager, Service};
use crate::world::docker::{self, GpuAccess, Setup};
use crate::world::ports::local_port;
use crate::world::program;
use std::ffi::OsStr;
use std::path::Path;

const TOOLKIT: &str = "install the NVIDIA container toolkit, run `nvidia-ctk runtime configure --runtime=docker`, \
    and restart Docker";

pub fn examine(case: &Examined) -> Vec<Check> {
    let containers: Vec<(&Service, &str)> = case
        .config
        .iter()
        .flat_map(|config| &config.services)
        .filter_map(|service| match &service.manager {
            Manager::Docker { container } => Some((service, container.as_str())),
            _ => None,
        })
        .collect();
    if case.config.is_some() && containers.is_empty() {
        return vec![Check::skip(CheckId::DockerClient, "no service is a container")];
    }
    let mut checks = Vec::new();
    let skip_rest = |mut checks: Vec<Check>, ids: &[CheckId]| {
        checks.extend(ids.iter().map(|id| Check::skip(*id, "Docker cannot be queried")));
        checks
    };
    match program::find(OsStr::new("docker"), Path::new(""), case.path.as_deref()) {
        Ok(path) => checks.push(Check::pass(CheckId::DockerClient, path.display().to_string())),
        Err(failure) => {
            let fix = "install Docker's command line (Debian: docker-cli or docker.io; Docker's own: docker-ce-cli)";
            checks.push(Check::fail(CheckId::DockerClient, &failure.message, fix));
            let ids = [CheckId::DockerEngine, CheckId::DockerPermission, CheckId::DockerContainer];
            return skip_rest(checks, &ids);
        }
    }
    let engine = match docker::engine(&case.stop) {
        Ok(engine) => engine,
        Err(failure) if failure.code == Code::Permission => {
            checks.push(forbidden(&failure));
            return skip_rest(checks, &[CheckId::DockerEngine, CheckId::DockerContainer]);
        }
        Err(failure) => {
            checks.push(Check::failure(
                CheckId::DockerEngine,
                &failure,
                "`systemctl start docker`; one that hangs: `systemctl restart docker`",
            ));
            return skip_rest(checks, &[CheckId::DockerPermission, CheckId::DockerContainer]);
        }
    };
    checks.push(Check::pass(CheckId::DockerEngine, format!("version {}", engine.version)));
    checks.push(Check::pass(CheckId::DockerPermission, "the engine grants access"));
    if case.config.is_none() {
        checks.push(Check::skip(CheckId::DockerContainer, UNCONFIGURED));
        return checks;
    }
    let names: Vec<&str> = containers.iter().map(|(_, container)| *container).collect();
    let setups = match docker::setups(&names, &case.stop) {
        Ok(setups) => setups,
        Err(failure) => {
            checks.push(Check::failure(
                CheckId::DockerContainer,
                &failure,
                "`systemctl restart docker`",
            ));
            return checks;
        }
    };
    for (service, container) in &containers {
        let of_container = match setups.get(*container) {
            Some(setup) => judge(service, container, setup, &case.gpu.selector),
            None => {
                vec![Check::failure(
                    CheckId::DockerContainer,
                    &docker::missing(container),
                    "create it",
                )]
            }
        };
        checks.extend(of_container.into_iter().map(|check| check.of(&service.name)));
    }
    checks.push(runtime(&engine.runtimes, setups.values()));
    checks
}

fn forbidden(failure: &Failure) -> Check {
    let fix = format!("{}: sudo usermod -aG docker $USER", failure.hints.join("; "));
    Check::fail(CheckId::DockerPermission, &failure.message, fix)
}

fn judge(service: &Service, container: &str, setup: &Setup, card: &Selector) -> Vec<Check> {
    let mut checks = vec![Check::pass(CheckId::DockerContainer, container)];
    checks.push(match &setup.gpu {
        GpuAccess::None => Check::warn(
            CheckId::DockerGpu,
            format!("the container {container} was created without a GPU"),
            "recreate it with --gpus all",
        ),
        GpuAccess::Request(ids) if !ids.is_empty() && !names_card(&ids.join(","), card, None) => {
            Check::warn(
                CheckId::DockerGpu,
                format!(
                    "the container {container} was given GPU {}, but gpuctl watches GPU {card}",
                    ids.join(", ")
                ),
                "recreate it with that card, or correct gpu.index",
            )
        }
        GpuAccess::Request(_) => Check::pass(CheckId::DockerGpu, "--gpus"),
        GpuAccess::Runtime(runtime) => {
            Check::pass(CheckId::DockerGpu, format!("--runtime {runtime}"))
        }
        GpuAccess::Device => Check::pass(CheckId::DockerGpu, "--device"),
    });
    let port = service.health.as_ref().and_then(local_port);
    checks.push(match (&setup.published, port) {
        (Some(published), Some(port)) if !published.contains(&port) => Check::warn(
            CheckId::DockerPorts,
            format!("its health check uses port {port}, which the container {container} does not publish"),
            format!("recreate it with --publish {port}:PORT or --network host, or correct services.{}.health", service.name),
        ),
        (Some(_), Some(port)) if matches!(service.health, Some(Health::Tcp { .. })) => Check::warn(
            CheckId::DockerPorts,
            format!("its health check asks only whether port {port} accepts, and Docker accepts there before the server listens"),
            format!("ask the server itself: let services.{}.health be an http:// URL", service.name),
        ),
        (Some(_), Some(port)) => Check::pass(CheckId::DockerPorts, format!("{port} is published")),
        (None, _) => Check::pass(CheckId::DockerPorts, "it uses this machine's network"),
        (_, None) => Check::skip(CheckId::DockerPorts, "its health check uses no port on this machine"),
    });
    checks.push(match setup.restart.as_str() {
        "always" => Check::warn(
            CheckId::DockerRestart,
            "Docker starts it whenever the engine starts, even after gpuctl has stopped it",
            format!("docker update --restart=unless-stopped {container}"),
        ),
        "" => Check::pass(CheckId::DockerRestart, "no"),
        policy => Check::pass(CheckId::DockerRestart, policy),
    });
    checks
}

/// Whether the engine can give containers the card that they ask for.
fn runtime<'a>(known: &[String], setups: impl Iterator<Item = &'a Setup>) -> Check {
    let id = CheckId::DockerRuntime;
    let mut wanted = None;
    for setup in setups {
        match &setup.gpu {
            GpuAccess::Runtime(runtime) if !known.contains(runtime) => {
                let message = format!(
                    "a container needs the runtime {runtime}, which the engine does not have"
                );
                return Check::fail(id, message, TOOLKIT);
            }
            GpuAccess::Request(_) | GpuAccess::Runtime(_) => wanted = Some(()),
            GpuAccess::None | GpuAccess::Device => {}
        }
    }
    let nvidia = known.iter().find(|runtime| runtime.contains("nvidia"));
    match (wanted, nvidia) {
        (_, Some(runtime)) => Check::pass(id, format!("the engine has {runtime}")),
        (None, None) => Check::skip(id, "no container asks for it"),
        (Some(()), None) => Check::warn(
            id,
            "a container was created with --gpus, but the engine has no NVIDIA runtime",
            TOOLKIT,
        ),
    }
}
