//! The steps that gpuctl takes on services: the one vocabulary of plans, progress, the event log
//! and reports.

use crate::model::Mb;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Waits for the GPU lock.
    Wait,
    /// Waits for the work in flight of a service that is to make room.
    Drain,
    Stop,
    Kill,
    Unload,
    /// Waits until memory that was given up is free.
    Reclaim,
    Start,
    /// Waits for a service that somebody else has started.
    Await,
    Wake,
    /// Makes a service load its model.
    WarmUp,
    /// Asks the canary for a completion.
    Test,
    /// Runs the command of `gpuctl run`.
    Run,
}

impl Action {
    /// Returns what the action is called as an order, while it goes on, and once it has ended well.
    fn forms(self) -> [&'static str; 3] {
        match self {
            Action::Wait => ["wait", "waiting for", "had to wait for"],
            Action::Drain => ["drain", "draining", "drained"],
            Action::Stop => ["stop", "stopping", "stopped"],
            Action::Kill => ["kill", "killing", "killed"],
            Action::Unload => ["unload", "unloading", "unloaded"],
            Action::Reclaim => ["reclaim", "reclaiming", "reclaimed"],
            Action::Start => ["start", "starting", "started"],
            Action::Await => ["await", "waiting for", "saw come up"],
            Action::Wake => ["wake", "waking", "woke"],
            Action::WarmUp => ["warmup", "warming up", "warmed up"],
            Action::Test => ["test", "testing", "tested"],
            Action::Run => ["run", "running", "ran"],
        }
    }

    /// Returns what the action is called as an order, and in what programs read.
    pub fn name(self) -> &'static str {
        self.forms()[0]
    }

    /// Returns what the action is called while it goes on.
    pub fn doing(self) -> &'static str {
        self.forms()[1]
    }

    /// Returns what the action is called once it has ended well.
    pub fn did(self) -> &'static str {
        self.forms()[2]
    }
}

/// A step that is planned or has been completed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub action: Action,
    pub service: Option<String>,
    /// Memory that the step concerns in a plan, or that came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mb>,
    /// How long the step took; absent if it is only planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// The most memory that the processes of the command of `gpuctl run` held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_mb: Option<Mb>,
    /// The most memory that each service held while the command of `gpuctl run` ran.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub service_peaks_mb: BTreeMap<String, Mb>,
    /// A remark on the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Step {
    /// Returns a step with nothing to tell but how long it took; `elapsed` is `None` if the step is
    /// only planned.
    pub fn new(action: Action, service: Option<&str>, elapsed: Option<Duration>) -> Step {
        Step {
            action,
            service: service.map(str::to_owned),
            memory_mb: None,
            peak_mb: None,
            service_peaks_mb: BTreeMap::new(),
            elapsed_ms: elapsed.map(|elapsed| elapsed.as_millis() as u64),
            note: None,
        }
    }
}
