//! The simulated card of a rig: its description, the claims on its memory, and how full it has
//! been.

use serde_json::Value;
use simgpu::Holder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The simulated card of a rig.
pub struct Card {
    folder: PathBuf,
    card: simgpu::Card,
}

impl Card {
    /// Makes a card in a new folder: an RTX 4090 with 24576 MB, until `describe` changes it.
    pub fn new(folder: &Path) -> Card {
        std::fs::create_dir(folder).unwrap();
        let card = Card { folder: folder.to_owned(), card: simgpu::Card::open(folder).unwrap() };
        // The first look creates the card's lock file, which must not be left to the root of a
        // container.
        card.used_mb();
        card
    }

    /// Returns the card's folder, which `SIMGPU_DIR` has to name.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `card.json`, even while programs run: `json!({"devices": [{"total_mb": 8000}],
    /// "reclaim_delay_ms": 300, "faults": {"nvmlInit_v2": "driver_not_loaded"}})`.
    pub fn describe(&self, card: &Value) {
        self.card.describe(card).unwrap();
    }

    /// Returns the claims of living processes, and those of dead ones whose memory the driver has
    /// not taken back yet.
    pub fn claims(&self) -> Vec<Holder> {
        self.card.holders().unwrap()
    }

    pub fn used_mb(&self) -> u64 {
        self.card.memory(0).unwrap().claimed
    }

    /// Returns the highest use, in MB, that was seen while `act` ran.
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

    /// Returns the jobs that servers have taken, and whether each was done.
    pub fn jobs(&self) -> BTreeMap<String, bool> {
        let log = std::fs::read_to_string(self.folder.join("jobs.jsonl")).unwrap_or_default();
        let mut jobs = BTreeMap::new();
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            jobs.insert(line["job"].as_str().unwrap().to_owned(), line["event"] == "done");
        }
        jobs
    }

    /// Returns one line of JSON for each claim that was refused.
    pub fn out_of_memory(&self) -> String {
        std::fs::read_to_string(self.folder.join("oom.jsonl")).unwrap_or_default()
    }
}

/// Ends the sampler when dropped, so that a panic of `act` does not leave it running and the scope
/// waiting for it.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
