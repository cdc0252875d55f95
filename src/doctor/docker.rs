//! Checks of Docker: its client, its engine, and how the containers were made.

use super::check::{Check, CheckId};
use super::gpu::names_card;
use super::{Examined, UNCONFIGURED};
use crate::config::{Config, DOCKER, Selector};
use crate::error::Failure;
use crate::exit::Code;
use crate::model::{
    Container, ContainerNetwork, GpuAccess, Health, Manager, Presence, Service, Snapshot, is_podman,
};
use crate::observe::supervisor_of_containers;
use crate::world::docker::{Docker, Engine};
use crate::world::ports::local_port;
use crate::world::program;
use std::ffi::OsStr;
use std::path::Path;

const TOOLKIT: &str = "install the NVIDIA container toolkit, run `nvidia-ctk runtime configure --runtime=docker`, \
    and restart Docker";

/// First version of Docker's engine that does not hang for good if containers end at the same
/// moment (moby/moby#46661).
const SOUND: [u32; 3] = [20, 10, 27];

pub fn examine(case: &Examined) -> Vec<Check> {
    let is_contained = |service: &Service| matches!(service.manager, Manager::Containers(_));
    if case.config.as_ref().is_some_and(|config| !config.services.iter().any(is_contained)) {
        return vec![Check::skip(CheckId::DockerClient, "no service is a container")];
    }
    let mut checks = Vec::new();
    let skip_rest = |mut checks: Vec<Check>, ids: &[CheckId]| {
        checks.extend(ids.iter().map(|id| Check::skip(*id, "Docker cannot be queried")));
        checks
    };
    let client = case.config.as_ref().map_or(DOCKER, |config| &config.docker);
    match program::find(OsStr::new(client), Path::new(""), case.path.as_deref()) {
        Ok(path) => checks.push(Check::pass(CheckId::DockerClient, path.display().to_string())),
        Err(failure) => {
            let fix = "install Docker's command line (Debian: docker-cli or docker.io; Docker's own: docker-ce-cli)";
            checks.push(Check::fail(CheckId::DockerClient, &failure.message, fix));
            let ids = [
                CheckId::DockerEngine,
                CheckId::DockerVersion,
                CheckId::DockerPermission,
                CheckId::DockerContainer,
            ];
            return skip_rest(checks, &ids);
        }
    }
    let engine = match Docker::of(client, &case.stop).engine() {
        Ok(engine) => engine,
        Err(failure) if failure.code == Code::Permission => {
            checks.push(forbidden(&failure));
            let ids = [CheckId::DockerEngine, CheckId::DockerVersion, CheckId::DockerContainer];
            return skip_rest(checks, &ids);
        }
        Err(failure) => {
            checks.push(Check::failure(
                CheckId::DockerEngine,
                &failure,
                "`systemctl start docker`; one that hangs: `systemctl restart docker`",
            ));
            let ids = [CheckId::DockerVersion, CheckId::DockerPermission, CheckId::DockerContainer];
            return skip_rest(checks, &ids);
        }
    };
    checks.push(Check::pass(CheckId::DockerEngine, "it answers"));
    checks.push(version(&engine));
    checks.push(Check::pass(CheckId::DockerPermission, "the engine grants access"));
    match (&case.config, case.looked().map(|looked| &looked.snapshot)) {
        (Some(config), Some(Ok(snapshot))) => {
            checks.extend(containers(config, snapshot, &engine, &case.gpu.selector));
        }
        (Some(_), Some(Err(failure))) => {
            checks.push(Check::failure(CheckId::DockerContainer, failure, "try again"));
        }
        _ => checks.push(Check::skip(CheckId::DockerContainer, UNCONFIGURED)),
    }
    checks
}

/// Checks how the containers of all services were made, and whether the engine has what they need.
fn containers(
    config: &Config,
    snapshot: &Snapshot,
    engine: &Engine,
    card: &Selector,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut made = Vec::new();
    for service in &config.services {
        let Manager::Containers(_) = service.manager else { continue };
        let of_service = match &snapshot.service(&service.name).presence {
            Presence::Unknown(failure) => {
                vec![Check::failure(
                    CheckId::DockerContainer,
                    failure,
                    "`systemctl restart docker`",
                )]
            }
            Presence::Missing(failure) => {
                vec![Check::failure(CheckId::DockerContainer, failure, "create it")]
            }
            _ => match snapshot.managed(&service.name).containers.as_slice() {
                [] => vec![Check::pass(CheckId::DockerContainer, "created by compose when needed")],
                own => {
                    made.extend(own);
                    own.iter().flat_map(|one| judge(service, one, config, engine, card)).collect()
                }
            },
        };
        checks.extend(of_service.into_iter().map(|check| check.of(&service.name)));
    }
    checks.push(runtime(&engine.runtimes, made.into_iter()));
    checks
}

fn version(engine: &Engine) -> Check {
    let version = &engine.version;
    let numbers = version.split(['.', '-', '+']).map_while(|number| number.parse().ok());
    let numbers: Vec<u32> = numbers.collect();
    match !engine.is_podmans && !numbers.is_empty() && numbers[..] < SOUND[..] {
        true => Check::warn(
            CheckId::DockerVersion,
            format!(
                "Docker {version} may hang for good where two containers end at the same moment (moby/moby#46661)"
            ),
            "update it to 20.10.27 or later; until then `systemctl restart docker` ends such a hang",
        ),
        false => Check::pass(CheckId::DockerVersion, version),
    }
}

fn forbidden(failure: &Failure) -> Check {
    let fix = format!("{}: sudo usermod -aG docker $USER", failure.hints.join("; "));
    Check::fail(CheckId::DockerPermission, &failure.message, fix)
}

fn judge(
    service: &Service,
    container: &Container,
    config: &Config,
    engine: &Engine,
    card: &Selector,
) -> Vec<Check> {
    let name = &container.name;
    vec![
        Check::pass(CheckId::DockerContainer, name),
        gpu(container, card, &config.docker),
        ports(service, container, engine),
        restart(container, &config.docker),
        match container.setup.is_removed_at_its_end {
            true => Check::warn(
                CheckId::DockerRemoval,
                format!(
                    "the container {name} was made with --rm: whoever stops it removes it, and gpuctl cannot start it again"
                ),
                "recreate it without --rm",
            ),
            false => Check::pass(CheckId::DockerRemoval, "it stays when it is stopped"),
        },
    ]
}

fn gpu(container: &Container, card: &Selector, client: &str) -> Check {
    let (id, name) = (CheckId::DockerGpu, &container.name);
    match &container.setup.gpu {
        GpuAccess::None => Check::warn(
            id,
            format!("the container {name} was created without a GPU"),
            match container.setup.compose {
                Some(_) => {
                    "reserve one in compose.yaml (deploy.resources.reservations.devices)".to_owned()
                }
                None => format!("recreate it with {}", GpuAccess::options(client)),
            },
        ),
        GpuAccess::Request(ids) | GpuAccess::Device(ids)
            if !ids.is_empty() && !names_card(&ids.join(","), card, None) =>
        {
            Check::warn(
                id,
                format!(
                    "the container {name} was given GPU {}, but gpuctl watches GPU {card}",
                    ids.join(", ")
                ),
                "recreate it with that card, or correct gpu.index",
            )
        }
        GpuAccess::Request(_) => Check::pass(id, "--gpus"),
        GpuAccess::Runtime(runtime) => Check::pass(id, format!("--runtime {runtime}")),
        GpuAccess::Device(_) => Check::pass(id, "--device"),
    }
}

/// Checks whether a service's health check reaches its container.
fn ports(service: &Service, container: &Container, engine: &Engine) -> Check {
    let (id, name) = (CheckId::DockerPorts, &container.name);
    let health = format!("services.{}.health", service.name);
    let is_direct = container.setup.network == ContainerNetwork::Host || service.is_by_address();
    if engine.is_apart && is_direct {
        return Check::warn(
            id,
            format!(
                "the container {name} is asked in the network of its engine, which is rootless and has one of its own: nothing on this machine reaches it there"
            ),
            "recreate it with --publish PORT:PORT, and let its health check ask that port on localhost",
        );
    }
    match container.setup.network {
        ContainerNetwork::Host => return Check::pass(id, "it uses this machine's network"),
        ContainerNetwork::Of(_) => {
            return Check::pass(
                id,
                "it uses the network of another container, which publishes for it",
            );
        }
        ContainerNetwork::Own => {}
    }
    let Some(port) = service.health.as_ref().and_then(local_port) else {
        return Check::skip(id, "its health check uses no port on this machine");
    };
    let bindings = &container.setup.bindings;
    let of_port = || bindings.iter().filter(|binding| binding.port == Some(port));
    if of_port().any(|binding| binding.is_on_loopback()) {
        return match service.health {
            Some(Health::Tcp { .. }) => Check::warn(
                id,
                format!(
                    "its health check asks only whether port {port} accepts, and Docker accepts there before the server listens"
                ),
                format!("ask the server itself: let {health} be an http:// URL"),
            ),
            _ => Check::pass(id, format!("{port} is published")),
        };
    }
    if let Some(address) = of_port().find_map(|binding| binding.address) {
        return Check::warn(
            id,
            format!(
                "the container {name} publishes port {port} on {address} alone, where its health check does not ask"
            ),
            format!("let {health} ask {address}, or publish the port on localhost"),
        );
    }
    if let Some(own) = bindings.iter().find(|it| it.port.is_none()).map(|binding| binding.own) {
        return Check::warn(
            id,
            format!(
                "its health check uses port {port}, and the port of the container {name} is another at each start"
            ),
            format!(
                "recreate it with --publish {port}:{own}, or ask it by its own address: {health} = \"http://{{container}}:{own}/\""
            ),
        );
    }
    Check::warn(
        id,
        format!("its health check uses port {port}, which the container {name} does not publish"),
        format!(
            "recreate it with --publish {port}:PORT or --network host, or ask it by its own address: {health} = \"http://{{container}}:PORT/\""
        ),
    )
}

fn restart(container: &Container, client: &str) -> Check {
    let id = CheckId::DockerRestart;
    if let Some(supervisor) = supervisor_of_containers(std::slice::from_ref(container)) {
        let message =
            format!("{supervisor} runs it, and may start it again when gpuctl has stopped it");
        return Check::warn(id, message, supervisor.remedy());
    }
    let message = match container.setup.restart.as_str() {
        "always" if is_podman(client) => {
            "podman-restart.service starts it at boot, where that is enabled, even after gpuctl has stopped it"
        }
        "always" => "Docker starts it whenever the engine starts, even after gpuctl has stopped it",
        "on-failure" if !is_podman(client) => {
            "Docker starts it whenever the engine starts, even after gpuctl has stopped it, unless it then ended with code 0"
        }
        "" | "no" => return Check::pass(id, "no"),
        policy => return Check::pass(id, policy),
    };
    Check::warn(id, message, container.without_restart(client, "unless-stopped"))
}

/// Checks whether the engine can give containers the card that they ask for.
fn runtime<'a>(known: &[String], made: impl Iterator<Item = &'a Container>) -> Check {
    let id = CheckId::DockerRuntime;
    let mut wanted = None;
    for container in made {
        match &container.setup.gpu {
            GpuAccess::Runtime(runtime) if !known.contains(runtime) => {
                let message = format!(
                    "a container needs the runtime {runtime}, which the engine does not have"
                );
                return Check::fail(id, message, TOOLKIT);
            }
            GpuAccess::Request(_) | GpuAccess::Runtime(_) => wanted = Some(()),
            GpuAccess::None | GpuAccess::Device(_) => {}
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
