//! Docker through its command line. States are read from inspected fields: the wording of
//! messages differs between versions.

mod setup;

pub use setup::{GpuAccess, Setup, engine, setups};

use super::command::{self, Begun, Output};
use super::host;
use super::logs::{self, LogPart, LogViewer};
use super::process;
use super::wait::Stop;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Healthy, Pid, Presence, Running, Trouble};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Docker's client is written in Go, whose garbage collector and further threads take a tenth of
/// the time in which it answers, and are of no use for so little work (measured with 28.2.2).
const LEAN: [(&str, &str); 3] = [("GOGC", "off"), ("GOMEMLIMIT", "256MiB"), ("GOMAXPROCS", "1")];
/// How long the engine may take to note that a container has started, which may speak meanwhile.
const NOTING: Duration = Duration::from_millis(500);
/// The engine may take this long beyond the time it was told, and for calls without one.
const ENGINE_LIMIT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    id: String,
    name: String,
    #[serde(default)]
    restart_count: u64,
    state: ContainerState,
    #[serde(default)]
    network_settings: NetworkSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct ContainerState {
    status: String,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: i32,
    exit_code: i64,
    error: String,
    started_at: String,
    /// Absent where the image has no HEALTHCHECK.
    health: Option<ContainerHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerHealth {
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    ports: Option<BTreeMap<String, Option<Vec<PortBinding>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PortBinding {
    host_port: String,
}

/// The engine says this of a container.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The full id, as control groups name it; empty when there is no such container.
    pub id: String,
    pub presence: Presence,
}

/// Asks the engine something that it answers at once.
fn ask(arguments: &[&str]) -> Result<Begun> {
    command::begin("docker", arguments, &LEAN, ASK_LIMIT)
}

/// Asks the engine for all that it knows of these containers.
fn ask_about(containers: &[&str]) -> Result<Begun> {
    ask(&[&["container", "inspect", "--"], containers].concat())
}

/// A container as the engine describes it, of which a type keeps what it is for.
trait Described: DeserializeOwned {
    /// Returns the full id, as control groups name it.
    fn id(&self) -> &str;
    /// Returns the name, with the slash before it that the engine writes.
    fn name(&self) -> &str;
}

/// Parses what `docker container inspect` prints: a list of those containers that there are.
fn parse<T: Described>(stdout: &[u8]) -> Result<Vec<T>> {
    match stdout.trim_ascii() {
        b"" => Ok(Vec::new()),
        text => serde_json::from_slice(text).map_err(|e| {
            let message =
                format!("cannot understand the output of `docker container inspect`: {e}");
            Failure::new(Code::Unavailable, message).hint("is `docker` in PATH the Docker client?")
        }),
    }
}

/// Finds the container that the engine means by a reference: a whole id, a name, or the beginning
/// of an id, in this order, as another one's id may begin with the name of this one.
fn resolve<'a, T: Described>(containers: &'a [T], reference: &str) -> Option<&'a T> {
    let find = |is_meant: &dyn Fn(&T) -> bool| containers.iter().find(|one| is_meant(one));
    find(&|one| one.id() == reference)
        .or_else(|| find(&|one| one.name().trim_start_matches('/') == reference))
        .or_else(|| find(&|one| one.id().starts_with(reference)))
}

/// Asks for all containers in one call, which is under way on return; what is returned waits for
/// the answer.
pub fn inspect<'a>(
    containers: &'a [&str],
    stop: &'a Stop,
) -> impl FnOnce() -> Result<HashMap<String, Inspected>> + 'a {
    let asked = ask_about(containers);
    move || {
        let output = asked?.answer(|text| is_whole(containers, text), stop)?;
        let inspected = read(containers, &output.stdout)?;
        if !output.status.success() && inspected.values().all(|one| one.id.is_empty()) {
            // None exists, or the engine cannot be asked: only the engine itself can tell.
            ask_version(stop)?;
        }
        Ok(inspected)
    }
}

/// Whether it has said all of all containers. What is still being printed does not end so.
fn is_whole(containers: &[&str], text: &[u8]) -> bool {
    let has_ended = text.trim_ascii_end().ends_with(b"\n]");
    has_ended && read(containers, text).is_ok_and(|all| all.values().all(|one| !one.id.is_empty()))
}

/// Returns what it says of these containers: a list of those that there are.
pub fn read(containers: &[&str], stdout: &[u8]) -> Result<HashMap<String, Inspected>> {
    let found: Vec<Container> = parse(stdout)?;
    let inspected = |name: &&str| {
        let inspected = match resolve(&found, name) {
            Some(container) => {
                Inspected { id: container.id.clone(), presence: container.presence() }
            }
            None => Inspected { id: String::new(), presence: Presence::Missing(missing(name)) },
        };
        ((*name).to_owned(), inspected)
    };
    Ok(containers.iter().map(inspected).collect())
}

/// The name of a container, where the engine knows it.
pub fn name_of(id: &str, stop: &Stop) -> Option<String> {
    let asked = ask(&["container", "inspect", "--format", "{{.Name}}", "--", id]).ok()?;
    let output = asked.finish(stop).ok().filter(|output| output.status.success())?;
    let name = String::from_utf8(output.stdout).ok()?;
    Some(name.trim().trim_start_matches('/').to_owned()).filter(|name| !name.is_empty())
}

/// The address to which a process of Docker's forwards a published port, if it is such a process.
pub fn forwards_to(pid: Pid) -> Option<Ipv4Addr> {
    let words = process::arguments(pid);
    let is_proxy = words.first().is_some_and(|program| program.ends_with("docker-proxy"));
    let at = words.iter().position(|word| word == "-container-ip").filter(|_| is_proxy)?;
    words.get(at + 1)?.parse().ok()
}

/// The policy by which the engine starts a container again; `None` where it never does.
pub fn restart_policy(container: &str, stop: &Stop) -> Option<String> {
    let setup = setups(&[container], stop).ok()?.remove(container)?;
    Some(setup.restart).filter(|policy| !matches!(policy.as_str(), "" | "no"))
}

/// Whether the engine can be asked at all: only its own version tells for sure.
fn ask_version(stop: &Stop) -> Result<String> {
    let arguments = ["version", "--format", "{{.Server.Version}}"];
    let version = ask(&arguments)?.finish(stop)?;
    match version.status.success() {
        true => Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned()),
        false => Err(unreachable(&version)),
    }
}

pub fn missing(container: &str) -> Failure {
    Failure::new(
        Code::NotFound,
        format!("there is no Docker container named \"{container}\""),
    )
    .hint(format!(
        "create it, for example: docker create --name {container} --gpus all --network host IMAGE"
    ))
    .hint("`docker ps --all` lists the containers that exist")
}

fn unreachable(output: &Output) -> Failure {
    let reason = output.reason();
    if reason.to_lowercase().contains("permission denied") {
        return Failure::new(Code::Permission, format!("Docker denies access: {reason}"))
            .hint("add your user to the group docker (and log in again), or run gpuctl as root");
    }
    Failure::new(Code::Unavailable, format!("Docker cannot be reached: {reason}"))
        .hint("is the engine running? `systemctl start docker`; DOCKER_HOST names another one")
}

impl Described for Container {
    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Container {
    fn presence(&self) -> Presence {
        let state = &self.state;
        if state.status == "removing" {
            return Presence::Stopping("the container is being removed".to_owned());
        }
        if !state.running && !state.restarting {
            return match state.dead || state.status == "dead" {
                true => Presence::Dead(self.dead()),
                false => Presence::Down(self.ending()),
            };
        }
        let trouble = if state.restarting {
            let how = self.ending().unwrap_or_else(|| "ended".to_owned());
            Some(Trouble::CrashLoop(format!("{how}, {} restarts", self.restart_count)))
        } else {
            state.paused.then_some(Trouble::Paused)
        };
        let published = self.network_settings.ports.iter().flatten().flat_map(|(own, bindings)| {
            // "8000/tcp"
            let own = own.split('/').next().and_then(|port| port.parse().ok());
            let hosts = bindings.iter().flatten().map(|binding| binding.host_port.parse().ok());
            hosts.filter_map(move |host| host.zip(own))
        });
        Presence::Up(Running {
            pids: if state.pid > 0 { vec![state.pid] } else { Vec::new() },
            age: age(&state.started_at),
            restarts: self.restart_count,
            trouble,
            own_health: state.health.as_ref().and_then(|health| match health.status.as_str() {
                "none" => None,
                "healthy" => Some(Healthy::Yes),
                status => Some(Healthy::No(format!("its HEALTHCHECK says {status}"))),
            }),
            published: published.collect(),
        })
    }

    fn dead(&self) -> Failure {
        let name = self.name.trim_start_matches('/');
        Failure::new(Code::StartFailed, "dead: the engine could not remove it")
            .hint(format!("`docker rm --force {name}` tries again; then create it again"))
    }

    /// Returns how it ended, if it ever ran and did not just do its work.
    fn ending(&self) -> Option<String> {
        let state = &self.state;
        if !state.error.is_empty() {
            return Some(state.error.clone());
        }
        if state.oom_killed {
            return Some("was killed for want of memory (host memory, not VRAM)".to_owned());
        }
        match (state.status.as_str(), state.exit_code) {
            ("created", 0) | (_, 0) => None,
            (_, code) => Some(format!("exited with code {code}")),
        }
    }
}

/// Time since an RFC 3339 timestamp of the engine.
#[expect(clippy::disallowed_methods, reason = "the engine tells a point in time, not an age")]
fn age(started_at: &str) -> Option<Duration> {
    let started: jiff::Timestamp = started_at.parse().ok()?;
    Some(Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default())
}

/// Starts a container; one that is up already is no error. What comes of it has to be watched:
/// the engine says yes to a container that exits at once.
pub fn start(container: &str, limit: Duration, stop: &Stop) -> Result<()> {
    act(&["start", "--", container], limit, Code::StartFailed, stop)
}

pub fn unpause(container: &str, stop: &Stop) -> Result<()> {
    act(&["unpause", "--", container], ENGINE_LIMIT, Code::StartFailed, stop)
}

/// TERM, and KILL by the engine after `limit`.
pub fn stop(container: &str, limit: Duration, stop: &Stop) -> Result<()> {
    let seconds = limit.as_secs_f64().ceil().to_string();
    act(
        &["stop", "--time", &seconds, "--", container],
        limit + ENGINE_LIMIT,
        Code::StopFailed,
        stop,
    )
}

pub fn kill(container: &str, stop: &Stop) -> Result<()> {
    act(&["kill", "--", container], ENGINE_LIMIT, Code::StopFailed, stop)
}

fn act(arguments: &[&str], limit: Duration, code: Code, stop: &Stop) -> Result<()> {
    let output = command::run("docker", arguments, limit, stop)?;
    if output.status.success() {
        return Ok(());
    }
    let container = arguments[arguments.len() - 1];
    // The engine's state, not its wording, tells a container that is missing or an engine that is
    // down from a container that does not run.
    if let Presence::Missing(failure) = &inspect(&[container], stop)()?[container].presence {
        return Err(failure.clone());
    }
    let complaint = output.complaint();
    Err(Failure::new(code, format!("docker {} {container}: {complaint}", arguments[0])))
}

/// The last lines of what a container has said since it was started; none where the engine could not
/// start it, and all that there is belongs to an earlier start. `watched` is for how long it has been
/// waited for.
pub fn log_tail(container: &str, watched: Duration, stop: &Stop) -> Vec<String> {
    let Some(started) = started_at(container, stop) else { return Vec::new() };
    // The engine notes a start when the container may have spoken already.
    let begun = host::now().saturating_sub(watched).unwrap_or(started);
    let noted = started.saturating_sub(NOTING).unwrap_or(started);
    let since = if started >= begun { begun } else { noted }.to_string();
    let arguments = ["logs", "--since", &since, "--tail", "15", "--", container];
    match command::run("docker", &arguments, ASK_LIMIT, stop) {
        Ok(output) if output.status.success() => {
            let both = [output.stdout, output.stderr.into_bytes()].concat();
            logs::last_lines(&both)
        }
        // The failure that these lines would explain is told without them; that there is no log
        // (none is kept, or the container is gone) is no part of it.
        _ => Vec::new(),
    }
}

/// Returns what shows the log of a container that there is. Most servers print to stderr, which is
/// no error of ours: both are one log.
pub fn log_viewer(container: &str, part: LogPart, stop: &Stop) -> Result<LogViewer> {
    if let Presence::Missing(failure) = &inspect(&[container], stop)()?[container].presence {
        return Err(failure.clone());
    }
    let lines = part.lines.to_string();
    let both = "exec \"$0\" \"$@\" 2>&1";
    let mut arguments = vec!["-c", both, "docker", "logs", "--tail", &lines];
    arguments.extend(part.follow.then_some("--follow"));
    arguments.extend(["--", container]);
    Ok(LogViewer::new("sh", &arguments))
}

/// Returns when a container was started, as the engine tells it; `None` where it was not, or not well.
fn started_at(container: &str, stop: &Stop) -> Option<jiff::Timestamp> {
    let form = "{{.State.StartedAt}} {{.State.Error}}";
    let asked = ask(&["container", "inspect", "--format", form, "--", container]).ok()?;
    let output = asked.finish(stop).ok().filter(|output| output.status.success())?;
    let told = String::from_utf8(output.stdout).ok()?;
    let (since, error) = told.trim().split_once(' ').unwrap_or((told.trim(), ""));
    let since: jiff::Timestamp = since.parse().ok()?;
    (error.is_empty() && since.as_second() > 0).then_some(since)
}
