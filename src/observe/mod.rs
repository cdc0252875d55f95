//! Asks the managers, the services and the driver once, all side by side, and returns the answers
//! as plain data.

mod adoption;
mod containers;
mod evidence;
mod inquiry;
mod look;
mod ownership;
mod state;
mod supervisor;

pub use adoption::adoptable;
pub use containers::containers;
pub use inquiry::{Ask, count_jobs};
use look::look_by;
pub use look::{Look, Managers, Members, look, members};
pub use supervisor::{Supervisor, started_by, supervisor_of_containers};

use crate::config::Config;
use crate::error::Result;
use crate::model::{
    GpuProcess, Healthy, InFlight, Managed, Manager, Mb, Observed, Pid, Presence, Running, Service,
    Snapshot, Source, State, Trouble, Vram,
};
use crate::notes::Notes;
use crate::redact::mask;
use crate::world::nvml::Reader;
use crate::world::ports::local_port;
use crate::world::wait::Stop;
use crate::world::{host, process};
use inquiry::Inquiry;
use std::collections::HashSet;
use std::time::Instant;

/// Takes one look at everything that is configured. `asks` decides what each service itself is
/// asked.
pub fn observe(
    config: &Config,
    reader: &mut Reader,
    stop: &Stop,
    asks: &dyn Fn(&Service) -> Ask,
) -> Result<Snapshot> {
    observe_by(Managers::of_all(config, stop), config, reader, stop, asks)
}

/// Takes one look at everything that is configured, through `managers`, which have been asked about
/// all services already. `asks` decides what each service itself is asked.
pub fn observe_by(
    managers: Managers,
    config: &Config,
    reader: &mut Reader,
    stop: &Stop,
    asks: &dyn Fn(&Service) -> Ask,
) -> Result<Snapshot> {
    let services: Vec<&Service> = config.services.iter().collect();
    // Each service takes a socket and a second descriptor for it; the rest is for everything else.
    host::allow_open_files(2 * services.len() as u64 + 64);
    let begun = Instant::now();
    // A question may start a unit through its socket, so if a service is a unit, all are asked
    // after the managers have reported what runs.
    let is_unit = |service: &&Service| matches!(service.manager, Manager::Systemd { .. });
    let asks_at_once = !services.iter().any(is_unit);
    let mut notes = Notes::read(config);
    let mut inquiry = None;
    let mut vram = Vram::default();
    let look = look_by(managers, config, &[], || {
        // The managers take longest, so they are asked first.
        inquiry = asks_at_once.then(|| Inquiry::begin(config, asks, begun, stop));
        vram = reader
            .read_use(notes.sampled())
            .unwrap_or_else(|why| Vram { error: Some(why), ..Vram::default() });
        gpu_pids(&vram)
    });
    let asks = |service: &Service| match look.starts_when_asked(&service.name) {
        true => Ask::Nothing,
        false => asks(service),
    };
    let mut inquiry = inquiry.unwrap_or_else(|| Inquiry::begin(config, &asks, begun, stop))?;
    let is_asked = |service: &Service| asks(service) != Ask::Nothing;
    let each = || config.services.iter().enumerate();
    let needs = each().filter(|(_, it)| is_asked(it)).flat_map(|(at, _)| &look.managed[at].needs);
    let needs: HashSet<&String> = needs.collect();
    let needed = each().filter(|(_, it)| needs.contains(&it.name) && !is_asked(it));
    inquiry.ask_later(needed.map(|(at, _)| at), |at| look.located(&config.services[at]))?;
    attribute(&mut vram, &look);
    for process in vram.processes.iter_mut().flatten() {
        process.command = command_of(process);
    }
    let mut services: Vec<Observed> = services
        .iter()
        .enumerate()
        .map(|(at, service)| {
            let presence = look.presence(&service.name);
            let (healthy, took) = match (&service.health, &presence) {
                // A frozen service holds its port and does not answer; its state is known without
                // asking.
                (Some(_), Presence::Up(running)) if is_frozen(running) => (None, None),
                (Some(_), presence) => {
                    let is_absent = matches!(presence, Presence::Down(_) | Presence::Missing(_));
                    let answer = inquiry.health(at, is_absent);
                    answer.map(|(healthy, took)| (look.heard(healthy, service), took)).unzip()
                }
                (None, Presence::Up(running)) => {
                    (running.own_health.clone().or(Some(Healthy::Yes)), None)
                }
                (None, _) => (None, None),
            };
            let answered_by = match (&healthy, &service.health) {
                (Some(Healthy::Yes), Some(check)) => look.answered_by(service, local_port(check)),
                _ => None,
            };
            let is_itself = answered_by.is_none()
                && matches!(&presence, Presence::Up(running) if !is_frozen(running));
            let sleeps = match is_itself && healthy == Some(Healthy::Yes) {
                true => inquiry.sleeps(at),
                false => Ok(false),
            };
            // A service that may be asleep is not known to be ready.
            let healthy = match &sleeps {
                Ok(_) => healthy,
                Err(failed) => {
                    Some(Healthy::Silent(format!("cannot tell whether it sleeps: {failed}")))
                }
            };
            let unproven = look.unproven(&service.name);
            let (state, detail) =
                state::judge(service, &presence, healthy.as_ref(), answered_by.as_ref(), &unproven);
            let sleeps = state == State::Ready && sleeps.is_ok_and(|sleeps| sleeps);
            let count = is_itself.then(|| inquiry.jobs(at)).flatten();
            let is_silent = matches!(&count, Some(Err(failed)) if failed.is_silence);
            let works_silently = is_silent && vram.shows_at_work(&service.name);
            let (jobs, jobs_unknown) = match count {
                Some(Ok(jobs)) => (Some(jobs), None),
                Some(Err(failed)) => (None, Some(failed.why)),
                None => (None, None),
            };
            let state = if sleeps { State::Asleep } else { state };
            let untold = |why: &String| match works_silently {
                true => format!("{}: {why}", InFlight::OnCard),
                false => format!("cannot tell whether it is at work: {why}"),
            };
            let detail = match (sleeps, detail) {
                (true, _) => Some("it was put to sleep by an unload".to_owned()),
                (false, detail) => detail.or_else(|| jobs_unknown.as_ref().map(untold)),
            };
            Observed {
                used: used(&vram, service, &presence),
                jobs,
                jobs_unknown,
                works_silently,
                peak: None,
                kept: None,
                has_unloaded_before: false,
                idle: None,
                name: service.name.clone(),
                health: took.filter(|_| state == State::Ready),
                presence,
                state,
                detail,
                answered_by,
                unproven,
            }
        })
        .collect();
    stop.check()?;
    notes.add(&vram, &services);
    for (service, observed) in config.services.iter().zip(&mut services) {
        observed.peak = notes.peak(&service.name);
        let remnant = notes.remnant(observed, &vram);
        observed.has_unloaded_before = remnant.is_some();
        observed.kept = remnant.and_then(|remnant| remnant.held_mb);
        observed.idle = notes.idle(service, observed, &vram);
    }
    if vram.source == Source::Estimate && !vram.no_such_gpu {
        estimate(config, &mut vram, &services);
    }
    Ok(Snapshot { vram, services, managed: look.managed })
}

/// Returns the processes that hold GPU memory.
pub fn gpu_pids(vram: &Vram) -> HashSet<Pid> {
    vram.processes.iter().flatten().map(|process| process.pid).collect()
}

/// Returns a reading in which each process names the service that it belongs to. The managers of
/// `services` are asked for this; `known` holds what the managers of the others have said before.
pub fn attributed(
    mut vram: Vram,
    config: &Config,
    services: &[&Service],
    known: &[Managed],
    stop: &Stop,
) -> Vram {
    let look = look(config, services, known, stop, || gpu_pids(&vram));
    attribute(&mut vram, &look);
    vram
}

/// Sets which service each process on the card belongs to, and whether the process is ending.
fn attribute(vram: &mut Vram, look: &Look) {
    for process in vram.processes.iter_mut().flatten() {
        process.is_ending = process::is_ending(process.pid);
        // A dying process belongs to nobody any more: its memory is on its way back.
        let service = look.service_of(process.pid).filter(|_| !process.is_ending);
        process.service = service.map(str::to_owned);
    }
}

/// Returns the command line of a process on the card with its secrets masked, or `None` if its
/// first word is not the name that NVML gives: in a PID namespace of gpuctl's own, the number may
/// belong to another process.
fn command_of(process: &GpuProcess) -> Option<String> {
    let words = process::arguments(process.pid);
    (words.first() == Some(&process.name)).then(|| mask(&words.join(" ")))
}

/// Returns the memory that a service's processes hold, or `None` if that cannot be determined.
fn used(vram: &Vram, service: &Service, presence: &Presence) -> Option<Mb> {
    if matches!(presence, Presence::Unknown(_)) {
        return None;
    }
    let processes = vram.processes.as_ref()?;
    let sum = |owned: bool| -> Option<Mb> {
        processes
            .iter()
            .filter(|process| (process.service.as_ref() == Some(&service.name)) == owned)
            .map(|process| process.memory)
            .sum()
    };
    let (own, others) = (sum(true)?, sum(false).unwrap_or_default());
    // In a PID namespace of gpuctl's own, the driver's list leaves processes out. Much memory that
    // is listed for nobody may then be that of a service that seems to hold none.
    let unlisted = vram.used.unwrap_or_default().saturating_sub(own + others);
    let is_hidden =
        own == Mb(0) && matches!(presence, Presence::Up(_)) && unlisted.0 * 4 >= service.vram.0;
    (!is_hidden || service.vram == Mb(0)).then_some(own)
}

/// Fills in the figures that NVML does not give: each service that runs, or may be running as far
/// as gpuctl can tell, counts with the memory that it declares.
fn estimate(config: &Config, vram: &mut Vram, observed: &[Observed]) {
    vram.total = config.gpu.total;
    if let Some(total) = vram.total {
        let running =
            config.services.iter().zip(observed).filter(|(_, observed)| observed.may_run());
        let used = running.map(|(service, _)| service.vram).sum();
        vram.used = Some(used);
        vram.free = Some(total.saturating_sub(used));
    }
}

/// Reports whether a service is alive but given no time to run.
fn is_frozen(running: &Running) -> bool {
    matches!(running.trouble, Some(Trouble::Paused | Trouble::Suspended))
}
