//! Carries a plan out and never decides: evictions side by side, the wait for their memory, starts
//! side by side. What was done is reported even if the work stops half-way.

mod batch;
mod contained;
pub mod drain;
mod evict;
mod executor;
mod last_look;
mod need;
mod ready;
mod reclaim;
mod restore;

pub use executor::Executor;
pub use need::NeedWatch;
pub use restore::restore_for_another;

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Manager, Mb, Presence, Service, Snapshot, Source, Vram};
use crate::plan::{EvictHow, Eviction, Plan, Start, StartHow};
use crate::step::{Action, Step};
use crate::world::docker::Docker;
use crate::world::wait::{Event, Stop, wait};
use batch::Batch;
use contained::in_order;
use drain::DrainClock;
use evict::EvictedBy;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

/// Shortest pause between two looks at something that is waited for. The pauses grow as the wait
/// goes on, up to `LONGEST`.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest pause between two looks at something that is waited for.
const LONGEST: Duration = Duration::from_secs(1);

/// Pause between two readings of the card.
const POLL: Duration = Duration::from_millis(50);

/// What the steps of one plan work with, besides what their executor has.
struct Context<'a> {
    executor: Executor<'a>,
    /// The snapshot that the plan was made from.
    before: &'a Snapshot,
    /// Called at each moment of an eviction, by the thread that carries the eviction out.
    witness: &'a (dyn Fn(Evicting) + Sync),
    /// How long work in flight is waited for, and since when.
    drain: DrainClock,
}

impl<'a> Deref for Context<'a> {
    type Target = Executor<'a>;

    fn deref(&self) -> &Executor<'a> {
        &self.executor
    }
}

/// A moment of an eviction, as it is reported to the witness of a plan.
pub enum Evicting<'a> {
    /// The eviction begins; nothing has been done yet.
    Begins(&'a Eviction),
    /// The eviction has been carried out.
    Ended(&'a Eviction),
}

impl Context<'_> {
    fn service(&self, name: &str) -> &Service {
        let found = self.config.services.iter().find(|service| service.name == name);
        found.expect("a plan names configured services only")
    }

    fn engine<'a>(&'a self, stop: &'a Stop) -> Docker<'a> {
        Docker::of(&self.config.docker, stop)
    }

    /// Waits for the time of the next reading of the card: NVML wakes nobody when memory comes
    /// back.
    fn pause(&self) -> Result<()> {
        wait(&[], self.stop, Instant::now() + POLL);
        self.stop.check()
    }

    fn vram(&self) -> std::result::Result<Vram, String> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).read()
    }
}

/// What was done for a plan, and how it ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stopped: Vec<String>,
    pub unloaded: Vec<String>,
    pub started: Vec<String>,
    pub kept: Vec<String>,
    /// Amount by which free memory rose through the evictions, or `None` if it cannot be measured.
    pub freed: Option<Mb>,
    pub elapsed: Duration,
    pub steps: Vec<Step>,
    pub failure: Option<Failure>,
    /// Memory that services held after they had unloaded, as far as the driver reports it; those
    /// that had unloaded before the plan are included.
    pub keeps: HashMap<String, Mb>,
}

/// Carries the plan out, and returns what was done even if a step fails.
fn execute(plan: &Plan, context: &Context) -> Outcome {
    let begun = Instant::now();
    let keep = |name: &String| Some((name.clone(), context.before.service(name).used?));
    let keeps = plan.unloaded.iter().filter_map(keep).collect();
    let mut outcome = Outcome { kept: plan.kept.clone(), keeps, ..Outcome::default() };
    let result = carry_out(plan, context, &mut outcome);
    outcome.elapsed = begun.elapsed();
    outcome.failure = result.err();
    outcome
}

fn carry_out(plan: &Plan, context: &Context, outcome: &mut Outcome) -> Result<()> {
    context.stop.check()?;
    if !plan.evict.is_empty() || plan.awaits_dead {
        evict_all(&plan.evict, plan.required, context, outcome)?;
        reclaim(plan, context, outcome)?;
    } else {
        outcome.freed = context.before.vram.free.map(|_| Mb(0));
    }
    context.stop.check()?;
    start_all(&plan.start, context, outcome)?;
    match plan.is_empty() {
        // The look that the plan was made from has seen it all.
        true => Ok(()),
        false => see_done(plan, context, outcome),
    }
}

/// Looks until what was done is seen. A service that has loaded again since its unload is evicted
/// once more, and stopped if that does not last either.
fn see_done(plan: &Plan, context: &Context, outcome: &mut Outcome) -> Result<()> {
    let mut how = EvictHow::Unload;
    loop {
        let after = last_look::look(plan, &outcome.stopped, context)?;
        let freed = outcome.freed;
        let evict = evict_again(&after, how, context, outcome)?;
        if evict.is_empty() {
            forget_ended(&after, context, outcome);
            return last_look::has_room(plan, &after, context);
        }
        let context = Context { before: &after, ..*context };
        reclaim(&Plan { evict, ..Plan::default() }, &context, outcome)?;
        outcome.freed = freed;
        how = EvictHow::Stop;
    }
}

/// Removes from the kept services those that have ended meanwhile, of themselves or by what others
/// do (a unit that conflicts with one that was started), and warns of each.
fn forget_ended(now: &Snapshot, context: &Context, outcome: &mut Outcome) {
    outcome.kept.retain(|name| {
        let is_gone = matches!(
            now.service(name).presence,
            Presence::Down(_) | Presence::Missing(_) | Presence::Dead(_)
        );
        let has_ended = is_gone && context.before.service(name).is_alive();
        if has_ended {
            context.progress.warning(&format!("{name} has ended meanwhile, and not by gpuctl"));
        }
        !has_ended
    });
}

/// Evicts the services that have loaded again since their unload, for a job that came in between
/// and is waited for.
fn evict_again(
    now: &Snapshot,
    how: EvictHow,
    context: &Context,
    outcome: &mut Outcome,
) -> Result<Vec<Eviction>> {
    let back = last_look::loaded_again(&outcome.keeps, now, context);
    let evict: Vec<Eviction> = back
        .into_iter()
        .map(|service| Eviction {
            service: service.name.clone(),
            how,
            frees: now.service(&service.name).used,
        })
        .collect();
    for Eviction { service, .. } in &evict {
        context.progress.line(&format!("{service} has loaded again since it was unloaded"));
        for list in [&mut outcome.unloaded, &mut outcome.kept] {
            list.retain(|name| name != service);
        }
        outcome.keeps.remove(service);
    }
    evict_all(&evict, Mb(0), &Context { before: now, ..*context }, outcome)?;
    Ok(evict)
}

/// Evicts services, each as soon as nothing that depends on it is left to evict.
fn evict_all(
    evictions: &[Eviction],
    required: Mb,
    context: &Context,
    outcome: &mut Outcome,
) -> Result<()> {
    let needs = |eviction: &Eviction| &context.before.managed(&eviction.service).needs;
    let dependent: Vec<&Eviction> = evictions.iter().filter(|it| !needs(it).is_empty()).collect();
    let after = |eviction: &&Eviction| {
        let depends = |it: &&&Eviction| needs(it).contains(&eviction.service);
        dependent.iter().filter(depends).map(|it| it.service.as_str()).collect()
    };
    let waves = in_order(evictions.iter().collect(), |it| it.service.as_str(), after);
    // A service that cannot be evicted keeps what it depends on; the others are evicted all the
    // same.
    let (mut failures, mut left) = (Vec::new(), Vec::new());
    for wave in waves {
        let is_free = |it: &&Eviction| after(it).iter().all(|name| !left.contains(name));
        let (free, bound): (Vec<&Eviction>, Vec<&Eviction>) = wave.into_iter().partition(is_free);
        let failed = evict_wave(&free, required, context, outcome);
        left.extend(bound.iter().map(|it| it.service.as_str()));
        left.extend(failed.iter().map(|(name, _)| *name));
        failures.extend(failed.into_iter().map(|(_, failure)| failure));
    }
    first_of(failures, context)
}

/// Returns the first of the failures of steps that ran side by side. The others are shown as
/// warnings, except for those that end all steps alike.
fn first_of(failures: Vec<Failure>, context: &Context) -> Result<()> {
    let is_its_own = |failure: &Failure| {
        !matches!(failure.code, Code::Internal | Code::Interrupted(_) | Code::LockLost)
    };
    let mut failures = failures.into_iter();
    let first = failures.next();
    for failure in failures.filter(is_its_own) {
        context.progress.warning(&failure.to_string());
    }
    first.map_or(Ok(()), Err)
}

/// Evicts services side by side, and returns those that could not be evicted, each with its
/// failure.
fn evict_wave<'a>(
    evictions: &[&'a Eviction],
    required: Mb,
    context: &Context,
    outcome: &mut Outcome,
) -> Vec<(&'a str, Failure)> {
    let ends = evictions.iter().filter(|eviction| eviction.how != EvictHow::Unload);
    let batches =
        Batch::all(contained(ends.map(|eviction| &eviction.service), context), |service| {
            let managed = context.before.managed(&service.name);
            let how = evictions.iter().find(|it| it.service == service.name).map(|it| it.how);
            let limit = contained::stop_limit(service, managed);
            contained::is_stoppable_at_once(managed).then_some((how, limit))
        });
    let results = side_by_side(evictions, |eviction| {
        (context.witness)(Evicting::Begins(eviction));
        let done = evict::evict(eviction, required, &batches, context)?;
        (context.witness)(Evicting::Ended(eviction));
        Ok(done)
    });
    let mut failures = Vec::new();
    for (eviction, result) in evictions.iter().zip(results) {
        match result {
            Ok(EvictedBy { step, keeps }) => {
                let list = match step.as_ref().map(|step| step.action) {
                    Some(Action::Unload) => &mut outcome.unloaded,
                    Some(_) => &mut outcome.stopped,
                    None => &mut outcome.kept,
                };
                list.push(eviction.service.clone());
                outcome.steps.extend(step);
                outcome.keeps.extend(keeps.map(|keeps| (eviction.service.clone(), keeps)));
            }
            Err(failure) => failures.push((eviction.service.as_str(), failure)),
        }
    }
    failures
}

/// Waits for the memory of what was evicted. Services that have loaded again meanwhile are unloaded
/// once more. If an unload gave back too little, the service is stopped after all; this happens at
/// most once.
fn reclaim(plan: &Plan, context: &Context, outcome: &mut Outcome) -> Result<()> {
    let before = context.before;
    if before.vram.source == Source::Estimate {
        return Ok(());
    }
    let mut step = context.progress.begin(Action::Reclaim, "memory", reclaim::LIMIT);
    let mut wait = |outcome: &Outcome| {
        let Outcome { stopped, unloaded, .. } = outcome;
        reclaim::wait_for_memory(plan, stopped, unloaded, before, &mut step, context)
    };
    let is_tight = |result: &Result<Vram>| matches!(result, Err(failure) if failure.code == Code::InsufficientVram);
    let mut result = wait(outcome);
    if is_tight(&result) && !outcome.keeps.is_empty() {
        let now = last_look::see(plan, context)?;
        if !evict_again(&now, EvictHow::Unload, context, outcome)?.is_empty() {
            result = wait(outcome);
        }
    }
    let unloaded = plan.evict.iter().filter(|it| !outcome.stopped.contains(&it.service));
    let stops: Vec<Eviction> =
        unloaded.map(|it| Eviction { how: EvictHow::Stop, ..it.clone() }).collect();
    if is_tight(&result) && !stops.is_empty() {
        context.progress.line("unloading gave back too little; stopping instead");
        let stopping = evict_all(&stops, plan.required, context, outcome);
        for list in [&mut outcome.unloaded, &mut outcome.kept] {
            list.retain(|name| !outcome.stopped.contains(name));
        }
        stopping?;
        result = wait(outcome);
    }
    if is_tight(&result) {
        let mut made_anew = false;
        for name in &outcome.stopped {
            made_anew |= contained::stop_made_anew(context.service(name), context)?;
        }
        if made_anew {
            result = wait(outcome);
        }
    }
    let after = result?;
    outcome.steps.push(step.done(None));
    outcome.freed =
        after.free.zip(before.vram.free).map(|(after, before)| after.saturating_sub(before));
    Ok(())
}

/// Starts services, each when those that it depends on are ready.
fn start_all(starts: &[Start], context: &Context, outcome: &mut Outcome) -> Result<()> {
    let needs = |start: &&Start| {
        context.before.managed(&start.service).needs.iter().map(String::as_str).collect()
    };
    let waves = in_order(starts.iter().collect(), |it| it.service.as_str(), needs);
    waves.iter().try_for_each(|wave| start_wave(wave, context, outcome))
}

fn start_wave(starts: &[&Start], context: &Context, outcome: &mut Outcome) -> Result<()> {
    let failed = Event::new()?;
    let begun = starts.iter().filter(|start| start.how == StartHow::Start);
    let batches = Batch::all(contained(begun.map(|start| &start.service), context), |service| {
        contained::is_startable_at_once(context.before.managed(&service.name)).then_some(())
    });
    let results = side_by_side(starts, |start| {
        let stop = context.stop.or(&failed);
        let result = ready::make_ready(
            context.service(&start.service),
            start.how,
            Some(&batches),
            &stop,
            context,
        );
        // Waiting for the others would only delay the news.
        result.inspect_err(|_| failed.set())
    });
    let mut failures = Vec::new();
    for (start, result) in starts.iter().zip(results) {
        match result {
            Ok(Some(done)) => {
                outcome.kept.retain(|name| *name != start.service);
                outcome.started.push(start.service.clone());
                outcome.steps.push(done);
            }
            // The service was ready already.
            Ok(None) => {}
            Err(failure) => failures.push(failure),
        }
    }
    // A start that was given up because another failed explains nothing, so it comes last.
    failures.sort_by_key(|failure| failure.code == Code::Internal);
    first_of(failures, context)
}

/// Returns those of the named services that are containers.
fn contained<'a>(
    names: impl Iterator<Item = &'a String>,
    context: &'a Context<'a>,
) -> impl Iterator<Item = &'a Service> {
    let services = names.map(|name| context.service(name));
    services.filter(|service| matches!(service.manager, Manager::Containers(_)))
}

/// Runs a step for each item on a thread of its own, and returns the results in the order of the
/// items.
fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    step: impl Fn(&T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    if let [only] = items {
        return vec![step(only)];
    }
    thread::scope(|scope| {
        let step = &step;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || step(item))).collect();
        let panicked = |_| Err(Failure::new(Code::Internal, "a thread of gpuctl panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}
