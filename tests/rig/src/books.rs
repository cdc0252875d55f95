//! The canary's ledger, read from its folder: the journal of a trial under way, the audit, the
//! budget and the promotions.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// The canary's ledger in one folder.
pub struct Books {
    folder: PathBuf,
}

impl Books {
    pub fn new(folder: PathBuf) -> Books {
        Books { folder }
    }

    pub fn journal_file(&self) -> PathBuf {
        self.folder.join("gpu_canary_journal.json")
    }

    /// Returns the journal of the trial under way, or `None` if there is none; fails the test if
    /// the journal is not whole.
    pub fn journal(&self) -> Option<Value> {
        let text = fs::read_to_string(self.journal_file()).ok()?;
        Some(serde_json::from_str(&text).expect("a whole journal"))
    }

    pub fn write_journal(&self, journal: &Value) {
        fs::write(self.journal_file(), journal.to_string()).unwrap();
    }

    /// Returns the stage of the trial in the journal ("ready", "away" or "restoring"), or `None` if
    /// there is no journal.
    pub fn stage(&self) -> Option<String> {
        Some(self.journal()?["progress"].as_str()?.to_owned())
    }

    fn files(&self, begin: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        // Files that are being written have another name.
        let is_day = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_meant = |path: &PathBuf| {
            let name = name(path);
            let rest = name.strip_prefix(begin).and_then(|rest| rest.split_once('.'));
            rest.is_some_and(|(day, _)| is_day(day))
        };
        entries.map(|entry| entry.path()).filter(is_meant).collect()
    }

    /// Returns the lines of the audit; fails the test if one of them is not whole.
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

    /// Returns the names of the events in the audit so far, leaving out a line that is still being
    /// written.
    #[track_caller]
    pub fn events(&self) -> Vec<String> {
        // A line that is still being written is not a whole document yet.
        let texts =
            self.files("gpu_canary_").into_iter().map(|path| fs::read_to_string(path).unwrap());
        let event = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(line["event"].as_str().unwrap().to_owned())
        };
        texts.flat_map(|text| text.lines().filter_map(event).collect::<Vec<_>>()).collect()
    }

    /// Reports whether the audit has an event of this name.
    pub fn has_told(&self, event: &str) -> bool {
        self.events().iter().any(|told| told == event)
    }

    /// Reports whether the ledger has a budget for any night.
    pub fn has_booked(&self) -> bool {
        !self.files("gpu_budget_").is_empty()
    }

    /// Returns the budget file; fails the test unless there is exactly one, for one night.
    #[track_caller]
    pub fn budget_file(&self) -> PathBuf {
        let files = self.files("gpu_budget_");
        let [file] = files.as_slice() else { panic!("one night's budget: {files:?}") };
        file.clone()
    }

    /// Returns how many seconds of the night's budget are booked as used, and each run's share of
    /// them.
    #[track_caller]
    pub fn booked(&self) -> (f64, Vec<f64>) {
        let text = fs::read_to_string(self.budget_file()).unwrap();
        let budget: Value = serde_json::from_str(&text).unwrap();
        let runs = budget["runs"].as_object().into_iter().flat_map(|runs| runs.values());
        (budget["seconds_used"].as_f64().unwrap(), runs.map(|run| run.as_f64().unwrap()).collect())
    }

    /// Returns the number of promotions on record.
    pub fn promotions(&self) -> usize {
        fs::read_dir(self.folder.join("promotions")).into_iter().flatten().count()
    }
}
