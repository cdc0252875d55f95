//! What the canary's tests share: a bench on which production runs, the configuration of a canary
//! that would pass, and access to the ledger's files. `Calendar` makes the calendar stand still for
//! behaviour that depends on the hour.

use rig::{Bystander, Invocation, Outcome, Rig, Service, until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Arguments with a valid candidate, for tests in which its values do not matter.
pub const CANDIDATE: &str = "--set vllm_memory_util=0.75";

/// First 16 hexadecimal digits of the SHA-256 of `{"vllm_memory_util":0.75}`: the ID of
/// `CANDIDATE`.
pub const CANDIDATE_ID: &str = "7bbe27fa93f054f3";

/// A rig with production and the configuration of a canary.
pub struct Bench {
    pub rig: Rig,
    /// Production, which holds 18000 MB of the card.
    pub vllm: Service,
    /// Port of the canary.
    pub port: u16,
}

impl Bench {
    /// Creates a bench on which native production runs. The window is open, and `canary run`
    /// performs a real trial.
    pub fn new() -> Bench {
        let rig = Rig::new();
        let vllm = rig.native("vllm").vram(18000).add();
        Bench::of(rig, vllm)
    }

    /// Creates a bench like `new`, with this service as production.
    pub fn of(rig: Rig, vllm: Service) -> Bench {
        let port = rig.port();
        let bench = Bench { rig, vllm, port };
        bench.rig.set("canary.service", "vllm");
        bench.rig.set("canary.mode", "canary");
        bench.rig.set("canary.state_dir", bench.rig.state_dir().to_str().unwrap());
        bench.rig.set("canary.model", "/models/m");
        bench.rig.set("canary.port", i64::from(port));
        bench.rig.set("canary.window", open_window());
        bench.canary("--vram 14000");
        bench.rig.gpuctl("start vllm").run().succeeds().stdout_has("started vllm").progress();
        bench
    }

    /// Makes the canary a `simserver` with these flags.
    pub fn canary(&self, flags: &str) {
        let server = self.vllm.command().split(' ').next().unwrap();
        let name = self.rig.mark("canary");
        let start = format!("exec {server} --name {name} --port {{port}} {flags}");
        self.rig.set("canary.start", start);
    }

    /// Runs `canary run` with `CANDIDATE` and these further arguments, and returns how it ended.
    pub fn try_it(&self, words: &str) -> Outcome {
        self.rig.gpuctl(&format!("canary run {CANDIDATE} {words}")).run()
    }

    /// Asserts that a trial in production's place passes and restores production; returns its
    /// report.
    #[track_caller]
    pub fn passes(&self, words: &str) -> Value {
        let report = self.try_it(&format!("{words} --json --quiet")).succeeds().json();
        assert_eq!((&report["path"], &report["restored"]), (&"quiesced".into(), &true.into()));
        report
    }

    /// Asserts that a run is refused by this limit and leaves production untouched; returns the
    /// error.
    #[track_caller]
    pub fn refuses(&self, words: &str, limit: &str) -> Value {
        let before = self.production();
        let document = self.try_it(&format!("{words} --json")).exits(75).json();
        let error = document["error"].clone();
        assert_eq!((&error["code"], &error["exit_code"]), (&limit.into(), &75.into()), "{error}");
        assert_eq!(self.production(), before, "production was touched");
        error
    }

    /// Returns the PIDs of production's servers, which change when production is restarted; fails
    /// the test if production is not healthy.
    #[track_caller]
    pub fn production(&self) -> Vec<i32> {
        assert!(self.vllm.is_healthy(), "production is not well");
        let mut servers = self.rig.processes_of(&self.vllm);
        // Processes that search for production have its name in their command lines, too.
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        servers.retain(|pid| name(pid) == "simserver\n");
        assert!(!servers.is_empty(), "production is another's");
        servers
    }

    #[track_caller]
    pub fn assert_no_canary(&self) {
        let claims = self.rig.card.claims();
        assert!(claims.iter().all(|claim| claim.name != self.rig.mark("canary")), "{claims:?}");
    }

    pub fn status(&self) -> Value {
        self.rig.gpuctl("canary status --json").run().succeeds().json()
    }

    /// Returns the ledger's files whose names begin with `prefix`, sorted by name.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.rig.state_dir()).unwrap().map(|entry| entry.unwrap());
        let is_meant =
            |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
        let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(is_meant).collect();
        files.sort();
        files
    }

    /// Returns the path of this night's budget file, which may not exist yet.
    pub fn budget_file(&self) -> PathBuf {
        let night = self.status()["night"].as_str().unwrap().to_owned();
        self.rig.state_dir().join(format!("gpu_budget_{night}.json"))
    }

    #[track_caller]
    pub fn budget(&self) -> Value {
        let text = fs::read_to_string(self.budget_file()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the events in the audits of all nights.
    #[track_caller]
    pub fn audit(&self) -> Vec<Value> {
        let nights = self.files("gpu_canary_2");
        let text: String = nights.iter().map(|night| fs::read_to_string(night).unwrap()).collect();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    pub fn events(&self) -> Vec<String> {
        self.audit().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// Starts another process on the card, and returns when it holds `mb` megabytes.
    pub fn neighbour(&self, name: &str, mb: u64) -> Bystander {
        let server = self.vllm.command().split(' ').next().unwrap();
        let before = self.rig.card.used_mb();
        let command = format!("{server} --name {} --vram {mb}", self.rig.mark(name));
        let neighbour = self.rig.by_hand(&command);
        until("it holds its memory", || self.rig.card.used_mb() == before + mb);
        neighbour
    }
}

/// Returns a window that reaches six hours into the past and the future, so that no test runs at
/// its edge.
fn open_window() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let hour = now / 3600 % 24;
    format!("{:02}:00-{:02}:00 UTC", (hour + 18) % 24, (hour + 6) % 24)
}

/// Returns a window of one hour that opens in about twelve hours.
pub fn closed_window() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let hour = now / 3600 % 24;
    format!("{:02}:00-{:02}:00 UTC", (hour + 12) % 24, (hour + 13) % 24)
}

/// A preloaded library that makes the calendar stand still at a given time, for programs that are
/// started with it; their other clocks go on.
pub struct Calendar {
    library: PathBuf,
}

impl Calendar {
    pub fn new(rig: &Rig) -> Calendar {
        let source = rig.file("calendar.c", include_str!("calendar.c"));
        let library = rig.path("calendar.so");
        let mut compiler = rig::command("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        assert!(compiler.status().unwrap().success(), "the calendar does not compile");
        Calendar { library }
    }

    /// Makes the calendar stand at `time`, such as "2026-01-10T08:00:00Z", for this call.
    #[track_caller]
    pub fn at(&self, invocation: Invocation, time: &str) -> Invocation {
        let date = rig::command("date").args(["-d", time, "+%s"]).output().unwrap();
        let seconds = String::from_utf8(date.stdout).unwrap();
        invocation.env("LD_PRELOAD", &self.library).env("CALENDAR", seconds.trim())
    }
}

/// Returns the seconds between two timestamps of the ledger.
#[track_caller]
pub fn seconds_between(rig: &Rig, from: &str, to: &str) -> i64 {
    let script = format!("echo $(( $(date -d {to} +%s) - $(date -d {from} +%s) ))");
    rig.shell(&script).run().succeeds().text().trim().parse().unwrap()
}
