//! Waits for memory: a stopped service has given its memory back when the driver says so, not when
//! its process or port is gone.

use super::Context;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{GpuProcess, Mb, Pid, Snapshot, Vram};
use crate::plan::Plan;
use crate::progress::Underway;
use crate::world::process;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Time within which the memory of what was evicted has to come back.
pub const LIMIT: Duration = Duration::from_secs(15);

/// Waits until what the evicted services held is free, and then makes sure that there is room for
/// what the plan starts. Returns the last reading.
pub fn wait_for_memory(
    plan: &Plan,
    stopped: &[String],
    unloaded: &[String],
    before: &Snapshot,
    step: &mut Underway,
    context: &Context,
) -> Result<Vram> {
    let expected = Expectation::of(plan, stopped, unloaded, before);
    let deadline = Instant::now() + LIMIT;
    loop {
        let now = context.vram().map_err(|why| {
            Failure::new(
                Code::Unavailable,
                format!("cannot tell whether the memory is back: {why}"),
            )
        })?;
        if let Some(held) = expected.held {
            step.memory(expected.back(&now).min(held), held);
        }
        let room = now.free.unwrap_or_default().saturating_sub(context.config.gpu.reserve);
        if expected.is_met(&now, room >= plan.required) {
            return if room >= plan.required { Ok(now) } else { Err(no_room(plan, &now, room)) };
        }
        if Instant::now() >= deadline {
            return Err(expected.unmet(&now));
        }
        context.pause()?;
    }
}

/// What has to disappear from the card.
struct Expectation<'a> {
    stopped: &'a [String],
    /// The processes on the card of the services that were stopped or have unloaded, and dead ones
    /// if the plan waits for their memory.
    pids: HashSet<Pid>,
    /// Members of `pids` that may stay, with what they keep, because their service has unloaded.
    may_stay: HashSet<Pid>,
    /// Memory that is to come back altogether, or `None` if the driver does not report it.
    held: Option<Mb>,
    /// Memory in use that was listed for no other process before anything was stopped, in MB.
    unlisted: i128,
}

impl Expectation<'_> {
    fn of<'a>(
        plan: &Plan,
        stopped: &'a [String],
        unloaded: &[String],
        before: &Snapshot,
    ) -> Expectation<'a> {
        let is_dead = |process: &GpuProcess| process.is_ending && process.service.is_none();
        let is_of = |process: &GpuProcess, services: &[String]| {
            process.service.as_ref().is_some_and(|name| services.contains(name))
        };
        let owned = |process: &&GpuProcess| {
            is_of(process, stopped)
                || is_of(process, unloaded)
                || (plan.awaits_dead && is_dead(process))
        };
        let listed = || before.vram.processes.iter().flatten();
        let may_stay = listed().filter(|process| is_of(process, unloaded)).map(|one| one.pid);
        let pids = before
            .vram
            .processes
            .iter()
            .flatten()
            .filter(owned)
            .map(|process| process.pid)
            .collect();
        let is_done = |name| stopped.contains(name) || unloaded.contains(name);
        let evictions = plan.evict.iter().filter(|eviction| is_done(&eviction.service));
        Expectation {
            stopped,
            held: evictions
                .map(|eviction| eviction.frees)
                .chain(plan.awaits_dead.then(|| Some(before.vram.dead())))
                .sum(),
            unlisted: unlisted(&before.vram, &pids),
            may_stay: may_stay.collect(),
            pids,
        }
    }

    /// Reports whether a process belongs to a service that has unloaded and lives, so that it keeps
    /// its context.
    fn stays(&self, process: &GpuProcess) -> bool {
        self.may_stay.contains(&process.pid) && !process::is_ending(process.pid)
    }

    /// Reports whether the memory is back. Other processes come and go meanwhile, so theirs is
    /// taken out of the account. A tenth of the size may stay, because the driver rounds and the
    /// figures of processes do not add up to the total.
    fn is_met(&self, now: &Vram, has_room: bool) -> bool {
        let own =
            || now.processes.iter().flatten().filter(|process| self.pids.contains(&process.pid));
        let still_there = own().any(|process| !self.stays(process));
        let kept: Option<Mb> =
            own().filter(|process| self.stays(process)).map(|process| process.memory).sum();
        let is_back = match self.held.zip(kept) {
            Some((held, kept)) => self.back(now).0 * 10 >= held.saturating_sub(kept).0 * 9,
            None => has_room,
        };
        !still_there && is_back
    }

    /// Returns how much of the memory that was in use has come back.
    fn back(&self, now: &Vram) -> Mb {
        let back = self.unlisted - unlisted(now, &self.pids);
        Mb(u64::try_from(back).unwrap_or(0))
    }

    fn unmet(&self, now: &Vram) -> Failure {
        let holders: Vec<&GpuProcess> = now
            .processes
            .iter()
            .flatten()
            .filter(|process| self.pids.contains(&process.pid))
            .collect();
        let told: Vec<String> = holders.iter().map(|process| process.to_string()).collect();
        let who = match told.is_empty() {
            true => "no process is listed for it any more".to_owned(),
            false => format!("still held by {}", told.join(", ")),
        };
        let whose = match self.stopped {
            [] => "processes that have ended".to_owned(),
            stopped => stopped.join(", "),
        };
        Failure::new(
            Code::StopFailed,
            format!("the memory of {whose} did not come back within {}: {who}", Span(LIMIT)),
        )
        .hint("`nvidia-smi` shows what holds it; a process that is gone but still listed is waiting in the driver, see `dmesg`")
        .detail("holders", holders.iter().map(|process| process.detail()).collect::<Vec<_>>())
    }
}

/// Returns the memory in use that is listed for no process but those in `own`, in MB.
fn unlisted(vram: &Vram, own: &HashSet<Pid>) -> i128 {
    let others = vram.processes.iter().flatten().filter(|process| !own.contains(&process.pid));
    let listed: i128 = others.map(|process| i128::from(process.memory.unwrap_or_default().0)).sum();
    i128::from(vram.used.unwrap_or_default().0) - listed
}

/// Returns the failure of a plan whose memory came back and was taken by others meanwhile.
pub fn no_room(plan: &Plan, now: &Vram, room: Mb) -> Failure {
    let holders: Vec<&GpuProcess> = now.processes.iter().flatten().collect();
    let told: Vec<String> = holders.iter().map(|process| process.to_string()).collect();
    let on_the_card = match told.is_empty() {
        true => String::new(),
        false => format!("; on the card are: {}", told.join(", ")),
    };
    Failure::new(
        Code::InsufficientVram,
        format!("{} is needed, but only {room} is available now{on_the_card}", plan.required),
    )
    .hint("something else took the memory that was freed; nothing was started")
    .detail("needed_mb", plan.required.0)
    .detail("available_mb", room.0)
    .detail("blockers", holders.iter().map(|process| process.detail()).collect::<Vec<_>>())
}
