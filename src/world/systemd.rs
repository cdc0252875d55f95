//! systemd units through `systemctl`. Their states are read from properties, never from text for
//! people.

use super::command::{self, Begun, Output};
use super::host;
use super::logs::{self, LogPart, LogViewer};
use super::scope;
use super::wait::Stop;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Healthy, Presence, Running, Trouble};
use crate::redact::mask;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

const SHOW_LIMIT: Duration = Duration::from_secs(5);
/// Least time that the call which starts a unit is given, even if the call before it has used up
/// the limit.
const LEAST: Duration = Duration::from_secs(1);
const PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,MainPID,ControlGroup,Result,\
    ExecMainStatus,NRestarts,InactiveExitTimestampMonotonic,TriggeredBy,Job";

/// Exit code of `systemctl` if polkit denies the call (LSB: insufficient privilege).
const NOT_PERMITTED: i32 = 4;

/// Part of the manager's message about a unit with RefuseManualStart= or RefuseManualStop=.
const BY_DEPENDENCY: &str = "may be requested by dependency only";

/// Part of the manager's message about a job that would cancel another one which must not be
/// cancelled, such as a shutdown's.
const DESTRUCTIVE: &str = "is destructive";

/// State of a unit, as systemd reports it.
#[derive(Clone, Debug)]
pub struct UnitView {
    /// Name of the unit itself, which may have been asked for by an alias.
    pub id: String,
    pub control_group: Option<String>,
    pub presence: Presence,
    /// Socket that starts the unit when a client connects to it, if there is one.
    pub socket: Option<String>,
}

/// Asks one manager (the system's, or the user's if `user` is set) for all units in one call, and
/// returns a function that waits for the answer. The call is already under way on return.
pub fn show<'a>(
    units: &'a [&str],
    user: bool,
    stop: &'a Stop,
) -> impl FnOnce() -> Result<HashMap<String, UnitView>> + 'a {
    let asked = ask(units, user, PROPERTIES);
    move || Ok(read(units, &text(asked?, user, stop)?))
}

/// How a unit is installed, as systemd reports it.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The property LoadState: "loaded", "not-found", "masked", …
    pub load_state: String,
    /// The property UnitFileState: "enabled", "disabled", "static", …
    pub file_state: String,
    /// Socket that starts the unit when a client connects to it, if there is one.
    pub socket: Option<String>,
}

/// Returns how each of these units of one manager is installed.
pub fn installed(units: &[&str], user: bool, stop: &Stop) -> Result<HashMap<String, Installed>> {
    let read = |_: &str, properties: &HashMap<&str, &str>| {
        let property = |name| properties.get(name).copied().unwrap_or_default();
        Installed {
            load_state: property("LoadState").to_owned(),
            file_state: property("UnitFileState").to_owned(),
            socket: socket_of(property("TriggeredBy")).map(str::to_owned),
        }
    };
    let asked = ask(units, user, "Id,LoadState,UnitFileState,TriggeredBy")?;
    Ok(each(units, &text(asked, user, stop)?, read))
}

/// Returns the first socket in a line of units that are separated by spaces.
fn socket_of(units: &str) -> Option<&str> {
    units.split(' ').find(|unit| unit.ends_with(".socket"))
}

/// Reports whether systemd itself accepts TCP connections on a port on behalf of the unit `socket`.
pub fn accepts_for(socket: &str, port: u16, user: bool, stop: &Stop) -> Result<bool> {
    let told = text(ask(&[socket], user, "Listen")?, user, stop)?;
    Ok(told.lines().any(|line| line.ends_with(&format!(":{port} (Stream)"))))
}

/// Program that asks polkit for a decision; it is installed together with polkit.
pub const PKCHECK: &str = "pkcheck";

/// Reports whether polkit lets this user start and stop every unit. If it does not, a rule may
/// still allow this for single units, about which only root may ask.
pub fn lets_act(stop: &Stop) -> bool {
    let me = std::process::id().to_string();
    let words = ["--action-id", "org.freedesktop.systemd1.manage-units", "--process", &me];
    command::run(PKCHECK, &words, SHOW_LIMIT, stop).is_ok_and(|output| output.status.success())
}

/// Returns the names of the services that have a unit file, whether they run or not, without
/// templates.
pub fn unit_files(user: bool, stop: &Stop) -> Result<Vec<String>> {
    let list = ["list-unit-files", "--type=service", "--plain", "--no-legend"];
    let listed = text(systemctl(&list, user, SHOW_LIMIT)?, user, stop)?;
    let units = listed.lines().filter_map(|line| line.split_whitespace().next());
    Ok(units.filter(|unit| !unit.contains("@.")).map(str::to_owned).collect())
}

/// Returns the active unit that starts this one whenever it has ended: its socket, timer or path,
/// or a unit that upholds it. Returns `None` if there is none.
fn starter(unit: &str, user: bool, stop: &Stop) -> Result<Option<String>> {
    let told = text(ask(&[unit], user, "TriggeredBy,UpheldBy")?, user, stop)?;
    let values = told.lines().filter_map(|line| line.split_once('=')).map(|(_, units)| units);
    let candidates: Vec<&str> = values.flat_map(str::split_whitespace).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let told = text(ask(&candidates, user, "Id,ActiveState")?, user, stop)?;
    let active = each(&candidates, &told, |_, properties| {
        properties.get("ActiveState").is_some_and(|state| state.starts_with("activ"))
    });
    let is_active = |unit: &&str| active.get(*unit) == Some(&true);
    Ok(candidates.into_iter().find(is_active).map(str::to_owned))
}

/// Reports whether a unit that was stopped may be up again at once, without anybody's doing. A
/// socket or a timer does not count, since it waits for a connection or for its time.
pub fn is_started_again(unit: &str, user: bool, stop: &Stop) -> bool {
    let waits = |unit: &str| unit.ends_with(".socket") || unit.ends_with(".timer");
    starter(unit, user, stop).ok().flatten().is_some_and(|starter| !waits(&starter))
}

/// Returns the failure of a service whose unit was stopped and is up again. It says what started
/// the unit, as far as that is known, and how to end that.
pub fn started_again(service: &str, unit: &str, user: bool, stop: &Stop) -> Failure {
    let systemctl = if user { "systemctl --user" } else { "systemctl" };
    let (who, fix) = match starter(unit, user, stop).ok().flatten() {
        Some(starter) => {
            let fix = format!("`{systemctl} stop {starter}`");
            (starter, fix)
        }
        None => {
            let selector = if user { "--user-unit" } else { "--unit" };
            let fix = format!("`journalctl {selector} {unit}` says when");
            ("systemd, or who asked it to,".to_owned(), fix)
        }
    };
    let message = format!("{service}: {who} started it again as soon as it was stopped");
    Failure::new(Code::StopFailed, message).hint(format!("{fix}; then run the command again"))
}

fn ask(units: &[&str], user: bool, properties: &str) -> Result<Begun> {
    let mut arguments = vec!["show", "--property", properties, "--"];
    arguments.extend(units);
    systemctl(&arguments, user, SHOW_LIMIT)
}

/// Waits for a call of `systemctl` and returns what it printed.
fn text(asked: Begun, user: bool, stop: &Stop) -> Result<String> {
    let output = asked.finish(stop)?;
    if !output.status.success() {
        return Err(unreachable(&output, user));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads the blocks of properties that `systemctl show` printed, one for each unit in the order
/// asked for. Returns the results by the names of the units.
fn each<T>(
    units: &[&str],
    text: &str,
    read: impl Fn(&str, &HashMap<&str, &str>) -> T,
) -> HashMap<String, T> {
    let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
    let read = |(unit, block): (&&str, &str)| {
        let properties = block.lines().filter_map(|line| line.split_once('=')).collect();
        ((*unit).to_owned(), read(unit, &properties))
    };
    units.iter().zip(blocks).map(read).collect()
}

/// Parses the output of `systemctl show` into the state of each unit.
pub fn read(units: &[&str], text: &str) -> HashMap<String, UnitView> {
    each(units, text, shown)
}

fn shown(unit: &str, properties: &HashMap<&str, &str>) -> UnitView {
    let property = |name: &str| properties.get(name).copied().unwrap_or_default();
    let number = |name: &str| property(name).parse::<u64>().unwrap_or(0);
    let ending = || match (property("Result"), number("ExecMainStatus")) {
        ("success" | "", _) => None,
        // The main process has not failed, or was never begun.
        (result, 0) => Some(format!("failed: {result}")),
        (result, status) => Some(format!("failed: {result}, status {status}")),
    };
    let running = |trouble| {
        Presence::Up(Running {
            pids: Some(number("MainPID") as i32).filter(|pid| *pid > 0).into_iter().collect(),
            age: age(number("InactiveExitTimestampMonotonic")),
            restarts: number("NRestarts"),
            trouble,
            // A unit that notifies systemd when it is ready (Type=notify) has not done so yet.
            own_health: (property("ActiveState") == "activating").then(|| {
                Healthy::No(format!("systemd says activating ({})", property("SubState")))
            }),
            ..Running::default()
        })
    };
    let control_group = Some(property("ControlGroup")).filter(|path| path.len() > 1);
    let socket = socket_of(property("TriggeredBy"));
    // A unit that runs is up, whatever has become of its file since.
    let presence = match (property("LoadState"), property("ActiveState")) {
        (_, "activating") if property("SubState").starts_with("auto-restart") => {
            let how = ending().unwrap_or_else(|| "ended".to_owned());
            running(Some(Trouble::CrashLoop(format!("{how}, {} restarts", number("NRestarts")))))
        }
        (_, "active" | "activating" | "reloading" | "refreshing") => running(None),
        (_, "deactivating") => Presence::Stopping("the unit is being stopped".to_owned()),
        _ if number("Job") > 0 => Presence::Up(Running {
            own_health: Some(Healthy::No("systemd has queued its start".to_owned())),
            ..Running::default()
        }),
        ("not-found" | "bad-setting" | "error", _) => {
            Presence::Missing(missing(unit, property("LoadState")))
        }
        ("masked", _) => Presence::Down(Some("the unit is masked".to_owned())),
        _ => Presence::Down(ending()),
    };
    UnitView {
        id: Some(property("Id")).filter(|id| !id.is_empty()).unwrap_or(unit).to_owned(),
        control_group: control_group.map(str::to_owned),
        presence,
        socket: socket.map(str::to_owned),
    }
}

/// Returns how long ago a time of the monotonic clock was, in microseconds. That clock stands still
/// while the machine is suspended. Returns `None` for 0, by which systemd means that there is no
/// such time.
fn age(microseconds: u64) -> Option<Duration> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    (microseconds > 0).then(|| now.saturating_sub(Duration::from_micros(microseconds)))
}

/// Returns the failure of a unit that does not exist or cannot be used.
pub fn missing(unit: &str, load_state: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no usable systemd unit {unit} ({load_state})"))
        .hint(format!("`systemctl status {unit}` says more; after writing a unit file run `systemctl daemon-reload`"))
}

fn unreachable(output: &Output, user: bool) -> Failure {
    let why = complaint(output);
    if is_refused(output) {
        return Failure::new(Code::Permission, format!("systemd may not be asked: {why}"));
    }
    let failure = Failure::new(Code::Unavailable, format!("systemd cannot be reached: {why}"));
    match user {
        false => failure.hint("is this machine booted with systemd? For a user's unit set user = true"),
        true => failure.hint(format!(
            "a user's systemd runs while the user is logged in; `loginctl enable-linger {}` keeps it running",
            host::user()
        )),
    }
}

/// Starts a unit without waiting for it, so that what the manager has queued before it holds nobody
/// up; the caller has to look at what becomes of the unit. The failures and the starts counted so
/// far are forgotten first, so that they do not forbid this start.
pub fn start(unit: &str, user: bool, limit: Duration, stop: &Stop) -> Result<()> {
    let begun = Instant::now();
    // The result is ignored: if the user lacks the permission, the start itself reports that.
    systemctl(&["reset-failed", "--", unit], user, limit)?.finish(stop)?;
    let left = limit.saturating_sub(begun.elapsed()).max(LEAST);
    act(&["start", "--no-block", "--", unit], user, left, Code::StartFailed, stop)
}

/// Stops a unit, and waits until it has stopped.
pub fn stop(unit: &str, user: bool, limit: Duration, stop: &Stop) -> Result<()> {
    act(&["stop", "--", unit], user, limit, Code::StopFailed, stop)
}

/// Kills all processes of a unit by SIGKILL and waits until the unit has stopped. The unit is
/// already being stopped when they are killed, so that no Restart= brings it back. Units that the
/// manager would stop before it are not waited for, since they may hang.
pub fn kill(unit: &str, user: bool, limit: Duration, stop: &Stop) -> Result<()> {
    act(&["stop", "--no-block", "--", unit], user, SHOW_LIMIT, Code::StopFailed, stop)?;
    let kill = ["kill", "--signal=KILL", "--", unit];
    let killed = act(&kill, user, SHOW_LIMIT, Code::StopFailed, stop);
    let end = ["stop", "--job-mode=ignore-dependencies", "--", unit];
    // There may be no process left to kill; what counts is whether the unit has stopped.
    act(&end, user, limit, Code::StopFailed, stop)
        .map_err(|failure| killed.err().unwrap_or(failure))
}

fn act(arguments: &[&str], user: bool, limit: Duration, code: Code, stop: &Stop) -> Result<()> {
    let output = systemctl(arguments, user, limit)?.finish(stop)?;
    if output.status.success() {
        return Ok(());
    }
    let (verb, unit) = (arguments[0], arguments[arguments.len() - 1]);
    let failure =
        |code| Failure::new(code, format!("systemctl {verb} {unit}: {}", complaint(&output)));
    match is_refused(&output) {
        true => Err(failure(Code::Permission)
            .hint(format!("run gpuctl as root, or let polkit allow this user to manage {unit}"))),
        false if output.stderr.contains(BY_DEPENDENCY) => Err(failure(code)
            .hint(format!("set RefuseManualStart=no and RefuseManualStop=no in {unit}"))),
        false if output.stderr.contains(DESTRUCTIVE) => {
            Err(failure(code).hint("`systemctl list-jobs` shows what may not be disturbed"))
        }
        false => Err(failure(code)),
    }
}

/// Reports whether polkit or the bus denied the call. `systemctl` has no exit code of its own for a
/// polkit that would ask for a password, and uses `NOT_PERMITTED` also for what nobody may do.
fn is_refused(output: &Output) -> bool {
    let may_nobody = [BY_DEPENDENCY, DESTRUCTIVE].iter().any(|text| output.stderr.contains(text));
    output.status.code() == Some(NOT_PERMITTED) && !may_nobody
        || output.stderr.contains("Interactive authentication required")
}

/// Returns why `systemctl` failed: the first line of its messages that is no warning. A warning
/// about a changed unit file, for instance, comes before the reason.
fn complaint(output: &Output) -> String {
    let mut lines = output.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    match lines.find(|line| !line.starts_with("Warning:")) {
        Some(line) => mask(line),
        None => output.complaint(),
    }
}

/// Reports whether the machine is shutting down. Nothing can be started on it then.
pub fn is_going_down() -> bool {
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    let asked = systemctl(&["show", "--property", "SystemState"], false, SHOW_LIMIT);
    let told = asked.and_then(|asked| text(asked, false, &Stop::never()));
    told.is_ok_and(|told| told.trim() == "SystemState=stopping")
}

fn systemctl(arguments: &[&str], user: bool, limit: Duration) -> Result<Begun> {
    let mut all = vec!["--no-pager", "--no-ask-password"];
    if user {
        all.push("--user");
    }
    all.extend(arguments);
    // A user's systemd is found by XDG_RUNTIME_DIR, which cron and `su` do not set.
    let folder = scope::user_folder().filter(|_| user);
    let folder = folder.as_deref().and_then(Path::to_str);
    let variables: Vec<_> = folder.map(|folder| ("XDG_RUNTIME_DIR", folder)).into_iter().collect();
    command::begin("systemctl", &all, &variables, limit)
}

/// Returns the last lines of a unit's journal since the unit was started or, if that is earlier,
/// since the caller began to wait for it, `watched` ago.
pub fn log_tail(unit: &str, user: bool, watched: Duration, stop: &Stop) -> Vec<String> {
    let ago = |time| host::now().saturating_sub(time).unwrap_or_default();
    let waited_for = ago(watched);
    // Everything that the unit has written is in the journal then. If the call is refused, most of
    // it is there anyway.
    let _ = command::run("journalctl", &["--sync"], SHOW_LIMIT, stop);
    let asked = ask(&[unit], user, "InactiveExitTimestampMonotonic");
    let told = asked.and_then(|asked| text(asked, user, stop)).unwrap_or_default();
    let begun = told.trim().rsplit('=').next().and_then(|time| age(time.parse().ok()?)).map(ago);
    let since = begun.map_or(waited_for, |begun| begun.min(waited_for));
    let since = format!("--since=@{}.{:06}", since.as_second(), since.subsec_microsecond());
    let selector = if user { "--user-unit" } else { "--unit" };
    let arguments =
        [selector, unit, &since, "--lines", "15", "--output", "cat", "--no-pager", "--quiet"];
    match command::run("journalctl", &arguments, SHOW_LIMIT, stop) {
        Ok(output) => logs::last_lines(&output.stdout),
        // The failure that these lines would explain is reported without them.
        Err(_) => Vec::new(),
    }
}

/// Returns the program that shows the journal of a unit. Fails if there is no such unit.
pub fn log_viewer(unit: &str, user: bool, part: LogPart, stop: &Stop) -> Result<LogViewer> {
    if let Presence::Missing(failure) = &show(&[unit], user, stop)()?[unit].presence {
        return Err(failure.clone());
    }
    let lines = part.lines.to_string();
    let selector = if user { "--user-unit" } else { "--unit" };
    let mut arguments = vec![selector, unit, "--lines", &lines, "--no-pager"];
    arguments.extend(part.follow.then_some("--follow"));
    Ok(LogViewer::new("journalctl", &arguments))
}
