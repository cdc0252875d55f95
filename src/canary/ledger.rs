//! The canary's files, which outlive every trial: how long production was away each night, the
//! audit, the promotions, and the journal of a trial under way, from which an interrupted trial is
//! put right.

use super::candidate::{Candidate, short_digest};
use super::limits::{PastRuns, after};
use crate::config::{Canary, Config, MACHINES_FOLDER, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Mb;
use crate::world::clock::SinceBoot;
use crate::world::wait::Stop;
use crate::world::{files, group, host, process};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for another process that changes the ledger, which takes only a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Most seconds that can have been booked for a night or a run; a higher figure means a damaged
/// file.
const MOST: f64 = 1e9;

const LOCK: &str = "gpu_canary.lock";
const JOURNAL: &str = "gpu_canary_journal.json";

/// The canary's files for one service, in one folder.
pub struct Ledger {
    folder: PathBuf,
    service: String,
    /// File outside the folder that records, for the whole machine, that a trial's journal is in
    /// the folder; `None` if none is needed.
    signpost: Option<PathBuf>,
}

/// How long production was away in one night, bookings included.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    seconds_used: f64,
    /// Seconds that each run has cost or may cost, by its ID, so that a run is booked only once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    runs: BTreeMap<String, f64>,
}

impl Budget {
    /// Parses the text of a budget file. `None` if it is damaged, which includes figures that nobody
    /// can have booked.
    pub fn parse(text: &str) -> Option<Budget> {
        let budget: Budget = serde_json::from_str(text).ok()?;
        let is_possible = |seconds: &f64| (0.0..=MOST).contains(seconds);
        (is_possible(&budget.seconds_used) && budget.runs.values().all(is_possible))
            .then_some(budget)
    }

    /// Books what a run may cost, or replaces that by what the run has cost.
    pub fn book(&mut self, run_id: &str, seconds: f64) {
        // Nothing here is measured more precisely than to the millisecond.
        let rounded = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
        let seconds = rounded(seconds);
        let before = self.runs.insert(run_id.to_owned(), seconds).unwrap_or(0.0);
        self.seconds_used = rounded((self.seconds_used + seconds - before).max(0.0));
    }
}

/// The record of a trial under way, from which the trial is put right if it is interrupted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journal {
    pub run_id: String,
    pub service: String,
    pub candidate_id: String,
    pub night: Date,
    pub progress: Stage,
    /// Time at which production was taken away, or `None` if it was not touched.
    pub away: Option<Moment>,
    /// Token that the canary's processes bear in their environment.
    pub token: String,
    /// Process that leads the group of the canary's start command, once it has been started.
    #[serde(default)]
    pub canary: Option<process::Id>,
    /// Memory that all processes but production's held before production was touched.
    #[serde(default)]
    pub others: Option<Mb>,
    pub boot: String,
    /// Processes that see to the trial while they live: gpuctl and its guardian.
    pub keepers: Vec<process::Id>,
    /// Boot and process of the `canary recover` that puts the trial right once the keepers are
    /// gone.
    #[serde(default)]
    pub recovers: Option<(String, process::Id)>,
}

/// The stage that a trial has begun; all stages before it are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Production is untouched.
    Ready,
    /// Production is being stopped, or is away for the canary.
    Away,
    /// Production is being started.
    Restoring,
}

/// A moment by two clocks: the clock since boot counts within the same boot, the calendar in a
/// later one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Moment {
    pub at: Timestamp,
    pub since_boot: SinceBoot,
}

impl Moment {
    pub fn now() -> Moment {
        Moment { at: host::now(), since_boot: SinceBoot::now() }
    }

    /// Returns how long ago this moment was; `boot` is the ID of the boot in which it was taken.
    pub fn elapsed(&self, boot: &str) -> Duration {
        match boot == host::boot_id() {
            true => self.since_boot.elapsed(),
            false => Duration::try_from(host::now().duration_since(self.at)).unwrap_or_default(),
        }
    }
}

impl Journal {
    /// Returns the canary's living processes: those that bear its token, and those in its group,
    /// which may have been given another environment.
    pub fn canary_processes(&self) -> Vec<process::Id> {
        let canary = self.canary.filter(|_| self.boot == host::boot_id());
        group::members(canary, &self.token)
    }

    /// Reports whether the machine has not been rebooted since the trial began.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == host::boot_id()
    }

    /// Reports whether a living `canary recover` is putting the trial right.
    pub fn is_being_put_right(&self) -> bool {
        let is_at_it =
            |(boot, id): &(String, process::Id)| *boot == host::boot_id() && id.is_alive();
        self.recovers.as_ref().is_some_and(is_at_it)
    }

    /// Reports whether none of the trial's keepers is alive any more.
    pub fn is_orphaned(&self) -> bool {
        !self.is_of_this_boot() || !self.keepers.iter().any(|keeper| keeper.is_alive())
    }
}

/// Returns the file that names the folder of a trial by root, for calls with another environment.
/// `None` if the configuration itself names the folder, if no configuration was read from a file,
/// or if the caller is not root.
fn signpost(config: &Config, canary: &Canary) -> Option<PathBuf> {
    let path = config.path.as_deref().filter(|_| rustix::process::geteuid().is_root())?;
    if config.file.canary.as_ref()?.state_dir.is_some() {
        return None;
    }
    let whose = [path.as_os_str().as_bytes(), b"\0", canary.service.as_bytes()].concat();
    Some(Path::new(MACHINES_FOLDER).join("trials").join(short_digest(&whose)))
}

/// Returns the folder that a signpost names, or `None` if the signpost is missing or lies in a
/// folder that is not private.
fn follow(signpost: &Path) -> Option<PathBuf> {
    files::is_private(signpost.parent()?).ok()?;
    let mut bytes = Vec::new();
    files::existing(signpost).ok()?.read_to_end(&mut bytes).ok()?;
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

impl Ledger {
    /// Opens the canary's ledger in the configured folder or, if an unfinished trial by root was
    /// called with another GPUCTL_STATE_DIR, in the folder of that trial.
    pub fn open(config: &Config) -> Result<Ledger> {
        let canary = config.canary()?;
        let Some(folder) = canary.state_dir.clone() else {
            return Err(Failure::new(Code::Config, "no folder for the canary's budget and audit")
                .hint("set canary.state_dir or GPUCTL_STATE_DIR"));
        };
        let signpost = signpost(config, canary);
        let has_journal = |folder: &Path| folder.join(JOURNAL).exists();
        let elsewhere = signpost.as_deref().filter(|_| !has_journal(&folder)).and_then(follow);
        let folder = elsewhere.filter(|folder| has_journal(folder)).unwrap_or(folder);
        Ok(Ledger { folder, service: canary.service.clone(), signpost })
    }

    fn unusable(&self, path: &Path, error: &Error) -> Failure {
        Failure::new(Code::Io, format!("cannot use {}: {error}", path.display()))
            .hint("repair it, or choose another folder with canary.state_dir")
    }

    /// Locks the ledger for a change, until the result is dropped. Fails if another process keeps
    /// it locked for more than 5 seconds.
    pub fn lock(&self, stop: &Stop) -> Result<files::Locked> {
        files::private_dir(&self.folder).map_err(|e| self.unusable(&self.folder, &e))?;
        let path = self.folder.join(LOCK);
        let locked = files::lock(&path, LOCK_LIMIT, stop).map_err(|e| self.unusable(&path, &e))?;
        locked.ok_or_else(|| {
            Failure::new(
                Code::Unavailable,
                format!("{} has been locked for {}", path.display(), Span(LOCK_LIMIT)),
            )
            .hint("only a suspended gpuctl keeps it that long; `fuser -v` on that file shows which")
        })
    }

    fn budget_path(&self, night: Date) -> PathBuf {
        self.folder.join(format!("gpu_budget_{}.json", night.strftime("%Y%m%d")))
    }

    fn audit_path(&self, night: Date) -> PathBuf {
        self.folder.join(format!("gpu_canary_{}.jsonl", night.strftime("%Y%m%d")))
    }

    fn budget(&self, night: Date) -> Result<Budget> {
        let path = self.budget_path(night);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Budget::default()),
            Err(e) if e.kind() == ErrorKind::InvalidData => String::new(),
            Err(e) => return Err(self.unusable(&path, &e)),
        };
        Budget::parse(&text).ok_or_else(|| {
            Failure::new(Code::Config, format!("{} is damaged", path.display())).hint(
                "see the audit for what was used; `gpuctl canary reset-budget` resets the night's budget",
            )
        })
    }

    fn write_budget(&self, night: Date, budget: &Budget) -> Result<()> {
        let path = self.budget_path(night);
        let text = serde_json::to_string(budget).expect("plain figures");
        files::replace_durably(&path, text.as_bytes()).map_err(|e| self.unusable(&path, &e))
    }

    /// Returns for how many seconds production was away in a night, bookings included.
    pub fn used(&self, night: Date) -> Result<f64> {
        Ok(self.budget(night)?.seconds_used)
    }

    /// Books what a run may cost, or replaces that by what the run has cost. The caller has locked
    /// the ledger.
    pub fn book(&self, night: Date, run_id: &str, seconds: f64) -> Result<()> {
        let mut budget = self.budget(night)?;
        budget.book(run_id, seconds);
        self.write_budget(night, &budget)
    }

    /// Resets a night's budget, even if its file is damaged, and notes that in the audit.
    pub fn reset_budget(&self, night: Date, stop: &Stop) -> Result<()> {
        let _locked = self.lock(stop)?;
        let before = self.used(night).ok();
        self.write_budget(night, &Budget::default())?;
        let facts = json!({"run_id": null, "candidate_id": null, "budget_used": 0.0, "reason": null, "before": before});
        self.audit(night, "budget_reset", facts.as_object().cloned().unwrap_or_default())
    }

    /// Returns when those runs of the service began that may still count against the limit of a day
    /// or the cooldown, and how much of the night's budget is used.
    pub fn history(&self, night: Date, cooldown: Duration) -> Result<PastRuns> {
        let mut runs: Vec<Timestamp> = Vec::new();
        let days = cooldown.as_secs().div_ceil(24 * 3600).max(1) as i64;
        // A night bears the date on which it began, and the clock may have been set, so a day more
        // is read at both ends.
        for day in -(days + 1)..=1 {
            let Ok(night) = night.checked_add(day.days()) else { continue };
            let path = self.audit_path(night);
            let text = match fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(self.unusable(&path, &e)),
            };
            runs.extend(starts(&text, &self.service));
        }
        runs.sort();
        Ok(PastRuns { runs, used: Duration::from_secs_f64(self.used(night)?) })
    }

    /// Appends an event to a night's audit.
    pub fn audit(&self, night: Date, event: &str, details: Map<String, Value>) -> Result<()> {
        files::private_dir(&self.folder).map_err(|e| self.unusable(&self.folder, &e))?;
        let path = self.audit_path(night);
        let mut line =
            json!({"ts": host::now().to_string(), "event": event, "service": self.service});
        line.as_object_mut().expect("an object").extend(details);
        files::append_line_durably(&path, &line.to_string()).map_err(|e| self.unusable(&path, &e))
    }

    /// Returns the journal of the trial that is under way or was interrupted, or `None` if there is
    /// none.
    pub fn journal(&self) -> Result<Option<Journal>> {
        let path = self.folder.join(JOURNAL);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.unusable(&path, &e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Failure::new(Code::Config, format!("{} is damaged: {e}", path.display())).hint(
                "make sure that production is healthy (`gpuctl start`), then remove that file",
            )
        })
    }

    /// Writes the journal durably and, before the first time, the signpost to its folder.
    pub fn write_journal(&self, journal: &Journal) -> Result<()> {
        let path = self.folder.join(JOURNAL);
        if let Some(signpost) = self.signpost.as_deref().filter(|_| !path.exists()) {
            self.point_at_it(signpost);
        }
        let text = serde_json::to_string_pretty(journal).expect("a journal of plain fields");
        files::replace_durably(&path, text.as_bytes()).map_err(|e| self.unusable(&path, &e))
    }

    /// Removes the journal, and the signpost to its folder.
    pub fn remove_journal(&self) -> Result<()> {
        let path = self.folder.join(JOURNAL);
        files::remove_durably(&path).map_err(|e| self.unusable(&path, &e))?;
        if let Some(signpost) = self.signpost.as_deref().filter(|signpost| signpost.exists()) {
            // A signpost that stays behind misleads nobody: its folder has no journal.
            let _ = files::remove_durably(signpost);
        }
        Ok(())
    }

    /// Writes the signpost. A failure is only logged, so that it does not prevent the trial: the
    /// journal is still found by the configuration and the environment of this call.
    fn point_at_it(&self, signpost: &Path) {
        let made = signpost.parent().map_or(Ok(()), files::private_dir);
        let text = self.folder.as_os_str().as_bytes();
        if let Err(e) = made.and_then(|()| files::replace_durably(signpost, text)) {
            log::warn!("cannot write {}: {e}", signpost.display());
        }
    }

    /// Writes down that a candidate has passed, and returns the file.
    pub fn promote(&self, candidate: &Candidate, run_id: &str, metrics: &Value) -> Result<PathBuf> {
        let folder = self.folder.join("promotions");
        files::private_dir(&folder).map_err(|e| self.unusable(&folder, &e))?;
        let id = &run_id[..8.min(run_id.len())];
        let path = folder.join(format!("config_tuning_{}_{id}.json", self.service));
        let document = json!({
            "schema": "config_tuning.v1",
            "promotion_id": format!("config_tuning_{}_{id}", self.service),
            "subsystem": self.service,
            "candidate": candidate.document(),
            "metrics": metrics,
            "bounds_checked": true,
            "timestamp": host::now().to_string(),
        });
        let text = format!("{document:#}\n");
        files::replace_durably(&path, text.as_bytes()).map_err(|e| self.unusable(&path, &e))?;
        Ok(path)
    }
}

/// Returns when a service's runs began, from the lines of an audit. Lines that were cut short by a
/// power failure are passed over.
pub fn starts(audit: &str, service: &str) -> impl Iterator<Item = Timestamp> {
    let events = audit.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(move |event| event["event"] == "canary_start" && event["service"] == service)
        .filter_map(|event| event["ts"].as_str()?.parse().ok())
}

/// Refuses a new trial while an earlier one is under way (exit code 75) or has been interrupted and
/// not been put right (5).
pub fn refuse_unsettled(ledger: &Ledger, canary: &Canary) -> Result<()> {
    match ledger.journal()? {
        None => Ok(()),
        Some(journal) if journal.is_orphaned() => Err(owed(&journal)),
        Some(journal) => Err(Failure::new(
            Code::LockBusy,
            format!("another trial of {} is under way (run {})", journal.service, journal.run_id),
        )
        .hint(format!(
            "try again in {}; `gpuctl canary status` shows it",
            Span(canary.limits.reserve)
        ))
        .detail("next", later(canary.limits.reserve))),
    }
}

/// Returns the time at which `span` will be over, as text.
pub fn later(span: Duration) -> Option<String> {
    after(host::now(), span).map(|moment| moment.to_string())
}

/// Returns the failure of a trial that was interrupted and whose production has not been brought
/// back. It exits 5 and not 75, so that no timer takes it for "not now".
pub fn owed(journal: &Journal) -> Failure {
    let message = format!(
        "a trial was interrupted (run {}), and {} has not been restored since",
        journal.run_id, journal.service
    );
    Failure::new(Code::StartFailed, message).hint("`gpuctl canary recover` puts it right")
}
