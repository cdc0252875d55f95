//! Docker and podman through their command-line clients. States are read from inspected fields,
//! since the wording of messages differs between versions.

mod acting;
mod client;
mod inspected;
mod reason;

pub use acting::Events;
pub use client::{ENGINE_VARIABLES, is_client, is_run_by};
pub use inspected::parse;

use super::command::{self, Begun, Output};
use super::host;
use super::process::{self, Process};
use super::wait::Stop;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Container, GpuAccess, Pid};
use crate::redact::mask;
use reason::{beside_missing, refusal};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Environment variables that curb the garbage collector and the threads of Docker's client, which
/// is written in Go. Both are of no use for so little work, and take a tenth of the time in which
/// the client answers (measured with 28.2.2).
const LEAN: [(&str, &str); 3] = [("GOGC", "off"), ("GOMEMLIMIT", "256MiB"), ("GOMAXPROCS", "1")];
/// Timer slack of the client while it answers. Go's runtime checks every 20 µs whether there is
/// work, and waking it less exactly saves another thirtieth of the time. Calls that start
/// containers do without it, since podman's containers would inherit it.
const SLACK: Duration = Duration::from_millis(1);
/// Least number of characters for which a reference may be the beginning of an id; `docker ps`
/// shows that many of an id. A shorter reference counts only as a name, since another container's
/// id may come to begin with it.
const SHORTEST_ID: usize = 12;

/// Names of processes that are container engines, or that listen on this machine for an engine's
/// containers.
const ENGINES_OWN: [&str; 8] = [
    "dockerd",
    "docker-proxy",
    "rootlesskit",
    "slirp4netns",
    "conmon",
    "rootlessport",
    "pasta",
    "pasta.avx2",
];

/// A container engine, spoken to through its client.
#[derive(Clone, Copy)]
pub struct Docker<'a> {
    /// The client: "docker", "podman", or the path of either.
    program: &'a str,
    stop: &'a Stop,
}

/// The answer of an engine that was asked for containers.
#[derive(Clone, Debug, Default)]
pub struct Inspected {
    pub containers: Vec<Container>,
    /// Why the answer may be incomplete. If this is `None`, a container that is not in the answer
    /// does not exist.
    pub trouble: Option<Failure>,
}

/// Facts about an engine that containers with a GPU depend on.
pub struct Engine {
    pub version: String,
    pub is_podmans: bool,
    /// Names of the engine's runtimes; the NVIDIA container toolkit adds "nvidia".
    pub runtimes: Vec<String>,
    /// Whether this is a rootless engine of Docker's, whose containers are in a network that
    /// programs on this machine do not reach.
    pub is_apart: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    server_version: String,
    /// Errors that kept the client from learning about the engine.
    server_errors: Option<Vec<String>>,
    runtimes: Option<BTreeMap<String, serde_json::Value>>,
    /// Options such as "name=seccomp,profile=default", or `None` from podman, which reports no such
    /// options.
    security_options: Option<Vec<String>>,
    #[serde(rename = "version")]
    of_podman: PodmanVersion,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PodmanVersion {
    version: String,
}

/// Finds the container that the engine means by a reference: a full id, a name, or the beginning of
/// an id. They are tried in this order, since the name of one container may be the beginning of
/// another's id.
pub fn resolve<'a>(containers: &'a [Container], reference: &str) -> Option<&'a Container> {
    let find = |is_meant: &dyn Fn(&Container) -> bool| containers.iter().find(|one| is_meant(one));
    let begins = |one: &Container| reference.len() >= SHORTEST_ID && one.id.starts_with(reference);
    find(&|one| one.id == reference)
        .or_else(|| find(&|one| one.name == reference))
        .or_else(|| find(&begins))
}

/// Parses the client's output if it describes every container that was asked for. Returns `None` if
/// one is missing, or if the list is still being printed and is not closed yet.
fn whole(references: &[&str], text: &[u8]) -> Option<Vec<Container>> {
    let all = text.trim_ascii_end().ends_with(b"\n]").then(|| parse(text).ok())??;
    references.iter().all(|one| resolve(&all, one).is_some()).then_some(all)
}

/// Returns the container's IPv4 address to which a `docker-proxy` process forwards a published
/// port. Returns `None` if the process is not such a proxy.
pub fn forwards_to(pid: Pid) -> Option<Ipv4Addr> {
    let words = process::arguments(pid);
    let is_proxy = words.first().is_some_and(|program| program.ends_with("docker-proxy"));
    let at = words.iter().position(|word| word == "-container-ip").filter(|_| is_proxy)?;
    words.get(at + 1)?.parse().ok()
}

/// Reports whether a process is an engine, or forwards ports for one. A container answers on the
/// ports of such a process.
pub fn is_engines_own(process: &Process) -> bool {
    ENGINES_OWN.contains(&process.name.as_str())
}

/// Reports whether a container has a name like those that compose chooses: "mcn-tts-1", or
/// "mcn_tts_1" in older versions.
fn is_named_by_compose(container: &str) -> bool {
    let parts: Vec<&str> = container.rsplitn(3, ['-', '_']).collect();
    parts.len() == 3 && parts[0].parse::<u32>().is_ok()
}

/// Returns the failure of a container that the engine could not remove and has given up ("dead").
fn dead(name: &str) -> Failure {
    Failure::new(Code::StartFailed, "dead: the engine could not remove it")
        .hint(format!("`docker rm --force {name}` tries again; then create it again"))
}

impl<'a> Docker<'a> {
    /// Returns the engine behind the client `program`. Calls to it end early when `stop` happens.
    pub fn of(program: &'a str, stop: &'a Stop) -> Docker<'a> {
        Docker { program, stop }
    }

    pub fn program(&self) -> &str {
        self.program
    }

    /// Runs the client to its end, for at most `limit`. `None` stands for the limit of a call that
    /// the engine answers at once.
    pub fn run(&self, arguments: &[&str], limit: Option<Duration>) -> Result<Output> {
        command::run(self.program, arguments, limit.unwrap_or(ASK_LIMIT), self.stop)
    }

    /// Begins to ask the engine something that it answers at once.
    fn ask(&self, arguments: &[&str]) -> Result<Begun> {
        let begin = || command::begin(self.program, arguments, &LEAN, ASK_LIMIT);
        host::with_timer_slack(SLACK, begin)
    }

    fn ask_about(&self, references: &[&str]) -> Result<Begun> {
        self.ask(&[&["container", "inspect", "--"], references].concat())
    }

    /// Asks for the named containers and those of compose projects, and returns a function that
    /// waits for the answer; the call is already under way on return. Containers of projects are
    /// listed first, which takes a call of its own. If there are several projects, the containers
    /// of all compose projects are listed.
    pub fn inspect(
        self,
        named: Vec<&'a str>,
        projects: &[&str],
    ) -> impl FnOnce() -> Inspected + use<'a> {
        let begun = match projects {
            [] => self.ask_about(&named),
            [only] => self.list(&format!("label=com.docker.compose.project={only}")),
            _ => self.list("label=com.docker.compose.project"),
        };
        let is_listed = !projects.is_empty();
        move || {
            let answer = match is_listed {
                false => begun.and_then(|asked| self.told(&named, asked)),
                true => begun.and_then(|listed| self.told_of_listed(&named, listed)),
            };
            answer.unwrap_or_else(|why| Inspected { trouble: Some(why), ..Inspected::default() })
        }
    }

    /// Returns all containers that the engine has.
    pub fn all(&self) -> Inspected {
        let listed = self.ask(&["ps", "--all", "--quiet", "--no-trunc"]);
        let answer = listed.and_then(|listed| self.told_of_listed(&[], listed));
        answer.unwrap_or_else(|why| Inspected { trouble: Some(why), ..Inspected::default() })
    }

    fn list(&self, filter: &str) -> Result<Begun> {
        self.ask(&["ps", "--all", "--quiet", "--no-trunc", "--filter", filter])
    }

    fn told_of_listed(&self, named: &[&str], listed: Begun) -> Result<Inspected> {
        let output = listed.finish(self.stop)?;
        if !output.status.success() {
            return Err(refusal(&reason::reason(&output)));
        }
        let ids = String::from_utf8_lossy(&output.stdout).into_owned();
        let references: Vec<&str> = named.iter().copied().chain(ids.split_whitespace()).collect();
        match references.is_empty() {
            true => Ok(Inspected::default()),
            false => self.told(&references, self.ask_about(&references)?),
        }
    }

    fn told(&self, references: &[&str], asked: Begun) -> Result<Inspected> {
        let mut all = None;
        let is_whole = |text: &[u8]| {
            all = whole(references, text);
            all.is_some()
        };
        let output = asked.answer(is_whole, self.stop)?;
        let containers = all.map_or_else(|| parse(&output.stdout), Ok)?;
        let trouble = match output.status.success() {
            true => None,
            false => beside_missing(&output.stderr),
        };
        Ok(Inspected { containers, trouble })
    }

    /// Asks the engine for its version and its setup. Fails if the engine cannot be reached.
    pub fn engine(&self) -> Result<Engine> {
        let info = self.ask(&["info", "--format", "{{json .}}"])?.finish(self.stop)?;
        let told: Info = serde_json::from_slice(&info.stdout).unwrap_or_default();
        let is_podmans = !told.of_podman.version.is_empty();
        let version = [told.server_version, told.of_podman.version].concat();
        // A client that reaches no engine prints its own part, and may call that a success.
        if !info.status.success() || version.is_empty() {
            let error = told.server_errors.and_then(|errors| errors.first().map(|e| mask(e)));
            return Err(refusal(&error.unwrap_or_else(|| reason::reason(&info))));
        }
        let runtimes = told.runtimes.unwrap_or_default().into_keys().collect();
        let options = told.security_options.unwrap_or_default();
        let is_apart = options.iter().any(|it| it == "name=rootless");
        Ok(Engine { version, is_podmans, runtimes, is_apart })
    }

    /// Returns the failure of a container that does not exist, with hints on how to create it.
    pub fn missing(&self, container: &str) -> Failure {
        let program = self.program;
        let failure = Failure::new(
            Code::NotFound,
            format!("there is no Docker container named \"{container}\""),
        );
        let failure = match is_named_by_compose(container) {
            // Compose refuses a container of such a name if it did not create the container itself.
            true => failure.hint(format!(
                "if it is one of compose's: `{program} compose up --no-start` creates it, in the folder of its compose file; with type = \"compose\", its project and its service, gpuctl does so itself"
            )),
            false => failure,
        };
        failure.hint(format!(
            "create it, for example: {program} create --name {container} {} --network host IMAGE",
            GpuAccess::options(program)
        ))
        .hint(format!("`{program} ps --all` lists the containers that exist"))
    }
}
