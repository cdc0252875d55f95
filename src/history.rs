//! The event log: what gpuctl did, when, and how it ended. Every call appends its events, one line
//! of JSON each, to a file in the state folder as they happen, so that a call that was killed has
//! left its steps too.

use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::step::Step;
use crate::world::wait::Stop;
use crate::world::{files, host, process};
use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Size in bytes at which the log's file is put aside and a new one begun. The file that was put
/// aside before is given up.
const FILE_LIMIT: u64 = 1024 * 1024;
/// How long to wait for another process that has locked the log; a line is written within a
/// millisecond.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct LogLine {
    time: Timestamp,
    /// ID of the call that the event belongs to.
    run: String,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum What {
    Begin {
        command: String,
        subject: String,
        /// Process of the call, by which it is known whether the call is still at work.
        by: Option<process::Id>,
        boot: String,
    },
    Step(Step),
    End {
        exit_code: u8,
        error: Option<String>,
        elapsed_ms: u64,
    },
}

/// One call of gpuctl, as the event log has it.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub run: String,
    pub command: String,
    pub subject: String,
    pub began: Timestamp,
    pub state: RunState,
    /// How long the call took, or `None` if it has not ended.
    pub elapsed_ms: Option<u64>,
    pub exit_code: Option<u8>,
    pub error: Option<String>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Ended,
    /// The call's end was never recorded: it was killed, or the machine went down.
    Lost,
}

/// The writer of one call's events.
pub struct Recorder {
    folder: PathBuf,
    run: String,
    begun: Instant,
}

impl Recorder {
    /// Writes that a command begins, and returns the recorder of its steps and its end.
    pub fn begin(config: &Config, command: &str, subject: &str) -> Result<Recorder> {
        let recorder = Recorder {
            folder: config.state_dir()?.to_owned(),
            run: host::random_hex::<6>()?,
            begun: Instant::now(),
        };
        files::private_dir(&recorder.folder).map_err(|e| recorder.unwritable(&e))?;
        recorder.write(What::Begin {
            command: command.to_owned(),
            subject: subject.to_owned(),
            by: process::Id::of(std::process::id() as i32),
            boot: host::boot_id(),
        })?;
        Ok(recorder)
    }

    pub fn step(&self, done: &Step) {
        self.write_if_possible(What::Step(done.clone()));
    }

    /// Writes how the command ended.
    pub fn end(&self, result: &Result<Answer>) {
        let (exit_code, error) = match result {
            Ok(answer) => (answer.status(), None),
            Err(failure) => (failure.code.status(), Some(failure.message.clone())),
        };
        let elapsed_ms = self.begun.elapsed().as_millis() as u64;
        self.write_if_possible(What::End { exit_code, error, elapsed_ms });
    }

    /// Writes an event. Since the call's beginning could be written, a failure is rare, and only
    /// logged, so as not to disturb the work.
    fn write_if_possible(&self, what: What) {
        if let Err(failure) = self.write(what) {
            log::warn!("{failure}");
        }
    }

    fn write(&self, what: What) -> Result<()> {
        let event = LogLine { time: host::now(), run: self.run.clone(), what };
        let line = serde_json::to_string(&event).expect("an event of plain fields");
        self.append(&line).map_err(|e| self.unwritable(&e))
    }

    fn append(&self, line: &str) -> std::io::Result<()> {
        let _locked = locked(&self.folder)?;
        let path = current(&self.folder);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= FILE_LIMIT) {
            std::fs::rename(&path, previous(&self.folder))?;
        }
        files::append_line(&path, line)
    }

    fn unwritable(&self, why: &dyn std::fmt::Display) -> Failure {
        let path = current(&self.folder);
        Failure::new(Code::Io, format!("cannot write the event log {}: {why}", path.display()))
            .hint("repair it, or choose another folder with GPUCTL_STATE_DIR")
    }
}

fn current(folder: &Path) -> PathBuf {
    folder.join("history.jsonl")
}

fn previous(folder: &Path) -> PathBuf {
    folder.join("history.1.jsonl")
}

/// Locks the event log for writing, or for reading without missing lines that are put aside
/// meanwhile. Fails if another process keeps it locked.
fn locked(folder: &Path) -> std::io::Result<files::Locked> {
    let path = folder.join("history.lock");
    files::lock(&path, LOCK_LIMIT, &Stop::never())?.ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::TimedOut, "another process keeps it locked")
    })
}

/// Returns the calls that the log holds, oldest first. Lines that were cut short are passed over.
pub fn read(folder: &Path) -> Result<Vec<Run>> {
    if !current(folder).exists() && !previous(folder).exists() {
        return Ok(Vec::new());
    }
    let failed = |e: std::io::Error| {
        let path = current(folder);
        Failure::new(Code::Io, format!("cannot read the event log {}: {e}", path.display()))
    };
    let locked = locked(folder).map_err(failed)?;
    let mut text = String::new();
    for path in [previous(folder), current(folder)] {
        match files::existing(&path) {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(failed)?;
                text.push_str(&String::from_utf8_lossy(&bytes));
                // The last line may have been cut short.
                text.push('\n');
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    drop(locked);
    Ok(runs(&text, |by, boot| boot == host::boot_id() && by.is_alive()))
}

/// Collects the calls from the log's lines. `works` reports whether the process that began a call,
/// in the boot with the given ID, is still at work.
pub fn runs(text: &str, works: impl Fn(process::Id, &str) -> bool) -> Vec<Run> {
    let events = text.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    let mut runs: IndexMap<String, Run> = IndexMap::new();
    for LogLine { time, run, what } in events {
        match what {
            What::Begin { command, subject, by, boot } => {
                let state = match by.is_some_and(|by| works(by, &boot)) {
                    true => RunState::Running,
                    false => RunState::Lost,
                };
                let begun = Run {
                    run: run.clone(),
                    command,
                    subject,
                    began: time,
                    state,
                    elapsed_ms: None,
                    exit_code: None,
                    error: None,
                    steps: Vec::new(),
                };
                runs.insert(run, begun);
            }
            What::Step(step) => {
                if let Some(known) = runs.get_mut(&run) {
                    known.steps.push(step);
                }
            }
            What::End { exit_code, error, elapsed_ms } => {
                if let Some(known) = runs.get_mut(&run) {
                    known.state = RunState::Ended;
                    (known.exit_code, known.error) = (Some(exit_code), error);
                    known.elapsed_ms = Some(elapsed_ms);
                }
            }
        }
    }
    runs.into_values().collect()
}
