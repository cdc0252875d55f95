//! The bench of a test: a simulated card of its own, and the servers on it, which end with the
//! test.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use simgpu::{Card, Holder};
use tempfile::TempDir;

/// A simulated card in a temporary folder.
pub struct Bench {
    pub dir: TempDir,
}

/// A `simserver` that is killed when this is dropped.
pub struct Server {
    process: Child,
    pub port: u16,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Makes a bench whose card has `mb` MB.
    pub fn with_total(mb: u64) -> Self {
        let bench = Self::new();
        bench.describe(json!({"devices": [{"total_mb": mb}]}));
        bench
    }

    pub fn describe(&self, card: Value) {
        self.card().describe(&card).unwrap();
    }

    pub fn card(&self) -> Card {
        Card::open(self.dir.path()).unwrap()
    }

    pub fn claimed(&self) -> u64 {
        self.card().memory(0).unwrap().claimed
    }

    pub fn holders(&self) -> Vec<Holder> {
        self.card().holders().unwrap()
    }

    pub fn out_of_memory_events(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("oom.jsonl"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    /// Starts a server, which need not be warm yet. `flags` are separated by spaces.
    pub fn start(&self, flags: &str) -> Server {
        let port = free_port();
        let process = Command::new(env!("CARGO_BIN_EXE_simserver"))
            .args(["--port", &port.to_string()])
            .args(flags.split_whitespace())
            .env("SIMGPU_DIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Server { process, port }
    }

    pub fn start_warm(&self, flags: &str) -> Server {
        let mut server = self.start(flags);
        server.await_ready();
        server
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Waits until the server says that it is ready, and panics if it ends instead.
    pub fn await_ready(&mut self) {
        let mut line = String::new();
        BufReader::new(self.process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.ends_with("ready\n"), "it said {line:?}");
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        answer(agent().get(self.url(path)).call())
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(agent().post(self.url(path)).send_json(body))
    }

    pub fn signal(&self, signal: i32) {
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits until the server has ended.
    pub fn end(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// Returns what the server wrote to standard error, once it has ended.
    pub fn complaint(&mut self) -> String {
        let mut text = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Waits until something that comes by itself is done. The limit of 30 seconds only keeps a broken
/// build from waiting for ever.
pub fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(3);
    config.timeout_global(Some(Duration::from_secs(30))).build().into()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut response = response.unwrap();
    let body = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&body).unwrap_or_default())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
