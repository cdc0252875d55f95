//! Jobs: a limited number run at a time, and the others wait in line. When each was taken and how
//! it ended is on record, so that a test can see whether one was cut off.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

/// The server's jobs, running and waiting.
pub struct Work {
    name: String,
    at_once: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: Vec<u64>,
    waiting: VecDeque<u64>,
    /// Number of jobs that were taken, which is also the number of the last one.
    taken: u64,
    /// Number of the last job that is aborted; all jobs before it are aborted too.
    aborted: u64,
}

/// A job that has been taken, and may have to wait for its turn.
pub struct Job(u64);

impl Work {
    pub fn new(name: &str, at_once: usize) -> Self {
        Self { name: name.to_owned(), at_once, state: Mutex::default(), changed: Condvar::new() }
    }

    pub fn running(&self) -> usize {
        self.state().running.len()
    }

    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Takes a job, which waits in line from then on.
    pub fn take(&self) -> Job {
        let mut state = self.state();
        state.taken += 1;
        let number = state.taken;
        state.waiting.push_back(number);
        self.record(number, "taken");
        Job(number)
    }

    /// Waits for the job's turn and then for `lasts`, calling `each` now and then. Returns false if
    /// the job was aborted, or if `before` failed. `before` and `after` run within the job's turn,
    /// before another job takes its place.
    pub fn run(
        &self,
        job: &Job,
        lasts: Duration,
        before: impl FnOnce() -> bool,
        mut each: impl FnMut(),
        after: impl FnOnce(),
    ) -> bool {
        let mut state = self.state();
        while state.running.len() >= self.at_once || state.waiting.front() != Some(&job.0) {
            state = self.wait(state, Duration::from_secs(3600));
        }
        state.waiting.pop_front();
        state.running.push(job.0);
        drop(state);
        self.changed.notify_all();
        let mut is_done = before();
        let end = Instant::now() + lasts;
        while is_done && Instant::now() < end {
            let state = self.state();
            let pause =
                end.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
            let state = self.wait(state, pause);
            is_done = state.aborted < job.0;
            drop(state);
            each();
        }
        self.record(job.0, if is_done { "done" } else { "failed" });
        after();
        self.state().running.retain(|number| *number != job.0);
        self.changed.notify_all();
        is_done
    }

    /// Aborts all jobs that were taken so far: those that run end in the middle.
    pub fn abort(&self) {
        let mut state = self.state();
        state.aborted = state.taken;
        self.changed.notify_all();
    }

    pub fn wait_until_idle(&self) {
        let mut state = self.state();
        while !state.running.is_empty() || !state.waiting.is_empty() {
            state = self.wait(state, Duration::from_secs(3600));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Writes an event of a job to `$SIMGPU_DIR/jobs.jsonl`, on a line of its own.
    fn record(&self, number: u64, event: &str) {
        let Some(dir) = std::env::var_os("SIMGPU_DIR") else { return };
        let path = std::path::Path::new(&dir).join("jobs.jsonl");
        let job = format!("{}-{}-{number}", self.name, std::process::id());
        let line = format!("{}\n", json!({"job": job, "event": event}));
        if let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path) {
            log.write_all(line.as_bytes()).ok();
        }
    }
}
