//! Docker through its command line. States are read from inspected fields: the wording of
//! messages differs between versions.

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
/// Docker's client is written in Go, whose garbage collector and further threads take a tenth of
/// the time in which it answers, and are of no use for so little work (measured with 28.2.2).
const LEAN: [(&str, &str); 3] = [("GOGC", "off"), ("GOMEMLIMIT", "256MiB"), ("GOMAXPROCS", "1")];
/// Go's runtime looks every 20 µs whether anything has to be done; that it need not wake up so exactly saves another
/// thirtieth. Not for what starts containers: podman's would inherit it.
const SLACK: Duration = Duration::from_millis(1);
/// A reference that is shorter than what `docker ps` shows of ids is taken for a name alone: another
/// container's id may come to begin with it.
const SHORTEST_ID: usize = 12;

/// Engines, and what listens on this machine for their containers.
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

/// The engine, through a client.
#[derive(Clone, Copy)]
pub struct Docker<'a> {
    /// docker, podman, or the path of one.
    program: &'a str,
    stop: &'a Stop,
}

/// What an engine says of the containers that it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Inspected {
    pub containers: Vec<Container>,
    /// Why it did not say all; what it does not tell of is missing otherwise.
    pub trouble: Option<Failure>,
}

/// The engine, as far as containers with a GPU depend on it.
pub struct Engine {
    pub version: String,
    pub is_podmans: bool,
    /// The runtimes by name; the NVIDIA container toolkit adds "nvidia".
    pub runtimes: Vec<String>,
    /// It is a rootless one of Docker's, whose containers are in a network that this machine's programs do
    /// not reach.
    pub is_apart: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    server_version: String,
    /// Why the client cannot tell of the engine.
    server_errors: Option<Vec<String>>,
    runtimes: Option<BTreeMap<String, serde_json::Value>>,
    /// Such as "name=seccomp,profile=default"; podman has none.
    security_options: Option<Vec<String>>,
    #[serde(rename = "version")]
    of_podman: PodmanVersion,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PodmanVersion {
    version: String,
}

/// Finds the container that the engine means by a reference: a whole id, a name, or the beginning
/// of an id, in this order, as another one's id may begin with the name of this one.
pub fn resolve<'a>(containers: &'a [Container], reference: &str) -> Option<&'a Container> {
    let find = |is_meant: &dyn Fn(&Container) -> bool| containers.iter().find(|one| is_meant(one));
    let begins = |one: &Container| reference.len() >= SHORTEST_ID && one.id.starts_with(reference);
    find(&|one| one.id == reference)
        .or_else(|| find(&|one| one.name == reference))
        .or_else(|| find(&begins))
}

/// What it has said of all containers; `None` where it has not said all. What is still being printed does
/// not end so.
fn whole(references: &[&str], text: &[u8]) -> Option<Vec<Container>> {
    let all = text.trim_ascii_end().ends_with(b"\n]").then(|| parse(text).ok())??;
    references.iter().all(|one| resolve(&all, one).is_some()).then_some(all)
}

/// The address to which a process of Docker's forwards a published port, if it is such a process.
pub fn forwards_to(pid: Pid) -> Option<Ipv4Addr> {
    let words = process::arguments(pid);
    let is_proxy = words.first().is_some_and(|program| program.ends_with("docker-proxy"));
    let at = words.iter().position(|word| word == "-container-ip").filter(|_| is_proxy)?;
    words.get(at + 1)?.parse().ok()
}

/// Whether a process is an engine, or forwards ports for one: what answers there is a container.
pub fn is_engines_own(process: &Process) -> bool {
    ENGINES_OWN.contains(&process.name.as_str())
}

/// Whether a container is called as compose calls those that it makes: "mcn-tts-1", and before "mcn_tts_1".
fn is_named_by_compose(container: &str) -> bool {
    let parts: Vec<&str> = container.rsplitn(3, ['-', '_']).collect();
    parts.len() == 3 && parts[0].parse::<u32>().is_ok()
}

/// The failure of a container that the engine has given up.
fn dead(name: &str) -> Failure {
    Failure::new(Code::StartFailed, "dead: the engine could not remove it")
        .hint(format!("`docker rm --force {name}` tries again; then create it again"))
}

impl<'a> Docker<'a> {
    pub fn of(program: &'a str, stop: &'a Stop) -> Docker<'a> {
        Docker { program, stop }
    }

    pub fn program(&self) -> &str {
        self.program
    }

    /// Runs the client to its end, for as long as it may take; `None`: as something that is answered at
    /// once.
    pub fn run(&self, arguments: &[&str], limit: Option<Duration>) -> Result<Output> {
        command::run(self.program, arguments, limit.unwrap_or(ASK_LIMIT), self.stop)
    }

    /// Asks the engine something that it answers at once.
    fn ask(&self, arguments: &[&str]) -> Result<Begun> {
        let begin = || command::begin(self.program, arguments, &LEAN, ASK_LIMIT);
        host::with_timer_slack(SLACK, begin)
    }

    fn ask_about(&self, references: &[&str]) -> Result<Begun> {
        self.ask(&[&["container", "inspect", "--"], references].concat())
    }

    /// Asks for all containers in one call, which is under way on return; what is returned waits for
    /// the answer. Those of compose projects are listed first, which takes a call of its own.
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

    /// Asks for all containers that there are.
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

    pub fn engine(&self) -> Result<Engine> {
        let info = self.ask(&["info", "--format", "{{json .}}"])?.finish(self.stop)?;
        let told: Info = serde_json::from_slice(&info.stdout).unwrap_or_default();
        let is_podmans = !told.of_podman.version.is_empty();
        let version = [told.server_version, told.of_podman.version].concat();
        // A client without an engine prints its own part, and may call that a success.
        if !info.status.success() || version.is_empty() {
            let error = told.server_errors.and_then(|errors| errors.first().map(|e| mask(e)));
            return Err(refusal(&error.unwrap_or_else(|| reason::reason(&info))));
        }
        let runtimes = told.runtimes.unwrap_or_default().into_keys().collect();
        let options = told.security_options.unwrap_or_default();
        let is_apart = options.iter().any(|it| it == "name=rootless");
        Ok(Engine { version, is_podmans, runtimes, is_apart })
    }

    /// The failure of a container that there is not.
    pub fn missing(&self, container: &str) -> Failure {
        let program = self.program;
        let failure = Failure::new(
            Code::NotFound,
            format!("there is no Docker container named \"{container}\""),
        );
        let failure = match is_named_by_compose(container) {
            // Compose refuses a container of such a name that it has not made.
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
