//! A rig with production, a model server called `vllm`, and a canary that may be tried in its place now: what the ledger
//! says of it, who has been left behind, and a prober that sees from outside for how long production was away.

use crate::gpuctl::{Invocation, Running};
use crate::rig::Rig;
use crate::services::{Draft, Service};
use crate::wait::until;
use crate::{Signal, processes, programs};
use jiff::{Timestamp, ToSpan};
use rustix::process::{Pid, kill_process_group};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Production and the canary do not fit on the card together.
pub const PRODUCTION_MB: u32 = 15000;
const CANARY_MB: u32 = 12000;

const PROBES: Duration = Duration::from_millis(50);

pub struct Trial {
    pub rig: Rig,
    pub vllm: Service,
    port: u16,
}

impl Trial {
    /// Production, as `draft` makes it of the rig, is up; the canary is well, and permitted now.
    #[track_caller]
    pub fn new(rig: Rig, draft: impl FnOnce(&Rig) -> Draft<'_>) -> Trial {
        let vllm = draft(&rig).vram(PRODUCTION_MB).add();
        let hour = |hours: i64| (Timestamp::now() + hours.hours()).strftime("%H:%M").to_string();
        rig.set("canary.service", "vllm");
        rig.set("canary.mode", "canary");
        // Of root's trials elsewhere the machine's own folder tells.
        rig.set("canary.state_dir", rig.state_dir().to_str().unwrap());
        rig.set("canary.model", "/models/candidate");
        rig.set("canary.window", format!("{}-{} UTC", hour(-2), hour(2)));
        rig.set("canary.cooldown", "0s");
        rig.set("canary.max_runs_per_day", 1000);
        rig.set("canary.max_downtime", "1h");
        rig.set("canary.timeout", "20s");
        rig.set("canary.restore_sla", "10s");
        rig.set("canary.max_latency", "10s");
        let port = rig.port();
        rig.set("canary.port", i64::from(port));
        let trial = Trial { rig, vllm, port };
        trial.canary("");
        trial.rig.gpuctl("start vllm --quiet").run().succeeds();
        trial
    }

    pub fn native() -> Trial {
        Trial::in_rig(Rig::new())
    }

    pub fn in_rig(rig: Rig) -> Trial {
        Trial::new(rig, |rig| rig.native("vllm").server("--warmup 400ms"))
    }

    /// Proves the same with the lock in a file and in a Redis.
    #[track_caller]
    pub fn on_both(prove: impl Fn(&Trial)) {
        prove(&Trial::native());
        let rig = Rig::new();
        if let Some(_redis) = rig.lock_in_redis() {
            prove(&Trial::in_rig(rig));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The canary is a `simserver` with these flags.
    pub fn canary(&self, flags: &str) {
        self.rig.set("canary.start", format!("exec {}", self.canary_command(flags)));
    }

    pub fn canary_command(&self, flags: &str) -> String {
        let vram =
            if flags.contains("--vram") { String::new() } else { format!("--vram {CANARY_MB}") };
        let (server, name) = (programs::simserver(), self.canary_mark());
        format!("{} --name {name} --port {{port}} {vram} {flags}", server.display())
    }

    fn canary_mark(&self) -> String {
        self.rig.mark("candidate")
    }

    pub fn run(&self) -> Invocation {
        self.rig.gpuctl("canary run --set vllm_memory_util=0.75")
    }

    /// To all of the group that a run leads.
    pub fn kill_group(run: &Running) {
        kill_process_group(Pid::from_raw(run.pid()).unwrap(), Signal::KILL).ok();
    }

    pub fn canary_processes(&self) -> Vec<i32> {
        processes::mentioning(&self.canary_mark())
    }

    pub fn guardians(&self) -> Vec<i32> {
        let config = self.rig.path("gpuctl.toml");
        let is_guardian = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with(b"gpuctl\0guardian\0")
        };
        processes::mentioning(config.to_str().unwrap()).into_iter().filter(is_guardian).collect()
    }

    /// SIGKILL to what this rig has started, and that it is gone.
    #[track_caller]
    pub fn kill_all(&self, pids: &[i32]) {
        pids.iter().for_each(|pid| processes::signal(*pid, Signal::KILL));
        until("they are gone", || pids.iter().all(|pid| processes::state(*pid).is_none()));
    }

    pub fn journal_file(&self) -> PathBuf {
        self.rig.state_dir().join("gpu_canary_journal.json")
    }

    pub fn journal(&self) -> Option<Value> {
        let text = fs::read_to_string(self.journal_file()).ok()?;
        Some(serde_json::from_str(&text).expect("a whole journal"))
    }

    pub fn write_journal(&self, journal: &Value) {
        fs::write(self.journal_file(), journal.to_string()).unwrap();
    }

    /// "ready", "away" or "restoring" of a journal that is there.
    pub fn stage(&self) -> Option<String> {
        Some(self.journal()?["progress"].as_str()?.to_owned())
    }

    fn files(&self, begin: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.rig.state_dir()).unwrap().flatten();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        // Those that are being written have another name.
        let is_day = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_meant = |path: &PathBuf| {
            let name = name(path);
            let rest = name.strip_prefix(begin).and_then(|rest| rest.split_once('.'));
            rest.is_some_and(|(day, _)| is_day(day))
        };
        entries.map(|entry| entry.path()).filter(is_meant).collect()
    }

    /// The lines of the audit; each has to be whole.
    #[track_caller]
    pub fn audit(&self) -> Vec<Value> {
        let texts =
            self.files("gpu_canary_").into_iter().map(|path| fs::read_to_string(path).unwrap());
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        texts
            .flat_map(lines)
            .map(|line| serde_json::from_str(&line).expect("a whole line"))
            .collect()
    }

    /// The names of the events so far.
    #[track_caller]
    pub fn events(&self) -> Vec<String> {
        // One that is just being written ends with no newline.
        let texts =
            self.files("gpu_canary_").into_iter().map(|path| fs::read_to_string(path).unwrap());
        let event = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(line["event"].as_str().unwrap().to_owned())
        };
        texts.flat_map(|text| text.lines().filter_map(event).collect::<Vec<_>>()).collect()
    }

    pub fn has_told(&self, event: &str) -> bool {
        self.events().iter().any(|told| told == event)
    }

    pub fn has_booked(&self) -> bool {
        !self.files("gpu_budget_").is_empty()
    }

    /// What the night's budget says was used, and each run's part of it.
    #[track_caller]
    pub fn booked(&self) -> (f64, Vec<f64>) {
        let files = self.files("gpu_budget_");
        let [file] = files.as_slice() else { panic!("one night's budget: {files:?}") };
        let budget: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let runs = budget["runs"].as_object().into_iter().flat_map(|runs| runs.values());
        (budget["seconds_used"].as_f64().unwrap(), runs.map(|run| run.as_f64().unwrap()).collect())
    }

    pub fn promotions(&self) -> usize {
        fs::read_dir(self.rig.state_dir().join("promotions")).into_iter().flatten().count()
    }

    /// Production is as it was, and nothing but files is left of the trial.
    #[track_caller]
    pub fn assert_all_is_well(&self, when: &str) {
        assert!(self.vllm.is_healthy(), "{when}: production is not healthy");
        assert_eq!(self.canary_processes(), [0; 0], "{when}: left of the canary");
        assert_eq!(self.guardians(), [0; 0], "{when}: a guardian is left");
        assert_eq!(self.rig.card.used_mb(), u64::from(PRODUCTION_MB), "{when}");
        assert_eq!(self.journal(), None, "{when}");
        self.rig.assert_no_out_of_memory();
    }

    pub fn probe(&self) -> Prober {
        self.vllm.probe()
    }
}

impl Service {
    /// Watches from outside for how long it is away.
    pub fn probe(&self) -> Prober {
        let over = Arc::new(AtomicBool::new(false));
        let (url, is_over) = (self.url("/health"), over.clone());
        Prober { over, thread: Some(thread::spawn(move || probe(&url, &is_over))) }
    }
}

/// Asks a service's health every 50 ms.
pub struct Prober {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

impl Prober {
    /// For how long the service was certainly away, each time, however slow the machine: from the first answer that it was
    /// not there to the last question that got such an answer. It has to be back.
    #[track_caller]
    pub fn absences(mut self) -> Vec<Duration> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn probe(url: &str, is_over: &AtomicBool) -> Vec<Duration> {
    // Only a server that is there and hangs is waited for.
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30)));
    let agent = ureq::Agent::from(config.max_idle_connections(0).build());
    let (mut absences, mut away_since) = (Vec::new(), None);
    loop {
        // What is asked after the end sees it back.
        let is_last = is_over.load(Ordering::SeqCst);
        let asked = Instant::now();
        match (agent.get(url).call().is_ok(), away_since) {
            (false, None) => {
                away_since = Some(Instant::now());
                absences.push(Duration::ZERO);
            }
            (false, Some(since)) => {
                *absences.last_mut().unwrap() = asked.saturating_duration_since(since);
            }
            (true, _) => away_since = None,
        }
        if is_last {
            return absences;
        }
        thread::sleep(PROBES);
    }
}
