//! Starts and stops containers, watches them, and shows what they have said.

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

/// How long the engine may take to note that a container has started, which may speak meanwhile.
const NOTING: Duration = Duration::from_millis(500);
/// Docker's engine remembers so many events of all containers and no more (`eventsLimit` in moby's daemon/events).
const REMEMBERED: usize = 256;
/// The engine may take this long beyond the time it was told, and for calls without one.
const ENGINE_LIMIT: Duration = Duration::from_secs(15);
/// An engine that is away, or has yet to end what it does to a container, is asked again after this time
/// at first, and then after longer ones.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is done to containers.
struct Deed<'a> {
    words: &'a [&'a str],
    /// All that it takes may take this long, an engine that is away for a while included.
    limit: Duration,
    /// What a container that refuses it is told with.
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
    /// Starts containers, in their order; one that is up already is no error. What comes of them has
    /// to be watched: the engine says yes to a container that exits at once.
    pub fn start(&self, containers: &[&str], limit: Duration) -> Vec<Result<()>> {
        let words = &["start"];
        self.act(containers, Deed { words, limit, code: Code::StartFailed, is_done: is_up })
    }

    pub fn unpause(&self, containers: &[&str]) -> Vec<Result<()>> {
        let (words, limit) = (&["unpause"], ENGINE_LIMIT);
        self.act(containers, Deed { words, limit, code: Code::StartFailed, is_done: is_up })
    }

    /// TERM, and KILL by the engine after `limit`. Tells of each whether it had to be killed.
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
        // The engine does not tell; those that ended in time were not.
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

    /// Does it to all in one call, and tells of each what came of it: by the engine's state, not its
    /// wording.
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
                // What is left of the time may be too short for an answer: that is no news.
                Err(failure) if failure.code == Code::Unavailable => {
                    return all(&unreached.unwrap_or(failure));
                }
                Err(failure) => return all(&failure),
            };
            let why = reason::reason(&output);
            let told = self.inspect(containers.to_vec(), &[])();
            let is_away = told.trouble.as_ref().is_some_and(|it| it.code == Code::Unavailable);
            // Of one that is being removed the engine says that it does not run, and not yet that it is gone.
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
                        // Of several containers the engine's words do not tell which they are about.
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

    /// The last lines of what a container has said since it was started; none where the engine could
    /// not start it, and all that there is belongs to an earlier start. `watched` is for how long it has
    /// been waited for.
    pub fn log_tail(&self, container: &str, watched: Duration) -> Vec<String> {
        // Taken before the engine is asked: how long that takes is not part of `watched`.
        let begun = host::now().saturating_sub(watched).unwrap_or_default();
        let Some(started) = self.started_at(container) else { return Vec::new() };
        // The engine notes a start when the container may have spoken already.
        let noted = started.saturating_sub(NOTING).unwrap_or(started);
        let since = if started >= begun { begun } else { noted }.to_string();
        let arguments = ["logs", "--since", &since, "--tail", "15", "--", container];
        match command::run(self.program, &arguments, ASK_LIMIT, self.stop) {
            Ok(output) if output.status.success() => {
                let both = [output.stdout, output.stderr.into_bytes()].concat();
                logs::last_lines(&both)
            }
            // The failure that these lines would explain is told without them; that there is no log
            // (none is kept, or the container is gone) is no part of it.
            _ => Vec::new(),
        }
    }

    /// Returns when a container was started, as the engine tells it; `None` where it was not, or not
    /// well.
    fn started_at(&self, container: &str) -> Option<jiff::Timestamp> {
        // As JSON: podman prints a time as Go does otherwise.
        let form = "[{{json .State.StartedAt}}, {{json .State.Error}}]";
        let asked = self.ask(&["container", "inspect", "--format", form, "--", container]).ok()?;
        let output = asked.finish(self.stop).ok().filter(|output| output.status.success())?;
        let (since, error): (jiff::Timestamp, String) =
            serde_json::from_slice(&output.stdout).ok()?;
        (error.is_empty() && since.as_second() > 0).then_some(since)
    }

    /// Returns what shows the log of containers that there are, each line with the name of its own where
    /// there are several. Most servers print to stderr, which is no error of ours: both are one log.
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

    /// Whether the engine does not know that any of these containers was started within the time past: it was itself
    /// started after them. One that cannot say has forgotten nothing.
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

    /// Begins to listen for what becomes of containers, also for what has become of them for so long.
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

/// What happens to containers, as the engine tells it.
pub struct Events {
    /// `None` once it is over.
    begun: Option<Begun>,
}

impl Events {
    /// Readable when something has happened.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.begun.iter().flat_map(Begun::fds).collect()
    }

    /// Returns what has happened since the last call, as the engine printed it.
    pub fn read(&mut self) -> String {
        let begun = self.begun.as_mut();
        begun.map(|begun| String::from_utf8_lossy(&begun.read()).into_owned()).unwrap_or_default()
    }

    /// Whether nothing more is to be heard: the engine went away, or has no such call.
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
