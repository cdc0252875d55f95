//! Asks a service to unload, and watches what of its memory comes back.

use super::{Context, drain};
use crate::config::Span;
use crate::error::Result;
use crate::model::{GpuProcess, Mb, NO_ADDRESS, Pid, Service, Vram};
use crate::notes::{Notes, Remnant};
use crate::observe::attributed;
use crate::plan::Eviction;
use crate::world::http::NoAnswer;
use crate::world::server::Called;
use crate::world::wait::Aside;
use crate::world::{process, server};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// An unload may take this long to show.
pub const LIMIT: Duration = Duration::from_secs(10);
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

/// The card before a service is asked to unload, and what is the service's on it.
pub struct Footprint {
    vram: Vram,
    own: HashSet<Pid>,
    /// `None` where the driver does not tell who holds what.
    pub memory: Option<Mb>,
}

impl Footprint {
    /// Looks before the service is asked: a process that ends by it has its memory on the way back.
    pub fn of(service: &Service, context: &Context) -> std::result::Result<Footprint, String> {
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
pub struct Unloaded {
    /// What it keeps, where the driver tells.
    pub keeps: Option<Mb>,
    pub note: Option<String>,
}

/// Requests an unload and watches for it. Returns what it keeps, as far as the driver tells, with a remark,
/// or why the unload came to nothing. What has come to it meanwhile is waited for before it is asked again.
pub fn ask_to_unload(
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
        let is_over = begun.elapsed() >= if is_settled { LIMIT } else { TRICKLE_LIMIT };
        // One that has kept something is asked once more.
        let is_due = calls == 0 || (calls == 1 && begun.elapsed() >= LIMIT / 2);
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
            let limit = Span(LIMIT);
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
    let deadline = Instant::now() + LIMIT + GRACE;
    let calls = located.into_iter().filter_map(|it| Some((it.unload?, it.headers)));
    let requesting = calls
        .map(|(call, headers)| Aside::begin(move || server::unload(&call, &headers, LIMIT)))
        .collect::<Result<Vec<_>>>()?;
    let answers = requesting.iter().map(|call| call.result_by(context.stop, deadline));
    let answers: Vec<_> = answers.collect();
    context.stop.check()?;
    let silence = || Err(NoAnswer::silence("it is not answered in time"));
    Ok(answers.into_iter().try_for_each(|answer| answer.unwrap_or_else(silence)))
}
