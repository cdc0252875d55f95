//! Makes one service ready: starts it, and watches until it answers. Its death, the end of its
//! start command and the answer of its health check all wake the watch at once.

mod answer;
mod explain;
mod wake;

use super::batch::Batches;
use super::contained;
use super::{Context, LONGEST, SHORTEST};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Healthy, Managed, Manager, Observed, Presence, Running, Service, Trouble};
use crate::observe::{Look, gpu_pids, look};
use crate::plan::StartHow;
use crate::screen::text::span;
use crate::step::{Action, Step};
use crate::world::docker::Events;
use crate::world::native::{self, Started};
use crate::world::process::mains_in;
use crate::world::systemd;
use crate::world::wait::{Event, Handle, Stop, Woken, wait};
use std::time::{Duration, Instant};
use wake::has_put_aside;

/// Time that a service without a health check has to live to count as ready.
const SETTLING: Duration = Duration::from_millis(500);

/// Longest time between the start of a service's containers, in a call that it shares with others,
/// and the beginning of its own watch.
const LATE: Duration = Duration::from_secs(10);

/// Resolution in which the kernel reports when a process began: a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);

/// Number of restarts by its manager at which a service counts as looping.
const RESTARTS: u64 = 2;

/// Makes a service ready, and returns the step that did it, or `None` if the service was found
/// ready.
pub fn make_ready(
    service: &Service,
    how: StartHow,
    batches: Option<&Batches<Managed>>,
    stop: &Stop,
    context: &Context,
) -> Result<Option<Step>> {
    stop.check()?;
    let mut watch = Watch::new(service, stop, context);
    let begin = |action| context.progress.begin(action, &service.name, service.start_timeout);
    let step = match how {
        StartHow::Wake if !watch.is_asleep()? && !has_put_aside(service, context) => {
            return Ok(None);
        }
        StartHow::Wake => begin(Action::Wake),
        StartHow::Await => begin(Action::Await),
        StartHow::Start => begin(Action::Start),
    };
    match how {
        StartHow::Wake => {
            watch.look_after_it()?;
            return watch.wake().map(|()| Some(step.done(None)));
        }
        StartHow::Await => {}
        StartHow::Start => watch.start(batches)?,
    }
    let mut ready = watch.until_ready();
    // The process that was awaited because it might be the service has ended: it was another one,
    // or has left nothing of the service.
    let was_there = context.before.service(&service.name).is_alive();
    if how == StartHow::Await
        && !was_there
        && ready.as_ref().is_err_and(is_death)
        && watch.is_gone()
    {
        watch = Watch::new(service, stop, context);
        watch.start(batches)?;
        ready = watch.until_ready();
    }
    ready?;
    if let Some(started) = &mut watch.started {
        started.record_ready()?;
    }
    let slept = watch.is_asleep()?;
    if slept {
        watch.wake()?;
    }
    if service.warm_up.is_some() {
        watch.warm_up()?;
    }
    Ok(Some(step.done(slept.then(|| "woken from sleep".to_owned()))))
}

/// Reports whether a service's containers, or some of them, do not run.
fn has_to_start(presence: &Presence) -> bool {
    match presence {
        Presence::Down(_) => true,
        Presence::Up(running) => matches!(running.trouble, Some(Trouble::Incomplete(_))),
        _ => false,
    }
}

fn is_death(failure: &Failure) -> bool {
    failure.code == Code::StartFailed
}

/// Returns the failure of a service that was ready and is not any more.
pub fn lost(service: &Service, observed: &Observed, context: &Context) -> Failure {
    let why = match (&observed.detail, observed.is_alive()) {
        (Some(detail), _) => format!("it was ready and is no longer: {detail}"),
        (None, true) => "it was ready and is no longer".to_owned(),
        (None, false) => "it was ready and has ended since".to_owned(),
    };
    Watch::new(service, context.stop, context).died(&why)
}

struct Watch<'a> {
    service: &'a Service,
    stop: &'a Stop,
    context: &'a Context<'a>,
    /// The start of a native service, which reports what became of the start command.
    started: Option<Started>,
    /// The service's containers, as they were when they were started.
    managed: Option<Managed>,
    /// Copies of the service, one for each address that it is reached at; empty while these are to
    /// be found out.
    located: Vec<Service>,
    /// The engine's events of the containers, which are listened to while their own HEALTHCHECK is
    /// waited for.
    events: Option<Events>,
    /// Why the service's manager could not be asked, if the last attempt failed.
    away: Option<Failure>,
    /// Number of restarts by the service's manager when the watch began.
    restarts: Option<u64>,
    /// Processes of the service whose death wakes the watch.
    deaths: Vec<Handle>,
    begun: Instant,
}

impl<'a> Watch<'a> {
    fn new(service: &'a Service, stop: &'a Stop, context: &'a Context<'a>) -> Watch<'a> {
        Watch {
            service,
            stop,
            context,
            started: None,
            managed: None,
            located: Vec::new(),
            events: None,
            away: None,
            restarts: None,
            deaths: Vec::new(),
            begun: Instant::now(),
        }
    }

    fn start(&mut self, batches: Option<&Batches<Managed>>) -> Result<()> {
        let limit = self.service.start_timeout;
        match &self.service.manager {
            Manager::Native(native) => {
                let config = self.context.config;
                let started = native::start(
                    self.service,
                    native,
                    config.path.as_deref(),
                    config.state_dir()?,
                    self.stop,
                )?;
                self.started = Some(started);
                Ok(())
            }
            Manager::Containers(_) => {
                let start =
                    |services: &[&Service]| contained::start(services, self.stop, self.context);
                let batch = batches.and_then(|all| all.get(self.service.name.as_str()));
                let managed = match batch {
                    Some(batch) => batch.result(&self.service.name, start),
                    None => start(&[self.service]).remove(0),
                };
                // A start by gpuctl makes the engine count restarts from zero.
                self.restarts = Some(0);
                managed.map(|managed| self.managed = Some(managed))
            }
            Manager::Systemd { unit, user } => systemd::start(unit, *user, limit, self.stop),
        }
        .map_err(|failure| match failure.code {
            // The manager waits for the service itself, and was waited for long enough.
            Code::Unavailable
                if self.begun.elapsed() >= limit
                    && matches!(self.service.manager, Manager::Systemd { .. }) =>
            {
                self.timed_out(&failure.message)
            }
            Code::StartFailed => {
                let told = self.died(&failure.message);
                Failure { hints: [failure.hints, told.hints].concat(), ..told }
            }
            _ => Failure {
                message: format!("{}: {}", self.service.name, failure.message),
                ..failure
            },
        })
    }

    fn until_ready(&mut self) -> Result<()> {
        let deadline = self.begun + self.service.start_timeout;
        let mut why = "its health check has not finished".to_owned();
        loop {
            let asked = Instant::now();
            let healthy = match &self.service.health {
                Some(_) => self.ask(deadline)?,
                None => self.settle()?,
            };
            match healthy {
                Some(Healthy::Yes) if self.answers_itself()? => return Ok(()),
                Some(Healthy::Yes) => {}
                Some(Healthy::No(reason) | Healthy::Silent(reason)) => why = reason,
                None => {
                    // A check that hangs says more than those before it.
                    let silent = asked.elapsed();
                    if silent > LONGEST {
                        why = format!("its health check has not answered for {}", span(silent));
                    }
                    return Err(self.timed_out(&why));
                }
            }
            if self.deaths.is_empty() && !self.sees_containers() {
                let look = self.look_after_it()?;
                if let Presence::Up(running) = look.presence(&self.service.name)
                    && let Some(reason) = running.not_begun()
                {
                    reason.clone_into(&mut why);
                }
            }
            let pause = (self.begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
            if !self.sleep((Instant::now() + pause).min(deadline))? && Instant::now() >= deadline {
                return Err(self.timed_out(&why));
            }
        }
    }

    /// Decides about a service without a health check: by what its manager says of its health, or
    /// by whether it stays alive for a moment.
    fn settle(&mut self) -> Result<Option<Healthy>> {
        if let Some(healthy) = self.hear()? {
            return Ok(Some(healthy));
        }
        if self.sees_containers() {
            let settled = Instant::now() + SETTLING;
            let mut is_quiet = true;
            // A death is looked into; without one there is nothing to look at before the last look.
            while self.sleep(settled)? {
                is_quiet = false;
            }
            if is_quiet {
                return Ok(Some(Healthy::Yes));
            }
        }
        let look = self.look_after_it()?;
        if let Presence::Up(Running { own_health: Some(healthy), .. }) =
            look.presence(&self.service.name)
        {
            return Ok(Some(healthy));
        }
        let settled = Instant::now() + SETTLING;
        // A death wakes the watch, and is looked into.
        while self.sleep(settled)? {}
        let name = &self.service.name;
        match self.look_after_it()?.presence(name) {
            // A service that its manager has started again, or is about to, does not stay alive.
            Presence::Up(Running { restarts, trouble, .. })
                if Some(restarts) != self.restarts || trouble.is_some() =>
            {
                Err(self.died("ended at once, and its manager keeps restarting it"))
            }
            _ => Ok(Some(Healthy::Yes)),
        }
    }

    /// Finds the main processes of the containers that were started, by their control groups, and
    /// watches them, so that the engine need not be asked. Reports whether it found all of them.
    fn sees_containers(&mut self) -> bool {
        let Some(managed) = &self.managed else { return false };
        let ids: Vec<&str> = managed.containers.iter().map(|one| one.id.as_str()).collect();
        let pids = mains_in(&ids);
        self.deaths = pids.iter().filter_map(|pid| Handle::open(*pid)).collect();
        self.deaths.retain(|handle| !handle.has_ended());
        !ids.is_empty() && self.deaths.len() == ids.len()
    }

    /// Sleeps until the deadline unless something happens to the service; reports whether anything
    /// did.
    fn sleep(&mut self, deadline: Instant) -> Result<bool> {
        Ok(self.wait_for(None, deadline)? == Woken::Event)
    }

    /// Waits until the deadline for `event` or for news of the service, which is looked into before
    /// this returns.
    fn wait_for(&mut self, event: Option<&Event>, deadline: Instant) -> Result<Woken> {
        let mut watched = Vec::new();
        watched.extend(event.map(Event::fd));
        watched.extend(self.deaths.iter().map(Handle::fd));
        watched.extend(self.started.iter().filter_map(Started::ended).map(Handle::fd));
        let woken = wait(&watched, self.stop, deadline);
        match woken {
            Woken::Stopped => self.stop.check()?,
            Woken::Event if event.is_none_or(|event| !event.happened()) => {
                self.look_after_it()?;
            }
            Woken::Event | Woken::TimedOut => {}
        }
        Ok(woken)
    }

    /// Reports whether no process or container is left that is the service, or that may be.
    fn is_gone(&self) -> bool {
        let (service, context) = (self.service, self.context);
        let on_gpu = || gpu_pids(&context.vram().unwrap_or_default());
        let look = look(context.config, &[service], &context.before.managed, self.stop, on_gpu);
        matches!(look.presence(&service.name), Presence::Down(_))
            && look.unproven(&service.name).is_empty()
    }

    /// Reports whether the service's containers have ended because their engine was restarted after
    /// it had started them.
    fn was_ended_with_its_engine(&self) -> bool {
        let own = self.managed.iter().flat_map(|managed| &managed.containers);
        let own = own.filter(|one| !one.setup.is_podmans);
        let ids: Vec<&str> = own.map(|one| one.id.as_str()).collect();
        let engine = self.context.engine(self.stop);
        !ids.is_empty() && engine.has_forgotten_start(&ids, self.begun.elapsed() + LATE)
    }

    /// Asks the manager whether the service is still coming up, and if not, fails with what the
    /// service left behind.
    fn look_after_it(&mut self) -> Result<Look<'a>> {
        let (service, context) = (self.service, self.context);
        // This is asked before the look: what ends after it is judged by the next one.
        let has_ended = self.started.as_mut().is_some_and(Started::has_ended);
        let on_gpu = || gpu_pids(&context.vram().unwrap_or_default());
        let look = look(context.config, &[service], &context.before.managed, self.stop, on_gpu);
        let presence = look.presence(&service.name);
        self.away = None;
        if has_to_start(&presence) && self.was_ended_with_its_engine() {
            self.deaths.clear();
            return self.start(None).map(|()| look);
        }
        // A service that has run for longer than this start was just being started by a gpuctl that
        // was killed: before it executed its program, it could not be seen.
        let is_anothers = matches!(&presence, Presence::Up(Running { age: Some(age), .. })
            if *age > self.begun.elapsed() + TICK);
        if is_anothers {
            self.started = None;
        }
        if let Some(started) = self.started.as_mut().filter(|_| has_ended) {
            let mut is_there = matches!(presence, Presence::Up(_));
            if !is_there && started.has_succeeded() {
                let panes = look.panes_since(&service.name, started.since());
                started.record_more(panes.marked)?;
                is_there = panes.may_come;
            }
            if let Err(failure) = started.check(service, is_there) {
                return Err(self.name_container(failure, &look));
            }
        }
        self.deaths.clear();
        match presence {
            Presence::Up(running) => {
                let restarts =
                    running.restarts.saturating_sub(*self.restarts.get_or_insert(running.restarts));
                if let (Some(Trouble::CrashLoop(how)), true) =
                    (&running.trouble, restarts >= RESTARTS)
                {
                    return Err(self.died(&format!("restarts in a loop: {how}")));
                }
                if let Some(Trouble::Incomplete(which)) = &running.trouble {
                    return Err(self.died(which));
                }
                let handles = running.pids.iter().filter_map(|pid| Handle::open(*pid));
                self.deaths = handles.filter(|handle| !handle.has_ended()).collect();
                Ok(look)
            }
            // The start command may still be putting the service into the background.
            Presence::Down(_) if self.started.is_some() => Ok(look),
            // Somebody is starting the service by hand, as far as gpuctl can tell.
            Presence::Down(_) if !look.unproven(&service.name).is_empty() => Ok(look),
            Presence::Down(ending) => {
                Err(self.died(&ending.unwrap_or_else(|| "exited before it was ready".to_owned())))
            }
            // An engine that is away for a moment says nothing about its containers.
            Presence::Unknown(failure)
                if failure.code == Code::Unavailable
                    && matches!(service.manager, Manager::Containers(_)) =>
            {
                self.stop.check()?;
                self.away = Some(failure);
                Ok(look)
            }
            Presence::Stopping(detail) => Err(self.died(&detail)),
            Presence::Missing(failure) | Presence::Dead(failure) | Presence::Unknown(failure) => {
                self.stop.check()?;
                Err(Failure {
                    message: format!("{}: {}", service.name, failure.message),
                    ..failure
                })
            }
        }
    }
}
