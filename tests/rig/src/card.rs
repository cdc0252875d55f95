//! The simulated card of a rig: what it is, who holds what, and how full it has been.

use serde_json::Value;
use simgpu::Holder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub struct Card {
    folder: PathBuf,
    card: simgpu::Card,
}

impl Card {
    /// An RTX 4090 with 24576 MB, unless described otherwise.
    pub fn new(folder: &Path) -> Card {
        std::fs::create_dir(folder).unwrap();
        let card = Card { folder: folder.to_owned(), card: simgpu::Card::open(folder).unwrap() };
        // The first to look makes the card's lock file, which a container's root is not to do.
        card.used_mb();
        card
    }

    /// What `SIMGPU_DIR` is to name.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `card.json`, also while programs run: `json!({"devices": [{"total_mb": 8000}],
    /// "reclaim_delay_ms": 300, "faults": {"nvmlInit_v2": "driver_not_loaded"}})`.
    pub fn describe(&self, card: &Value) {
        self.card.describe(card).unwrap();
    }

    /// The claims that live, and those of the dead that the driver has not taken back yet.
    pub fn claims(&self) -> Vec<Holder> {
        self.card.holders().unwrap()
    }

    pub fn used_mb(&self) -> u64 {
        self.card.memory(0).unwrap().claimed
    }

    /// The highest use seen while `act` ran.
    pub fn peak_mb_during(&self, act: impl FnOnce()) -> u64 {
        let (peak, over) = (AtomicU64::new(self.used_mb()), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    peak.fetch_max(self.used_mb(), Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                }
            });
            let _end = EndOnDrop(&over);
            act();
        });
        peak.into_inner()
    }

    /// The jobs that servers have taken, and whether each was done.
    pub fn jobs(&self) -> BTreeMap<String, bool> {
        let log = std::fs::read_to_string(self.folder.join("jobs.jsonl")).unwrap_or_default();
        let mut jobs = BTreeMap::new();
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            jobs.insert(line["job"].as_str().unwrap().to_owned(), line["event"] == "done");
        }
        jobs
    }

    /// One line of JSON for each claim that was refused.
    pub fn out_of_memory(&self) -> String {
        std::fs::read_to_string(self.folder.join("oom.jsonl")).unwrap_or_default()
    }
}

/// So that a panic in between does not leave the sampler running, and the scope waiting for it.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
