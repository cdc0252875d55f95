//! A rig with production, a model server called `vllm`, and a canary that may be tried in its place
//! now: what the ledger says about the trial, and which processes have been left behind.

use crate::books::Books;
use crate::gpuctl::{Invocation, Running};
use crate::prober::Prober;
use crate::rig::Rig;
use crate::services::{Draft, Service};
use crate::wait::until;
use crate::{Signal, processes, programs};
use jiff::{Timestamp, ToSpan};
use rustix::process::{Pid, kill_process_group};
use std::fs;
use std::ops::Deref;

/// Memory that production takes, in MB; the canary does not fit on the card beside it.
pub const PRODUCTION_MB: u32 = 15000;
const CANARY_MB: u32 = 12000;

/// A rig with production, and a canary that may be tried in its place.
pub struct Trial {
    pub rig: Rig,
    pub vllm: Service,
    port: u16,
    books: Books,
}

/// Gives access to what the canary's ledger says.
impl Deref for Trial {
    type Target = Books;

    fn deref(&self) -> &Books {
        &self.books
    }
}

impl Trial {
    /// Starts production as `draft` describes it, and configures a healthy canary that may run now.
    #[track_caller]
    pub fn new(rig: Rig, draft: impl FnOnce(&Rig) -> Draft<'_>) -> Trial {
        let vllm = draft(&rig).vram(PRODUCTION_MB).add();
        let hour = |hours: i64| (Timestamp::now() + hours.hours()).strftime("%H:%M").to_string();
        rig.set("canary.service", "vllm");
        rig.set("canary.mode", "canary");
        // Otherwise a gpuctl of root's would note the trial in the machine's own /var/lib/gpuctl.
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
        let books = Books::new(rig.state_dir());
        let trial = Trial { rig, vllm, port, books };
        trial.canary("");
        trial.rig.gpuctl("start vllm --quiet").run().succeeds();
        trial
    }

    /// Makes a trial on a new rig, with production as a native service.
    pub fn native() -> Trial {
        Trial::in_rig(Rig::new())
    }

    /// Makes a trial on this rig, with production as a native service.
    pub fn in_rig(rig: Rig) -> Trial {
        Trial::new(rig, |rig| rig.native("vllm").server("--warmup 400ms"))
    }

    /// Runs `prove` with the lock in a file and, if a Redis is available, again with the lock in
    /// Redis.
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

    /// Makes the canary a `simserver` with these flags.
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

    /// Prepares a call of `gpuctl canary run` with one parameter set.
    pub fn run(&self) -> Invocation {
        self.rig.gpuctl("canary run --set vllm_memory_util=0.75")
    }

    /// Sends SIGKILL to the whole process group that a run leads.
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

    /// Sends SIGKILL to processes that this rig has started, and waits until they are gone.
    #[track_caller]
    pub fn kill_all(&self, pids: &[i32]) {
        pids.iter().for_each(|pid| processes::signal(*pid, Signal::KILL));
        until("they are gone", || pids.iter().all(|pid| processes::state(*pid).is_none()));
    }

    /// Asserts that production is as it was, and that nothing but files is left of the trial.
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
