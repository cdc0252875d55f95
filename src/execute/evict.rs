//! Carries out one eviction: the service is stopped by its manager, or asked to unload and stopped
//! if its memory does not come back.

mod unload;

use super::batch::Batches;
use super::contained;
use super::last_look::started_again;
use super::{Context, LONGEST, SHORTEST, drain};
use crate::config::{Config, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Containers, Managed, Manager, Mb, Native, Pid, Presence, Service};
use crate::observe::{
    Members, Supervisor, containers, gpu_pids, members, supervisor_of_containers,
};
use crate::plan::{EvictHow, Eviction};
use crate::step::{Action, Step};
use crate::world::ending::{FirstMove, end};
use crate::world::wait::wait;
use crate::world::{group, native, process, starts, systemd};
use std::time::{Duration, Instant};
use unload::{Footprint, LIMIT as UNLOAD_LIMIT, Unloaded, ask_to_unload};

/// Time for which a stopped service is watched for its return if something looks after it. Most
/// supervisors wait a second or three.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(4);
/// Time that systemd may take to notice that a unit was killed.
const KILLED_LIMIT: Duration = Duration::from_secs(10);

/// What came of an eviction.
pub struct EvictedBy {
    /// The last thing that was done, a stop or an unload; `None` if the service had unloaded
    /// before.
    pub step: Option<Step>,
    /// Memory that a service which has unloaded still holds, if the driver reports it.
    pub keeps: Option<Mb>,
}

/// Evicts a service; `required` is the memory that the plan's starts will take.
pub fn evict(
    eviction: &Eviction,
    required: Mb,
    batches: &Batches<bool>,
    context: &Context,
) -> Result<EvictedBy> {
    let service = context.service(&eviction.service);
    let mut reason = None;
    if eviction.how == EvictHow::Unload {
        let held = Footprint::of(service, context);
        let memory = held.as_ref().ok().and_then(|held| held.memory);
        let kept = context.before.service(&service.name).kept;
        if let Some(residue) = memory.filter(|memory| service.holds_residue(*memory, kept)) {
            return Ok(EvictedBy { step: None, keeps: Some(residue) });
        }
        let step = context.progress.begin(Action::Unload, &service.name, UNLOAD_LIMIT);
        let asked = match held {
            Ok(held) => ask_to_unload(service, eviction, required, &held, context)?,
            Err(why) => Err(why),
        };
        match asked {
            Ok(Unloaded { keeps, note }) => {
                return Ok(EvictedBy { step: Some(step.done(note)), keeps });
            }
            Err(why) => reason = Some(format!("{why}; stopped instead")),
        }
    }
    let force = eviction.how == EvictHow::Kill;
    let action = if force { Action::Kill } else { Action::Stop };
    let limit = contained::stop_limit(service, context.before.managed(&service.name));
    let step = context.progress.begin(action, &service.name, limit);
    let note = stop(eviction, batches, context)?;
    Ok(EvictedBy { step: Some(step.done(joined([reason, note]))), keeps: None })
}

/// Joins remarks into one.
fn joined(notes: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    notes.into_iter().flatten().reduce(|a, b| format!("{a}; {b}"))
}

/// Stops a service and returns what was remarkable. Whether it works is asked as late as possible.
fn stop(eviction: &Eviction, batches: &Batches<bool>, context: &Context) -> Result<Option<String>> {
    // An unload call that an interruption cut short has failed, too, and is no reason to stop the
    // service.
    context.stop.check()?;
    let service = context.service(&eviction.service);
    let force = eviction.how == EvictHow::Kill;
    let limit = service.stop_timeout;
    match &service.manager {
        Manager::Containers(which) => {
            let cut = drain::cut_off(eviction, context)?;
            let managed = context.before.managed(&service.name);
            let supervisor = supervisor_of_containers(&managed.containers);
            let stop = |services: &[&Service]| match drain::once_more(services, force, context) {
                Ok(_) => contained::stop(services, force, context),
                Err(failure) => services.iter().map(|_| Err(failure.clone())).collect(),
            };
            let killed = match batches.get(service.name.as_str()) {
                Some(batch) => batch.result(&service.name, stop)?,
                None => stop(&[service]).remove(0)?,
            };
            if let Some(supervisor) = supervisor {
                see_containers_stay_gone(service, which, &supervisor, context)?;
            }
            let limit = contained::stop_limit(service, managed);
            let killing = killed.then(|| format!("not gone within {}, killed", Span(limit)));
            Ok(joined([cut, killing]))
        }
        Manager::Systemd { unit, user } => {
            let cut = drain::cut_off(eviction, context)?;
            drain::once_more(&[service], force, context)?;
            if !force {
                let stopped = systemd::stop(unit, *user, limit, context.stop);
                context.stop.check()?;
                match stopped {
                    Ok(()) => {
                        let left = end_leftovers(service, unit, *user, force, context)?;
                        return Ok(joined([cut, left]));
                    }
                    // A user who may not stop the unit may not kill it either.
                    Err(failure) if failure.code == Code::Permission => return Err(failure),
                    Err(_) => {}
                }
            }
            systemd::kill(unit, *user, KILLED_LIMIT, context.stop)?;
            end_leftovers(service, unit, *user, force, context)?;
            let killing = (!force).then(|| format!("not gone within {}, killed", Span(limit)));
            Ok(joined([cut, killing]))
        }
        Manager::Native(native) => stop_native(eviction, native, context),
    }
}

/// Ends what a unit that has stopped has left behind: containers that it has run, and processes in
/// its control group (KillMode=process). Fails if the unit is up again, or if that cannot be
/// determined: what lives in there then may be no leftover.
fn end_leftovers(
    service: &Service,
    unit: &str,
    user: bool,
    force: bool,
    context: &Context,
) -> Result<Option<String>> {
    let see_it_down = || match &systemd::show(&[unit], user, context.stop)()?[unit].presence {
        Presence::Up(_) => Err(systemd::started_again(&service.name, unit, user, context.stop)),
        _ => Ok(()),
    };
    if systemd::is_started_again(unit, user, context.stop) {
        let deadline = Instant::now() + SUPERVISOR_LIMIT;
        while Instant::now() < deadline {
            see_it_down()?;
            context.pause()?;
        }
    }
    let Managed { containers, control_groups, .. } = context.before.managed(&service.name);
    if !containers.is_empty() {
        see_it_down()?;
        contained::end_left_by_unit(service, force, context)?;
    }
    let left = || {
        let each = control_groups.iter().map(|path| group::in_control_group(path));
        each.flatten().collect::<Vec<_>>()
    };
    let count = left().len();
    if count == 0 {
        return Ok(None);
    }
    see_it_down()?;
    let killed = end(&service.name, left, FirstMove::Term, service.stop_timeout, context.stop)?;
    let ended = if killed { "killed" } else { "ended" };
    Ok(Some(format!("its unit had left {count} processes behind, {ended}")))
}

fn stop_native(eviction: &Eviction, native: &Native, context: &Context) -> Result<Option<String>> {
    let service = context.service(&eviction.service);
    let force = eviction.how == EvictHow::Kill;
    let on_gpu = gpu_pids(&context.before.vram);
    let members = |known: &[process::Id]| {
        members(context.config, &context.before.managed, &service.name, known, &on_gpu)
    };
    let Members { proven: targets, unproven: bystanders, supervisor } = members(&[]);
    let cut = drain::cut_off(eviction, context)?;
    drain::once_more(&[service], force, context)?;
    let begun = Instant::now();
    let mut note = None;
    if let (Some(command), false) = (&native.stop, force) {
        // A stop command that fails or hangs is no reason to leave the service running.
        note = match native::run_stop_command(service, native, command, context.stop) {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(format!("its stop command failed: {}", output.reason())),
            Err(failure) => {
                context.stop.check()?;
                Some(failure.message)
            }
        };
    }
    let first = match (&native.stop, &note) {
        _ if force => FirstMove::Kill,
        (Some(_), None) => FirstMove::Wait,
        _ => FirstMove::Term,
    };
    let limit = service.stop_timeout.saturating_sub(begun.elapsed());
    let killed = end(&service.name, || members(&targets).proven, first, limit, context.stop)?;
    forget_starts(service, context.config);
    if let Some(supervisor) = supervisor {
        see_it_stay_gone(service, &supervisor, &bystanders, || members(&[]), context)?;
    }
    let killing = killed.then(|| format!("not gone within {}, killed", Span(service.stop_timeout)));
    Ok(joined([cut, note, killing]))
}

/// Watches for a while whether a service that has a supervisor comes back, and fails if it does.
fn see_it_stay_gone(
    service: &Service,
    supervisor: &Supervisor,
    bystanders: &[Pid],
    members: impl Fn() -> Members,
    context: &Context,
) -> Result<()> {
    let deadline = Instant::now() + SUPERVISOR_LIMIT;
    while supervisor.is_there() && Instant::now() < deadline {
        let Members { proven, unproven, .. } = members();
        let is_new = |pid: &&Pid| !bystanders.contains(pid);
        let back =
            proven.first().map(|id| id.pid).or_else(|| unproven.iter().find(is_new).copied());
        if let Some(pid) = back {
            let message = format!(
                "{}: {supervisor} started it again as soon as it was stopped, as process {pid}",
                service.name
            );
            return Err(Failure::new(Code::StopFailed, message)
                .hint(format!("{}; then run the command again", supervisor.remedy())));
        }
        context.pause()?;
    }
    Ok(())
}

/// Watches for a while whether containers that have a supervisor come back, and fails if they do.
fn see_containers_stay_gone(
    service: &Service,
    which: &Containers,
    supervisor: &Supervisor,
    context: &Context,
) -> Result<()> {
    let begun = Instant::now();
    while supervisor.is_there() && begun.elapsed() < SUPERVISOR_LIMIT {
        if let (Presence::Up(_), _) = containers(which, context.config, context.stop) {
            return Err(started_again(service, &supervisor.to_string(), &supervisor.remedy()));
        }
        let pause = (begun.elapsed() / 4).clamp(SHORTEST, LONGEST);
        wait(&[], context.stop, Instant::now() + pause);
        context.stop.check()?;
    }
    Ok(())
}

/// Forgets what was recorded of a native service's starts, of which nothing is left.
fn forget_starts(service: &Service, config: &Config) {
    let Ok(state_dir) = config.state_dir() else { return };
    let at = config.place_of(&service.name);
    for start in starts::recorded(state_dir) {
        if start.service_of(&config.services, config.path.as_deref()) == at {
            starts::forget(state_dir, &start.service);
        }
    }
}
