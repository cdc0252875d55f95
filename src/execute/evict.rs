//! One eviction: the service is stopped by its manager, or asked to unload and stopped if its
//! memory does not come back.

use super::batch::Batches;
use super::contained;
use super::{Context, drain};
use crate::config::{Config, Span};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{GpuProcess, Manager, Mb, NO_ADDRESS, Native, Pid, Presence, Service, Vram};
use crate::notes::{Notes, Remnant};
use crate::observe::{Keeper, Members, attributed, gpu_pids, members};
use crate::plan::{EvictHow, Eviction};
use crate::step::{Action, Step};
use crate::world::ending::{FirstMove, end};
use crate::world::http::NoAnswer;
use crate::world::server::Called;
use crate::world::wait::Aside;
use crate::world::{group, native, process, server, starts, systemd};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// An unload may take this long to show.
const UNLOAD_LIMIT: Duration = Duration::from_secs(10);
/// What is still held so long after the last call that was answered, and after the last of it that came
/// back, is kept.
const SETTLED: Duration = Duration::from_secs(5);
/// Memory that comes back little by little is waited for so long.
const TRICKLE_LIMIT: Duration = Duration::from_secs(30);
/// Told where there is room enough, and what a service holds that has unloaded before cannot be seen.
const UNSEEN: &str =
    "nothing came back; it has unloaded before, and the driver does not tell what it holds";
/// Who calls may tell so much later that the time of a call is over.
const GRACE: Duration = Duration::from_secs(1);
/// A service that somebody looks after is watched this long for its return. Most supervisors
/// wait a second or three.
const KEEPER_LIMIT: Duration = Duration::from_secs(4);
/// systemd may take this long to notice that a unit was killed.
const KILLED_LIMIT: Duration = Duration::from_secs(10);

/// What came of an eviction.
pub struct EvictedBy {
    /// What was done at last, a stop or an unload; `None` where it had unloaded before.
    pub step: Option<Step>,
    /// What a service that has unloaded still holds, where the driver tells.
    pub keeps: Option<Mb>,
}

/// Evicts a service; `required` is what the plan will start.
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

/// Remarks in one.
fn joined(notes: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    notes.into_iter().flatten().reduce(|a, b| format!("{a}; {b}"))
}

/// Stops it and says what was remarkable. Whether it works is asked as late as it can be.
fn stop(eviction: &Eviction, batches: &Batches<bool>, context: &Context) -> Result<Option<String>> {
    // An unload call that an interruption cut short has failed, too, and is no reason to stop it.
    context.stop.check()?;
    let service = context.service(&eviction.service);
    let force = eviction.how == EvictHow::Kill;
    let limit = service.stop_timeout;
    match &service.manager {
        Manager::Containers(_) => {
            let cut = drain::cut_off(eviction, context)?;
            let stop = |services: &[&Service]| match drain::once_more(services, force, context) {
                Ok(_) => contained::stop(services, force, context),
                Err(failure) => services.iter().map(|_| Err(failure.clone())).collect(),
            };
            let killed = match batches.get(service.name.as_str()) {
                Some(batch) => batch.result(&service.name, stop)?,
                None => stop(&[service]).remove(0)?,
            };
            let limit = contained::stop_limit(service, context.before.managed(&service.name));
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
                        return Ok(joined([cut, end_leftovers(service, unit, *user, context)?]));
                    }
                    // Who may not stop it may not kill it either.
                    Err(failure) if failure.code == Code::Permission => return Err(failure),
                    Err(_) => {}
                }
            }
            systemd::kill(unit, *user, KILLED_LIMIT, context.stop)?;
            end_leftovers(service, unit, *user, context)?;
            let killing = (!force).then(|| format!("not gone within {}, killed", Span(limit)));
            Ok(joined([cut, killing]))
        }
        Manager::Native(native) => stop_native(eviction, native, context),
    }
}

/// Ends what a unit that has stopped has left in its control group (KillMode=process). Fails where it
/// is up again, or where that cannot be told: what lives in there then may be no leftover.
fn end_leftovers(
    service: &Service,
    unit: &str,
    user: bool,
    context: &Context,
) -> Result<Option<String>> {
    let see_it_down = || match &systemd::show(&[unit], user, context.stop)()?[unit].presence {
        Presence::Up(_) => Err(systemd::started_again(&service.name, unit, user, context.stop)),
        _ => Ok(()),
    };
    if systemd::is_started_again(unit, user, context.stop) {
        let deadline = Instant::now() + KEEPER_LIMIT;
        while Instant::now() < deadline {
            see_it_down()?;
            context.pause()?;
        }
    }
    let at = context.config.place_of(&service.name).expect("a service of the configuration");
    let groups = &context.before.managed[at].control_groups;
    let left = || groups.iter().flat_map(|path| group::in_control_group(path)).collect::<Vec<_>>();
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
    let Members { proven: targets, unproven: bystanders, keeper } = members(&[]);
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
    if let Some(keeper) = keeper {
        see_it_stay_gone(service, &keeper, &bystanders, || members(&[]), context)?;
    }
    let killing = killed.then(|| format!("not gone within {}, killed", Span(service.stop_timeout)));
    Ok(joined([cut, note, killing]))
}

/// Watches for a while whether a service that has a keeper comes back.
fn see_it_stay_gone(
    service: &Service,
    keeper: &Keeper,
    bystanders: &[Pid],
    members: impl Fn() -> Members,
    context: &Context,
) -> Result<()> {
    let deadline = Instant::now() + KEEPER_LIMIT;
    while keeper.is_there() && Instant::now() < deadline {
        let Members { proven, unproven, .. } = members();
        let is_new = |pid: &&Pid| !bystanders.contains(pid);
        let back =
            proven.first().map(|id| id.pid).or_else(|| unproven.iter().find(is_new).copied());
        if let Some(pid) = back {
            let message = format!(
                "{}: {keeper} started it again as soon as it was stopped, as process {pid}",
                service.name
            );
            return Err(Failure::new(Code::StopFailed, message)
                .hint(format!("{}; then run the command again", keeper.remedy())));
        }
        context.pause()?;
    }
    Ok(())
}

/// Forgets what was recorded of a native service's starts, nothing of which is left.
fn forget_starts(service: &Service, config: &Config) {
    let Ok(state_dir) = config.state_dir() else { return };
    let at = config.place_of(&service.name);
    for start in starts::recorded(state_dir) {
        if start.service_of(&config.services, config.path.as_deref()) == at {
            starts::forget(state_dir, &start.service);
        }
    }
}

/// The card before a service is asked to unload, and what is the service's on it.
struct Footprint {
    vram: Vram,
    own: HashSet<Pid>,
    /// `None` where the driver does not tell who holds what.
    memory: Option<Mb>,
}

impl Footprint {
    /// Looks before the service is asked: a process that ends by it has its memory on the way back.
    fn of(service: &Service, context: &Context) -> std::result::Result<Footprint, String> {
        let no_reading = |_| "without NVML gpuctl cannot see whether it unloads".to_owned();
        let vram = context.vram().map_err(no_reading)?;
        let known = &context.before.managed;
        let vram = attributed(vram, context.config, &[service], known, context.stop);
        let own = vram.of_service(&service.name).map(|process| process.pid).collect();
        let mut held = Footprint { vram, own, memory: None };
        held.memory = held.at(&held.vram);
        Ok(held)
    }

    /// What the same processes hold in another reading, but for those that are ending.
    fn at(&self, vram: &Vram) -> Option<Mb> {
        let is_own = |process: &&GpuProcess| {
            self.own.contains(&process.pid) && !process::is_ending(process.pid)
        };
        vram.processes.as_ref()?.iter().filter(is_own).map(|process| process.memory).sum()
    }

    /// What the same processes keep, and `others` of the service.
    fn remnant(&self, held_mb: Option<Mb>, others: &[Pid]) -> Remnant {
        let living = self.own.iter().chain(others).filter(|pid| !process::is_ending(**pid));
        let processes = living.filter_map(|pid| process::Id::of(*pid)).collect();
        Remnant { held_mb, processes }
    }
}

/// What came of an unload.
struct Unloaded {
    /// What it keeps, where the driver tells.
    keeps: Option<Mb>,
    note: Option<String>,
}

/// Requests an unload and watches for it. Returns what it keeps, as far as the driver tells, with a remark,
/// or why the unload came to nothing. What has come to it meanwhile is waited for before it is asked again.
fn ask_to_unload(
    service: &Service,
    eviction: &Eviction,
    required: Mb,
    held: &Footprint,
    context: &Context,
) -> Result<std::result::Result<Unloaded, String>> {
    let before = context.before.service(&service.name);
    if let Some(cut) = drain::cut_off(eviction, context)? {
        return Ok(Err(cut));
    }
    let mut begun = Instant::now();
    let mut changed = begun;
    let mut least = held.memory;
    let mut calls = 0;
    loop {
        let is_settled = changed.elapsed() >= SETTLED;
        let is_over = begun.elapsed() >= if is_settled { UNLOAD_LIMIT } else { TRICKLE_LIMIT };
        // One that has kept something is asked once more.
        let is_due = calls == 0 || (calls == 1 && begun.elapsed() >= UNLOAD_LIMIT / 2);
        if (is_due || is_over) && drain::once_more(&[service], false, context)? {
            (begun, calls) = (Instant::now(), 0);
            continue;
        }
        if is_due {
            calls += 1;
            if let Err(failed) = request_unload(service, context)? {
                return Ok(Err(format!("its unload call failed: {}", failed.why)));
            }
            changed = Instant::now();
        }
        let now = match context.vram() {
            Ok(now) => now,
            Err(why) => return Ok(Err(why)),
        };
        let holds = held.at(&now);
        if holds < least {
            (least, changed) = (holds, Instant::now());
        }
        let is_known = held.memory.is_some() && holds.is_some();
        let (is_gone, freed, has_room) = match (held.memory, holds) {
            (Some(held), Some(holds)) => {
                (holds <= service.residue(None), held.saturating_sub(holds), false)
            }
            // Where the driver does not tell who holds what, there is only the room.
            _ => {
                let free = |vram: &Vram| vram.free.unwrap_or_default();
                let room = free(&now).saturating_sub(context.config.gpu.reserve);
                let freed = free(&now).saturating_sub(free(&held.vram));
                (freed > Mb(0) && room >= required, freed, room >= required)
            }
        };
        if is_gone || (is_over && freed > Mb(0)) {
            if !is_known || (!is_gone && is_settled) {
                let remnant = held.remnant(holds, before.pids());
                Notes::keep_unload(context.config, &service.name, &remnant);
            }
            return Ok(Ok(Unloaded { keeps: holds, note: None }));
        }
        if is_over && has_room && before.has_unloaded_before {
            return Ok(Ok(Unloaded { keeps: None, note: Some(UNSEEN.to_owned()) }));
        }
        if is_over {
            let limit = Span(UNLOAD_LIMIT);
            return Ok(Err(format!("its memory did not come back within {limit}")));
        }
        context.pause()?;
    }
}

/// Makes the calls that request an unload, one to each of its places side by side, which are waited for
/// no longer than one may take; an interruption ends the wait.
fn request_unload(service: &Service, context: &Context) -> Result<Called<()>> {
    let located = service.at(&context.before.managed(&service.name).addresses());
    if located.is_empty() {
        return Ok(Err(NoAnswer::other(NO_ADDRESS)));
    }
    let deadline = Instant::now() + UNLOAD_LIMIT + GRACE;
    let calls = located.into_iter().filter_map(|it| Some((it.unload?, it.headers)));
    let requesting = calls
        .map(|(call, headers)| Aside::begin(move || server::unload(&call, &headers, UNLOAD_LIMIT)))
        .collect::<Result<Vec<_>>>()?;
    let answers = requesting.iter().map(|call| call.result_by(context.stop, deadline));
    let answers: Vec<_> = answers.collect();
    context.stop.check()?;
    let silence = || Err(NoAnswer::silence("it is not answered in time"));
    Ok(answers.into_iter().try_for_each(|answer| answer.unwrap_or_else(silence)))
}
