//! The canary itself: a second server that is started with the candidate's configuration, asked for
//! its health and for one completion, and ended again.

use super::candidate::Candidate;
use super::ledger::Journal;
use crate::config::{Canary, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Headers, Health, Healthy, Manager, Pid, Service, variable};
use crate::screen::text::span;
use crate::world::command::{Detached, describe};
use crate::world::ending::{FirstMove, end};
use crate::world::wait::{Aside, Handle, Stop, Woken, wait};
use crate::world::{group, health, http, logs, process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// How long the canary has to end before it is killed; it has nothing to save.
pub const GRACE: Duration = Duration::from_secs(1);

/// Pause before the server is looked at again.
const POLL: Duration = Duration::from_millis(100);

const LOG: &str = "canary";

/// Name of the canary in the progress and in the event log.
pub const NAME: &str = "the canary";

/// A canary that has been started.
pub struct Server {
    child: Child,
    group: Option<process::Id>,
    token: String,
    log: PathBuf,
    log_from: u64,
}

/// What came of testing the canary.
#[derive(Clone, Debug, Default)]
pub struct Tested {
    /// Why the candidate is rejected, or `None` if it has passed.
    pub rejection: Option<String>,
    pub latency: Option<Duration>,
    pub oom_events: usize,
}

/// Starts the canary on the card with the index `device`, or else in production's place. If
/// production is native, the canary runs in its folder and with its variables, which may name its
/// card. Its processes bear `token`, by which they are known and not taken for production's,
/// whatever pattern production has.
pub fn start(
    canary: &Canary,
    production: &Service,
    candidate: &Candidate,
    device: Option<u32>,
    token: &str,
    state_dir: &Path,
) -> Result<Server> {
    let text = candidate
        .command(&canary.start, canary.port, &canary.model)
        .map_err(|problem| Failure::new(Code::Config, problem))?;
    let (file, log_from) = logs::open(state_dir, LOG)?;
    let (mut env, cwd) = match &production.manager {
        Manager::Native(native) => (native.env.clone(), native.cwd.as_deref()),
        Manager::Containers(_) | Manager::Systemd { .. } => (BTreeMap::new(), None),
    };
    env.insert(variable::LOCK_TOKEN.to_owned(), token.to_owned());
    if let Some(device) = device {
        env.insert("CUDA_VISIBLE_DEVICES".to_owned(), device.to_string());
        // Without this, CUDA counts the cards by their speed; NVML counts them by their slot.
        env.insert("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned());
    }
    let without = &[variable::SERVICE, variable::FENCE];
    let child = Detached { text: &text, env: &env, without, cwd, log: &file }.start()?;
    let group = process::Id::of(child.id() as Pid);
    let log = logs::path_of(state_dir, LOG);
    Ok(Server { child, group, token: token.to_owned(), log, log_from })
}

impl Server {
    /// Returns the process that leads the canary's group, or `None` if it ended before it was seen.
    pub fn group(&self) -> Option<process::Id> {
        self.group
    }

    /// Waits until the canary is healthy, and returns `None` then. If the canary ends or runs out
    /// of memory before, returns a sentence that says so.
    pub fn until_healthy(&mut self, canary: &Canary, stop: &Stop) -> Result<Option<String>> {
        let check = Health::Http(self.url(canary, "/health"));
        loop {
            let attempt = health::begin(&check, &Headers::default(), canary.timeout)?;
            let ended = Handle::open(self.child.id() as Pid);
            let mut watched = vec![attempt.ended().fd()];
            watched.extend(ended.iter().map(Handle::fd));
            if wait(&watched, stop, Instant::now() + canary.timeout) == Woken::Stopped {
                stop.check()?;
            }
            if let Some(death) = self.death() {
                return Ok(Some(death));
            }
            // A server without memory may hang, and production is not to be kept away for nothing.
            if self.oom_events(canary) > 0 {
                return Ok(Some("it ran out of memory before it was healthy".to_owned()));
            }
            if attempt.take() == Some(Healthy::Yes) {
                return Ok(None);
            }
            if wait(&watched[1..], stop, Instant::now() + POLL) == Woken::Stopped {
                stop.check()?;
            }
        }
    }

    /// Asks the canary for one completion and judges the answer and its latency.
    pub fn complete(&mut self, canary: &Canary, stop: &Stop) -> Result<Tested> {
        let url = self.url(canary, "/v1/completions");
        let request = json!({
            "model": canary.model, "prompt": "Hello", "max_tokens": 16, "temperature": 0,
        });
        let begun = Instant::now();
        let limit = canary.timeout;
        let asking = Aside::begin(move || ask(&url, &request, limit))?;
        if wait(&[asking.ended().fd()], stop, begun + limit) == Woken::Stopped {
            stop.check()?;
        }
        let latency = begun.elapsed();
        let rejection = match asking.take() {
            Some(Ok(())) if latency > canary.max_latency => Some(format!(
                "the completion took {}, but may take at most {}",
                span(latency),
                Span(canary.max_latency)
            )),
            Some(Ok(())) => None,
            Some(Err(why)) => {
                // A process that ends loses its connections before it is seen to have ended.
                let ended = Handle::open(self.child.id() as Pid);
                let ended: Vec<_> = ended.iter().map(Handle::fd).collect();
                wait(&ended, stop, Instant::now() + POLL);
                Some(self.death().unwrap_or(why))
            }
            None => Some(format!("no completion within {}", Span(limit))),
        };
        Ok(Tested { rejection, latency: Some(latency), oom_events: 0 })
    }

    /// Returns how many lines of the canary's log report a lack of memory.
    pub fn oom_events(&self, canary: &Canary) -> usize {
        logs::lines_from(&self.log, self.log_from)
            .iter()
            .filter(|line| canary.oom.matches_text(line))
            .count()
    }

    /// Describes how the canary ended, or returns `None` if it still runs.
    fn death(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let left =
            self.group.map_or_else(Vec::new, |leader| group::members(Some(leader), &self.token));
        if status.success() && !left.is_empty() {
            // The start command was a script that has put the server into the background.
            return None;
        }
        let last = logs::lines_from(&self.log, self.log_from).pop();
        let last = last.map(|line| format!("; its last output was: {line}")).unwrap_or_default();
        Some(format!("the canary {}{last}", describe(status)))
    }

    fn url(&self, canary: &Canary, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", canary.port)
    }
}

/// Ends the canary and all that it has started, and reports whether SIGKILL was needed.
pub fn stop(journal: &Journal) -> Result<bool> {
    end("the canary", || journal.canary_processes(), FirstMove::Term, GRACE, &Stop::never())
}

/// Asks for a completion. The error is a sentence that says what is wrong with the answer.
fn ask(url: &str, request: &Value, limit: Duration) -> std::result::Result<(), String> {
    let answer = http::client(limit).post(url).send_json(request).map_err(|e| e.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("the completion was answered with {}", answer.status()));
    }
    let document: Value = answer
        .into_body()
        .read_json()
        .map_err(|e| format!("the answer to the completion is not JSON: {e}"))?;
    let text = document.pointer("/choices/0/text").and_then(Value::as_str);
    match text {
        Some(text) if !text.is_empty() => Ok(()),
        _ => Err("the answer to the completion contains no text".to_owned()),
    }
}
