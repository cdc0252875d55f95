//! Starts and stops containers, watches them, and shows their logs.

use super::reason::{self, is_forbidden, refusal};
use super::{ASK_LIMIT, Docker, LEAN, resolve};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Container, Presence};
use crate::world::command::{self, Begun, Output};
use crate::world::host;
use crate::world::logs::{self, LogPart, LogViewer};
use crate::world::wait::wait;
use rustix::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Longest time that the engine may take to note that a container has started. The container may
/// print something meanwhile.
const NOTING: Duration = Duration::from_millis(500);
/// Number of latest events, of all containers together, that Docker's engine remembers
/// (`eventsLimit` in moby's daemon/events).
const REMEMBERED: usize = 256;
/// Time that the engine may take beyond the limit of a stop, and in all for calls that have no
/// limit of their own.
const ENGINE_LIMIT: Duration = Duration::from_secs(15);
/// First pause before the engine is asked again because it is away, or is still stopping or
/// removing a container. Each further pause is twice as long, up to `LONGEST_PAUSE`.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A command that changes the state of containers.
struct Deed<'a> {
    words: &'a [&'a str],
    /// Longest time that the command may take in all, even if the engine is away for a while.
    limit: Duration,
    /// Code of the failure for a container on which the command fails.
    code: Code,
    is_done: fn(&Presence) -> bool,
}

fn is_up(presence: &Presence) -> bool {
    matches!(presence, Presence::Up(_))
}

fn is_down(presence: &Presence) -> bool {
    matches!(presence, Presence::Down(_) | Presence::Dead(_))
}

impl Docker<'_> {
    /// Starts containers in the given order; a container that is up already is no error. The caller
    /// has to watch what becomes of them, since the engine reports success even for a container
    /// that exits at once.
    pub fn start(&self, containers: &[&str], limit: Duration) -> Vec<Result<()>> {
        let words = &["start"];
        self.act(containers, Deed { words, limit, code: Code::StartFailed, is_done: is_up })
    }

    pub fn unpause(&self, containers: &[&str]) -> Vec<Result<()>> {
        let (words, limit) = (&["unpause"], ENGINE_LIMIT);
        self.act(containers, Deed { words, limit, code: Code::StartFailed, is_done: is_up })
    }

    /// Sends SIGTERM to containers, and makes the engine send SIGKILL to those that still run after
    /// `limit`. Returns for each container whether it had to be killed.
    pub fn stop(&self, containers: &[&str], limit: Duration) -> Vec<Result<bool>> {
        let begun = Instant::now();
        let seconds = limit.as_secs_f64().ceil().to_string();
        let deed = Deed {
            words: &["stop", "-t", &seconds],
            limit: limit + ENGINE_LIMIT,
            code: Code::StopFailed,
            is_done: is_down,
        };
        let stopped = self.act(containers, deed);
        // The engine does not report kills. If the call ended within the limit, there was none.
        let told =
            (begun.elapsed() >= limit).then(|| self.inspect(containers.to_vec(), &[])().containers);
        let is_killed = |reference: &str| {
            let found = told.as_ref().and_then(|told| resolve(told, reference));
            found.is_some_and(|container| container.exit_code == Some(137))
        };
        let each = containers.iter().zip(stopped);
        each.map(|(reference, done)| done.map(|()| is_killed(reference))).collect()
    }

    pub fn kill(&self, containers: &[&str]) -> Vec<Result<()>> {
        let (words, limit) = (&["kill"], ENGINE_LIMIT);
        self.act(containers, Deed { words, limit, code: Code::StopFailed, is_done: is_down })
    }

    /// Runs a command on all containers in one call, and returns the result for each, judged by the
    /// engine's state and not by its wording. The call is repeated, within its limit, while the
    /// engine is away or is still stopping or removing one of the containers.
    fn act(&self, containers: &[&str], deed: Deed) -> Vec<Result<()>> {
        let all = |failure: &Failure| containers.iter().map(|_| Err(failure.clone())).collect();
        let arguments = [deed.words, &["--"], containers].concat();
        let deadline = Instant::now() + deed.limit;
        let mut pause = SHORTEST_PAUSE;
        let mut unreached = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let begun = command::begin(self.program, &arguments, &LEAN, left);
            let output = match begun.and_then(|begun| begun.finish(self.stop)) {
                Ok(output) if output.status.success() => {
                    return containers.iter().map(|_| Ok(())).collect();
                }
                Ok(output) => output,
                // The rest of the time may be too short for an answer, so an earlier failure says
                // more.
                Err(failure) if failure.code == Code::Unavailable => {
                    return all(&unreached.unwrap_or(failure));
                }
                Err(failure) => return all(&failure),
            };
            let why = reason::reason(&output);
            let told = self.inspect(containers.to_vec(), &[])();
            let is_away = told.trouble.as_ref().is_some_and(|it| it.code == Code::Unavailable);
            // While a container is being removed, the engine says that it does not run, and not yet
            // that it is gone.
            let is_leaving =
                told.containers.iter().any(|one| matches!(one.presence, Presence::Stopping(_)));
            let may_pass = is_away || reason::is_away(&why) || is_leaving && !is_forbidden(&why);
            if may_pass && Instant::now() + pause < deadline {
                log::debug!("the engine is asked again: {why}");
                wait(&[], self.stop, Instant::now() + pause);
                if let Err(stopped) = self.stop.check() {
                    return all(&stopped);
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                unreached = told.trouble.filter(|_| is_away).or(unreached);
                continue;
            }
            let result = |reference: &&str| {
                let Some(container) = resolve(&told.containers, reference) else {
                    return Err(told.trouble.clone().unwrap_or_else(|| self.missing(reference)));
                };
                match &container.presence {
                    presence if (deed.is_done)(presence) => Ok(()),
                    _ if is_forbidden(&why) => Err(refusal(&why)),
                    presence => {
                        // With several containers, the engine's words do not say which one they are
                        // about.
                        let own = match presence {
                            Presence::Down(Some(own)) if containers.len() > 1 => own,
                            _ => &why,
                        };
                        let (program, verb, name) = (self.program, deed.words[0], &container.name);
                        Err(Failure::new(deed.code, format!("{program} {verb} {name}: {own}")))
                    }
                }
            };
            return containers.iter().map(result).collect();
        }
    }

    /// Returns the last lines that a container has printed since it was started or, if that is
    /// earlier, since the caller began to wait for it, `watched` ago. Returns none if the engine
    /// could not start the container: its whole log then belongs to an earlier start.
    pub fn log_tail(&self, container: &str, watched: Duration) -> Vec<String> {
        // Computed before the engine is asked: how long that takes is not part of `watched`.
        let begun = host::now().saturating_sub(watched).unwrap_or_default();
        let Some(started) = self.started_at(container) else { return Vec::new() };
        // The container may have printed something before the engine notes its start.
        let noted = started.saturating_sub(NOTING).unwrap_or(started);
        let since = if started >= begun { begun } else { noted }.to_string();
        let arguments = ["logs", "--since", &since, "--tail", "15", "--", container];
        match command::run(self.program, &arguments, ASK_LIMIT, self.stop) {
            Ok(output) if output.status.success() => {
                let both = [output.stdout, output.stderr.into_bytes()].concat();
                logs::last_lines(&both)
            }
            // The failure that these lines would explain is reported without them. A missing log
            // (none is kept, or the container is gone) is no part of that failure.
            _ => Vec::new(),
        }
    }

    /// Returns when a container was started, as the engine reports it. Returns `None` if it was
    /// never started, if its last start failed, or if the engine does not answer.
    fn started_at(&self, container: &str) -> Option<jiff::Timestamp> {
        // As JSON, since podman otherwise prints a time in Go's own format.
        let form = "[{{json .State.StartedAt}}, {{json .State.Error}}]";
        let asked = self.ask(&["container", "inspect", "--format", form, "--", container]).ok()?;
        let output = asked.finish(self.stop).ok().filter(|output| output.status.success())?;
        let (since, error): (jiff::Timestamp, String) =
            serde_json::from_slice(&output.stdout).ok()?;
        (error.is_empty() && since.as_second() > 0).then_some(since)
    }

    /// Returns the program that shows the logs of existing containers. If there are several, each
    /// line begins with its container's name. Standard output and standard error are shown as one
    /// log, since most servers print to the latter.
    pub fn log_viewer(&self, containers: &[Container], part: LogPart) -> LogViewer {
        let follow = if part.follow { "--follow" } else { "--follow=false" };
        let lines = part.lines.to_string();
        let names: Vec<&str> = containers.iter().map(|one| one.name.as_str()).collect();
        let script = match (names.as_slice(), part.follow) {
            ([_], _) => r#"exec "$0" logs --tail "$1" "$2" -- "$3" 2>&1"#,
            (_, true) => {
                r#"n=$1 f=$2; shift 2; for c; do "$0" logs --tail "$n" "$f" -- "$c" 2>&1 | sed -u "s/^/$c | /" & done; wait"#
            }
            (_, false) => {
                r#"n=$1 f=$2; shift 2; for c; do "$0" logs --tail "$n" "$f" -- "$c" 2>&1 | sed "s/^/$c | /"; done"#
            }
        };
        LogViewer::new(
            "sh",
            &[&["-c", script, self.program, &lines, follow], names.as_slice()].concat(),
        )
    }

    /// Reports whether the engine knows of no start of these containers within the time `past`,
    /// because the engine was itself started after them. Returns `false` if the engine cannot say,
    /// because it does not answer or may have dropped older events.
    pub fn has_forgotten_start(&self, containers: &[&str], past: Duration) -> bool {
        let now = host::now();
        let since = now.saturating_sub(past).unwrap_or_default().as_second().to_string();
        let until = now.to_string();
        let words = ["events", "--since", &since, "--until", &until, "--format", "{{json .}}"];
        let Ok(Output { status, stdout, .. }) = self.run(&words, None) else { return false };
        let told = String::from_utf8_lossy(&stdout);
        let is_start = |line: &str| {
            line.contains(r#""start""#) && containers.iter().any(|one| line.contains(one))
        };
        status.success() && told.lines().count() < REMEMBERED && !told.lines().any(is_start)
    }

    /// Begins to listen for events of containers: changes of health, ends, kills for want of
    /// memory, and removals. Events of the time `past` are reported too.
    pub fn news(&self, containers: &[&str], past: Duration) -> Result<Events> {
        let since = host::now().saturating_sub(past).unwrap_or_default().as_second().to_string();
        let filters: Vec<String> =
            containers.iter().map(|one| format!("container={one}")).collect();
        let mut arguments = vec!["events", "--since", &since, "--format", "{{json .}}"];
        for kind in ["event=health_status", "event=die", "event=oom", "event=destroy"] {
            arguments.extend(["--filter", kind]);
        }
        filters.iter().for_each(|filter| arguments.extend(["--filter", filter.as_str()]));
        Ok(Events { begun: Some(self.ask(&arguments)?) })
    }
}

/// Events of containers, as the engine reports them.
pub struct Events {
    /// The client that prints the events; `None` only while this is being dropped.
    begun: Option<Begun>,
}

impl Events {
    /// Returns descriptors, one of which becomes readable when there is an event or when no more
    /// will come.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.begun.iter().flat_map(Begun::fds).collect()
    }

    /// Returns the events since the last call, as the engine printed them.
    pub fn read(&mut self) -> String {
        let begun = self.begun.as_mut();
        begun.map(|begun| String::from_utf8_lossy(&begun.read()).into_owned()).unwrap_or_default()
    }

    /// Reports whether no more events will come, because the engine went away or has no such call.
    pub fn are_over(&self) -> bool {
        self.begun.as_ref().is_none_or(Begun::has_ended)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.end();
        }
    }
}
