//! `gpuctl doctor`: checks every precondition of the other commands, and reports what was found and
//! what to do. Each area gathers and judges its facts on a thread of its own; an area that does not
//! finish by the deadline is reported as failed. No service is changed and the GPU lock is not
//! taken, but production that is back settles an interrupted trial, as at any call.

mod canary;
mod check;
mod config;
mod docker;
mod gpu;
mod lock;
mod memory;
mod native;
mod programs;
mod services;
mod state;
mod systemd;

pub use check::{Check, CheckId, Verdict};

use crate::config::{Config, Environment, Gpu};
use crate::error::Result;
use crate::model::Snapshot;
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::world::nvml::{Fault, Reader};
use crate::world::wait::{Aside, Stop, wait};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Time that all areas have, side by side. It is more than any of them takes by its own limits.
const LIMIT: Duration = Duration::from_millis(11_500);

/// Settings and facts that all areas of `doctor` work with.
struct Examined {
    /// The configuration, or `None` if it cannot be used. Checks that need none are made all the
    /// same.
    config: Option<Config>,
    gpu: Gpu,
    state_dir: Option<PathBuf>,
    /// `PATH` in gpuctl's own environment, the folders in which programs are looked for.
    path: Option<OsString>,
    visible_devices: Option<String>,
    stop: Stop,
    looked: OnceLock<Looked>,
}

/// Result of the one look at all services that the areas share, and what is wrong with the card.
struct Looked {
    snapshot: Result<Snapshot>,
    fault: Option<Fault>,
}

impl Examined {
    /// Returns the shared look at all services: takes it, or waits for the area that is taking it.
    /// `None` if there is no configuration.
    fn looked(&self) -> Option<&Looked> {
        let config = self.config.as_ref()?;
        Some(self.looked.get_or_init(|| {
            let mut reader = Reader::open(&self.gpu);
            let snapshot = observe(config, &mut reader, &self.stop, &|_| Ask::StateAndJobs);
            snapshot.iter().for_each(|seen| Notes::keep(config, seen));
            Looked { snapshot, fault: reader.fault().cloned() }
        }))
    }
}

/// Message of a check that needs a configuration if there is none that can be used.
const UNCONFIGURED: &str = "needs a valid configuration";

type Area = fn(&Examined) -> Vec<Check>;

/// The areas, each with the check that is reported as failed if the area does not finish in time.
const AREAS: [(CheckId, Area); 8] = [
    (CheckId::SystemKernel, state::kernel),
    (CheckId::NvmlDriver, gpu::examine),
    (CheckId::DockerEngine, docker::examine),
    (CheckId::SystemdManager, systemd::examine),
    (CheckId::NativeStart, native::examine),
    (CheckId::LockPlace, lock::examine),
    (CheckId::StateFolder, state::examine),
    (CheckId::CanaryLedger, canary::examine),
];

/// Makes all checks and returns them in the order of their ids.
pub fn examine(
    named: Option<&Path>,
    gpu: Option<&str>,
    environment: &Environment,
    stop: &Stop,
) -> Result<Vec<Check>> {
    let deadline = Instant::now() + LIMIT;
    let loaded = Config::load(named, gpu, environment);
    let mut checks = config::examine(named, &loaded, environment);
    let config = loaded.ok();
    let case = Arc::new(Examined {
        gpu: config.as_ref().map_or_else(|| Gpu::unconfigured(gpu), |config| config.gpu.clone()),
        state_dir: environment.state_dir(),
        path: environment.search_path().map(OsStr::to_owned),
        visible_devices: environment.get("CUDA_VISIBLE_DEVICES").map(str::to_owned),
        stop: stop.clone(),
        looked: OnceLock::new(),
        config,
    });
    let begin = |(id, area): (CheckId, Area)| {
        let case = case.clone();
        Ok((id, Aside::begin(move || area(&case))?))
    };
    let areas: Vec<_> = AREAS.into_iter().map(begin).collect::<Result<_>>()?;
    for (id, area) in areas {
        wait(&[area.ended().fd()], stop, deadline);
        stop.check()?;
        let silent = || {
            let message = "this group of checks did not finish in time";
            vec![Check::fail(id, message, "run `gpuctl doctor -vv` to see what it is waiting for")]
        };
        checks.extend(area.take().unwrap_or_else(silent));
    }
    checks.sort_by_key(|check| check.id);
    Ok(checks)
}
