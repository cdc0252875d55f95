//! What gpuctl does to a service, step by step: the one vocabulary of plans, progress, the event log
//! and reports.

use crate::model::Mb;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A step does one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It waits for the lock.
    Wait,
    /// The wait for the work of a service that is to make room.
    Drain,
    Stop,
    Kill,
    Unload,
    /// The wait for memory that was given up.
    Reclaim,
    Start,
    /// The wait for a service that somebody else has started.
    Await,
    Wake,
    /// The call that makes a service load its model.
    WarmUp,
    /// The canary is asked for a completion.
    Test,
    /// `run`'s command.
    Run,
}

impl Action {
    /// The action as an order, while it goes on, and once it has ended well.
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

    /// Names the action as an order, and as programs see it.
    pub fn name(self) -> &'static str {
        self.forms()[0]
    }

    /// Names the action while it goes on.
    pub fn doing(self) -> &'static str {
        self.forms()[1]
    }

    /// Names the action once it has ended well.
    pub fn did(self) -> &'static str {
        self.forms()[2]
    }
}

/// A step that is planned, or has ended well.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub action: Action,
    pub service: Option<String>,
    /// Memory that it concerns in a plan, or that came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mb>,
    /// `None`: it is only planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// The most that the own processes of `run`'s command held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_mb: Option<Mb>,
    /// The most that each service held while `run`'s command ran.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub service_peaks_mb: BTreeMap<String, Mb>,
    /// It tells what is remarkable about the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Step {
    /// One of which there is nothing more to tell than how long it took, if it is done.
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
