//! What gpuctl has seen of services over time: the most that each has held, when each has last
//! worked, and what each keeps after an unload. The notes are a small file in the state folder.

use crate::config::Config;
use crate::model::{Mb, Observed, Service, Snapshot, State, Vram};
use crate::world::clock::SinceBoot;
use crate::world::wait::Stop;
use crate::world::{files, host, process};
use jiff::Timestamp;
use jiff::fmt::serde::timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for another process that has locked the file, which is written within a
/// millisecond.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// Maximum number of bytes that are read of the file; no configuration needs as many.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// The notes of one configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    /// ID of the boot in which the times since boot in these notes were taken.
    boot: String,
    /// Time of the driver's latest sample that has been looked at; stored in microseconds.
    #[serde(with = "timestamp::microsecond::required")]
    sampled: Timestamp,
    services: BTreeMap<String, Note>,
}

/// What was seen of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Note {
    peak_mb: Option<Mb>,
    /// Number of calls of `run` that needed the service and watched it.
    runs: u64,
    /// Time at which the service last worked.
    worked: Option<SinceBoot>,
    remnant: Option<Remnant>,
}

/// What a service's processes still held after they had been asked to unload: asked twice if the
/// driver reports how much they hold, otherwise at least once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remnant {
    pub held_mb: Option<Mb>,
    pub processes: Vec<process::Id>,
}

/// What a call of `run` has seen while its command ran.
#[derive(Clone, Debug, Default)]
pub struct RunSeen {
    /// The most that the command's own processes held, or `None` if they were not seen to hold
    /// anything.
    pub command: Option<Mb>,
    /// The most that each service held.
    pub peaks: BTreeMap<String, Mb>,
    /// Time at which each service was last seen at work.
    pub worked: BTreeMap<String, SinceBoot>,
    /// Time of the driver's latest sample that was looked at.
    pub sampled: Timestamp,
}

impl RunSeen {
    /// Records that a service was seen to hold this much.
    pub fn hold(&mut self, service: &str, held: Option<Mb>) {
        if let Some(held) = held.filter(|held| *held > Mb(0)) {
            let peak = self.peaks.entry(service.to_owned()).or_default();
            *peak = held.max(*peak);
        }
    }
}

/// The notes of all configurations, by the path of each.
type Notebook = BTreeMap<PathBuf, Notes>;

impl Notes {
    /// Reads the notes of a configuration; they are empty if they cannot be read.
    pub fn read(config: &Config) -> Notes {
        let notebook = config.state_dir().ok().and_then(|folder| read(&file(folder)).ok());
        notebook.and_then(|mut book| book.remove(&key(config))).unwrap_or_default().of_this_boot()
    }

    /// Writes down what a look has seen. A failure to write is only logged.
    pub fn keep(config: &Config, snapshot: &Snapshot) {
        Notes::update(config, |notes| notes.add(&snapshot.vram, &snapshot.services));
    }

    /// Writes down what a call of `run` has seen while its command ran.
    pub fn keep_run(config: &Config, needed: &[String], seen: &RunSeen) {
        Notes::update(config, |notes| {
            for (service, peak) in &seen.peaks {
                let note = notes.services.entry(service.clone()).or_default();
                note.peak_mb = note.peak_mb.max(Some(*peak));
                note.runs += u64::from(needed.contains(service));
            }
            for (service, at) in &seen.worked {
                let note = notes.services.entry(service.clone()).or_default();
                note.worked = note.worked.max(Some(*at));
            }
            notes.sampled = notes.sampled.max(seen.sampled);
        });
    }

    /// Writes down what a service keeps after it has been asked to unload.
    pub fn keep_unload(config: &Config, service: &str, remnant: &Remnant) {
        Notes::update(config, |notes| {
            notes.services.entry(service.to_owned()).or_default().remnant = Some(remnant.clone());
        });
    }

    fn update(config: &Config, change: impl Fn(&mut Notes)) {
        let before = Notes::read(config);
        let mut after = before.clone();
        change(&mut after);
        let Ok(folder) = config.state_dir() else { return };
        if after != before
            && let Err(e) = rewrite(folder, &key(config), change)
        {
            log::warn!("what was seen could not be noted: {e}");
        }
    }

    /// Returns the time up to which the driver's samples have been looked at.
    pub fn sampled(&self) -> Timestamp {
        // If the clock was set back since, this time would hide all samples to come.
        if self.sampled > host::now() { Timestamp::UNIX_EPOCH } else { self.sampled }
    }

    /// Adds what a look sees now.
    pub fn add(&mut self, vram: &Vram, services: &[Observed]) {
        let now = SinceBoot::now();
        let mut has_worked = false;
        for observed in services.iter().filter(|observed| observed.is_alive()) {
            let works = vram.shows_at_work(&observed.name);
            has_worked |= works;
            let own = vram.of_service(&observed.name);
            let peak = own.filter_map(|process| process.peak).chain(observed.used).max();
            let peak = peak.filter(|peak| *peak > Mb(0));
            if works || observed.jobs > Some(0) || peak.is_some() {
                let note = self.services.entry(observed.name.clone()).or_default();
                note.peak_mb = note.peak_mb.max(peak);
                if works || observed.jobs > Some(0) {
                    note.worked = Some(now);
                }
            }
        }
        if has_worked {
            self.sampled = vram.sampled.unwrap_or(self.sampled);
        }
    }

    /// Returns the most that a service has been seen to hold.
    pub fn peak(&self, service: &str) -> Option<Mb> {
        self.services.get(service)?.peak_mb
    }

    /// Returns what a service has kept after its unload, if its processes are still those that were
    /// asked to unload. The processes that count are those on the card or, if none of the service
    /// is listed there, all of its own.
    pub fn remnant(&self, observed: &Observed, vram: &Vram) -> Option<&Remnant> {
        let remnant = self.services.get(&observed.name)?.remnant.as_ref()?;
        let was_asked =
            |pid| process::Id::of(pid).is_some_and(|process| remnant.processes.contains(&process));
        let mut listed = vram.of_service(&observed.name).map(|process| process.pid).peekable();
        let are_the_same = match listed.peek() {
            Some(_) => listed.all(was_asked),
            None => {
                // Without any known process it cannot be told whether they are the same.
                !observed.pids().is_empty() && observed.pids().iter().copied().all(was_asked)
            }
        };
        are_the_same.then_some(remnant)
    }

    /// Returns how many calls of `run` have watched a service that they needed.
    pub fn runs(&self, service: &str) -> u64 {
        self.services.get(service).map_or(0, |note| note.runs)
    }

    /// Returns how long a service has not worked: since it was last seen at work, or since it came
    /// up. `None` if it cannot be told whether it works now.
    pub fn idle(&self, service: &Service, observed: &Observed, vram: &Vram) -> Option<Duration> {
        if !matches!(observed.state, State::Ready | State::Busy | State::Asleep) {
            return None;
        }
        let on_card = vram.sampled.and(observed.used).map(|_| vram.shows_at_work(&service.name));
        let by_jobs = observed.jobs.map(|jobs| jobs > 0);
        let is_untold = service.jobs.is_some() && by_jobs.is_none();
        if is_untold || (on_card.is_none() && by_jobs.is_none()) {
            return None;
        }
        let up = observed.uptime()?;
        let worked = self.services.get(&service.name).and_then(|note| note.worked);
        let since = worked.map(|at| at.elapsed());
        Some(match on_card == Some(true) || by_jobs == Some(true) {
            true => Duration::ZERO,
            false => since.map_or(up, |since| since.min(up)),
        })
    }

    /// Forgets the times and processes of an earlier boot.
    fn of_this_boot(mut self) -> Notes {
        let boot = host::boot_id();
        if self.boot != boot {
            for note in self.services.values_mut() {
                (note.worked, note.remnant) = (None, None);
            }
            self.boot = boot;
        }
        self
    }
}

fn key(config: &Config) -> PathBuf {
    config.path.clone().unwrap_or_default()
}

fn file(folder: &Path) -> PathBuf {
    folder.join("notes.json")
}

fn read(path: &Path) -> Result<Notebook> {
    let mut text = Vec::new();
    files::existing(path)?.take(FILE_LIMIT).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Changes the notes of one configuration in the file, and keeps those of the others.
fn rewrite(folder: &Path, key: &Path, change: impl Fn(&mut Notes)) -> Result<()> {
    files::private_dir(folder)?;
    let locked = files::lock(&folder.join("notes.lock"), LOCK_LIMIT, &Stop::never())?;
    let _locked = locked.ok_or(ErrorKind::TimedOut)?;
    let path = file(folder);
    // A file that cannot be read is made anew: it holds nothing that is not seen again.
    let mut notebook = read(&path).unwrap_or_default();
    let mut notes = notebook.remove(key).unwrap_or_default().of_this_boot();
    change(&mut notes);
    notebook.insert(key.to_owned(), notes);
    files::replace(&path, &serde_json::to_vec(&notebook)?)
}
