//! Asks a service to unload, and watches how much of its memory comes back.

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

/// Time that an unload may take to show, and that a call for it may take to be answered.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Time after which memory that is still held counts as kept. It runs from the last call that was
/// answered and from the last memory that came back.
const SETTLED: Duration = Duration::from_secs(5);
/// Time for which memory that comes back little by little is waited for.
const TRICKLE_LIMIT: Duration = Duration::from_secs(30);
/// Note on an unload that left room enough, if the service has unloaded before and what it holds
/// cannot be seen.
const UNSEEN: &str =
    "nothing came back; it has unloaded before, and the driver does not tell what it holds";
/// Time by which the thread that makes a call may be late to report that the call's time is over.
const GRACE: Duration = Duration::from_secs(1);

/// The card before a service is asked to unload, and which processes on it are the service's.
pub struct Footprint {
    vram: Vram,
    own: HashSet<Pid>,
    /// Memory that these processes hold, or `None` if the driver does not report it for each
    /// process.
    pub memory: Option<Mb>,
}

impl Footprint {
    /// Reads the card before the service is asked, because a process that ends by the unload has
    /// its memory on the way back. The error says why there is no reading.
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

    /// Returns what the same processes hold in another reading, except for those that are ending.
    fn at(&self, vram: &Vram) -> Option<Mb> {
        let is_own = |process: &&GpuProcess| {
            self.own.contains(&process.pid) && !process::is_ending(process.pid)
        };
        vram.processes.as_ref()?.iter().filter(is_own).map(|process| process.memory).sum()
    }

    /// Returns what these processes and `others` of the service keep, and which of them live.
    fn remnant(&self, held_mb: Option<Mb>, others: &[Pid]) -> Remnant {
        let living = self.own.iter().chain(others).filter(|pid| !process::is_ending(**pid));
        let processes = living.filter_map(|pid| process::Id::of(*pid)).collect();
        Remnant { held_mb, processes }
    }
}

/// What came of an unload.
pub struct Unloaded {
    /// Memory that the service keeps, if the driver reports it.
    pub keeps: Option<Mb>,
    pub note: Option<String>,
}

/// Requests an unload and watches for it. Returns what the service keeps, with a remark, or why the
/// unload came to nothing. Work that has come in meanwhile is waited for before the service is
/// asked again.
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
        // A service that has kept something is asked once more.
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
            // If the driver does not report what each process holds, only the room counts.
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

/// Makes the calls that request an unload, one to each of the service's addresses, side by side.
/// They are waited for no longer than one may take; an interruption ends the wait.
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
