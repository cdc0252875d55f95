//! Asks the world once, everything side by side, and returns it as plain data.

mod look;
mod state;

pub use look::{Look, look};

use crate::config::Config;
use crate::error::Result;
use crate::model::{Health, Healthy, Mb, Observed, Pid, Presence, Service, Snapshot, Source, Vram};
use crate::world::health;
use crate::world::nvml::Reader;
use crate::world::ports::local_port;
use crate::world::wait::Stop;
use std::collections::{HashMap, HashSet};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What a health check may take beyond its own limit, for names that do not resolve.
const HEALTH_GRACE: Duration = Duration::from_secs(1);

/// One look at everything that is configured.
pub fn observe(config: &Config, reader: &mut Reader, stop: &Stop) -> Result<Snapshot> {
    let services: Vec<&Service> = config.services.iter().collect();
    let health = HealthChecks::begin(&services);
    let mut vram = None;
    let look = look(&services, config.path.as_deref(), stop, || {
        let reading = reader.read();
        let on_gpu = reading.as_ref().map_or_else(|_| HashSet::new(), gpu_pids);
        vram = Some(reading);
        on_gpu
    });
    let mut vram =
        vram.unwrap_or_else(|| Err("NVML was not read".to_owned())).unwrap_or_else(unmeasured);
    for process in vram.processes.iter_mut().flatten() {
        process.service = look.service_of(process.pid).map(str::to_owned);
    }
    let mut health = health.collect();
    let services: Vec<Observed> = services
        .iter()
        .map(|service| {
            let presence = look.presence(&service.name);
            let healthy = health.remove(&service.name);
            let stranger = match (&healthy, &service.health) {
                (Some(Healthy::Yes), Some(check)) => look.stranger(service, local_port(check)),
                _ => None,
            };
            let (state, detail) =
                state::judge(service, &presence, healthy.as_ref(), stranger.as_deref());
            Observed {
                used: used(&vram, &service.name, &presence),
                name: service.name.clone(),
                presence,
                state,
                detail,
                answered_by: stranger,
                strangers: look.strangers(&service.name),
            }
        })
        .collect();
    stop.check()?;
    if vram.source == Source::Estimate {
        estimate(config, &mut vram, &services);
    }
    Ok(Snapshot { vram, services })
}

/// The processes that hold GPU memory.
pub fn gpu_pids(vram: &Vram) -> HashSet<Pid> {
    vram.processes.iter().flatten().map(|process| process.pid).collect()
}

fn unmeasured(why: String) -> Vram {
    Vram { error: Some(why), ..Vram::default() }
}

/// What a service's processes hold; `None` where that cannot be told.
fn used(vram: &Vram, service: &str, presence: &Presence) -> Option<Mb> {
    if matches!(presence, Presence::Unknown(_)) {
        return None;
    }
    let processes = vram.processes.as_ref()?;
    processes
        .iter()
        .filter(|process| process.service.as_deref() == Some(service))
        .map(|process| process.memory)
        .sum()
}

/// Without NVML: what runs holds what it declares.
fn estimate(config: &Config, vram: &mut Vram, observed: &[Observed]) {
    vram.total = config.gpu.total;
    if let Some(total) = vram.total {
        let running =
            config.services.iter().zip(observed).filter(|(_, observed)| observed.is_alive());
        let used = running.map(|(service, _)| service.vram).sum();
        vram.used = Some(used);
        vram.free = Some(total.saturating_sub(used));
    }
}

/// Health checks under way, each on a thread of its own.
struct HealthChecks {
    results: mpsc::Receiver<(String, Healthy)>,
    asked: usize,
    deadline: Instant,
}

impl HealthChecks {
    fn begin(services: &[&Service]) -> HealthChecks {
        let (sender, results) = mpsc::channel();
        let mut asked = 0;
        for service in services {
            if let Some(check) = service.health.clone() {
                asked += 1;
                begin_check(service.name.clone(), check, sender.clone());
            }
        }
        HealthChecks { results, asked, deadline: Instant::now() + health::TRY_LIMIT + HEALTH_GRACE }
    }

    /// The results by service; a service whose check has not even ended has none.
    fn collect(self) -> HashMap<String, Healthy> {
        let mut found = HashMap::new();
        while found.len() < self.asked {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Ok((service, healthy)) = self.results.recv_timeout(left) else {
                break;
            };
            found.insert(service, healthy);
        }
        found
    }
}

fn begin_check(service: String, check: Health, sender: mpsc::Sender<(String, Healthy)>) {
    thread::spawn(move || {
        let healthy = health::check(&check, health::TRY_LIMIT);
        // Nobody listens any more after the deadline.
        let _ = sender.send((service, healthy));
    });
}
