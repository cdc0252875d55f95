//! Makes one service ready: starts it, and watches until it answers. Its death, the end of its
//! start command and the answer of its health check all wake the watch at once.

use super::Context;
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Health, Healthy, Manager, Observed, Presence, Running, Service, Trouble};
use crate::observe::{Look, gpu_pids, look};
use crate::plan::StartHow;
use crate::redact::mask;
use crate::step::{Action, Step};
use crate::world::health;
use crate::world::http::Fetcher;
use crate::world::native::{self, Started};
use crate::world::ports::local_port;
use crate::world::wait::{Event, Handle, Stop, Woken, wait};
use crate::world::{docker, logs, server, starts, systemd};
use std::time::{Duration, Instant};

/// Health checks follow each other faster at first: a twentieth of the time waited so far keeps
/// what is added to a service's own start below a twentieth of it.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// A service without a health check counts as ready once it has lived this long.
const SETTLING: Duration = Duration::from_millis(500);

/// The kernel tells when a process began to a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);

/// One call may take so long that asks whether a service sleeps.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A manager restarts a service this often before it counts as looping.
const RESTARTS: u64 = 2;

/// `None` where it was found ready.
pub fn make_ready(
    service: &Service,
    how: StartHow,
    stop: &Stop,
    context: &Context,
) -> Result<Option<Step>> {
    stop.check()?;
    let mut watch = Watch {
        service,
        stop,
        context,
        started: None,
        restarts: None,
        deaths: Vec::new(),
        begun: Instant::now(),
    };
    let begin = |action| context.progress.begin(action, &service.name, service.start_timeout);
    let step = match how {
        StartHow::Wake if !is_asleep(service)? => return Ok(None),
        StartHow::Wake => begin(Action::Wake),
        StartHow::Await => begin(Action::Await),
        StartHow::Start => begin(Action::Start),
    };
    match how {
        StartHow::Wake => return wake(service).map(|()| Some(step.done(None))),
        StartHow::Await => {}
        StartHow::Start => watch.start()?,
    }
    watch.until_ready()?;
    if let Some(started) = &mut watch.started {
        started.record_ready()?;
    }
    let slept = is_asleep(service)?;
    if slept {
        wake(service)?;
    }
    Ok(Some(step.done(slept.then(|| "woken from sleep".to_owned()))))
}

/// The failure of a service that was ready and is not any more.
pub fn lost(service: &Service, observed: &Observed, context: &Context) -> Failure {
    let why = match (&observed.detail, observed.is_alive()) {
        (Some(detail), _) => format!("it was ready and is no longer: {detail}"),
        (None, true) => "it was ready and is no longer".to_owned(),
        (None, false) => "it was ready and has ended since".to_owned(),
    };
    let watch = Watch {
        service,
        stop: context.stop,
        context,
        started: None,
        restarts: None,
        deaths: Vec::new(),
        begun: Instant::now(),
    };
    watch.died(&why)
}

/// Whether it was put to sleep by an unload.
fn is_asleep(service: &Service) -> Result<bool> {
    let fetcher = Fetcher::new(CALL_LIMIT);
    let ask = |server| server::is_asleep(server, &service.headers, &fetcher);
    service.server.as_ref().map_or(Ok(false), ask).map_err(|failed| not_woken(service, &failed.why))
}

fn wake(service: &Service) -> Result<()> {
    let wake = |server| server::wake(server, &service.headers, service.start_timeout);
    service.server.as_ref().map_or(Ok(()), wake).map_err(|failed| not_woken(service, &failed.why))
}

fn not_woken(service: &Service, why: &str) -> Failure {
    Failure::new(Code::StartFailed, format!("{}: cannot be woken: {why}", service.name))
        .hint("vLLM sleeps and wakes only in development mode (VLLM_SERVER_DEV_MODE=1, --enable-sleep-mode)")
}

/// The failure of a start command that has started a container, which is no process of its own.
fn of_a_container(failure: Failure, service: &Service, id: &str, stop: &Stop) -> Failure {
    let name = docker::name_of(id, stop).unwrap_or_else(|| id[..12].to_owned());
    let message = format!("{}; it started the container {name}", failure.message);
    Failure { message, ..failure }.hint(format!(
        "a container is managed by its engine: in services.{}, set type = \"docker\" and container = \"{name}\"",
        service.name
    ))
}

struct Watch<'a> {
    service: &'a Service,
    stop: &'a Stop,
    context: &'a Context<'a>,
    /// It tells what became of a native service's start command.
    started: Option<Started>,
    /// Restarts by its manager when the watch began.
    restarts: Option<u64>,
    /// Processes whose death is news.
    deaths: Vec<Handle>,
    begun: Instant,
}

impl<'a> Watch<'a> {
    fn start(&mut self) -> Result<()> {
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
            Manager::Docker { container } => {
                let asked = docker::inspect(&[container], self.stop)()?;
                let paused = |running: &Running| running.trouble == Some(Trouble::Paused);
                match &asked[container].presence {
                    Presence::Up(running) if paused(running) => {
                        docker::unpause(container, self.stop)
                    }
                    _ => docker::start(container, limit, self.stop),
                }
            }
            Manager::Systemd { unit, user } => systemd::start(unit, *user, limit, self.stop),
        }
        .map_err(|failure| match failure.code {
            // A manager that waits for the service itself, and was waited for long enough.
            Code::Unavailable if self.begun.elapsed() >= limit => self.timed_out(&failure.message),
            Code::StartFailed => self.died(&failure.message),
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
            let healthy = match &self.service.health {
                Some(check) => self.ask(check, deadline)?,
                None => self.settle()?,
            };
            match healthy {
                Some(Healthy::Yes) if self.answers_itself()? => return Ok(()),
                Some(Healthy::Yes) => {}
                Some(Healthy::No(reason) | Healthy::Silent(reason)) => why = reason,
                None => return Err(self.timed_out(&why)),
            }
            if self.deaths.is_empty() {
                self.look_after_it()?;
            }
            let pause = (self.begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
            if !self.sleep((Instant::now() + pause).min(deadline))? && Instant::now() >= deadline {
                return Err(self.timed_out(&why));
            }
        }
    }

    /// One health check, abandoned at the deadline (`None`) and cut short by a death.
    fn ask(&mut self, check: &Health, deadline: Instant) -> Result<Option<Healthy>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = left.min(health::TRY_LIMIT);
        let attempt = health::begin(check, &self.service.headers, limit)?;
        loop {
            match self.wait_for(Some(attempt.ended()), deadline)? {
                Woken::TimedOut => return Ok(None),
                _ => {
                    if let Some(healthy) = attempt.take() {
                        return Ok(Some(healthy));
                    }
                }
            }
        }
    }

    /// Decides without a health check: by what its manager says, or that it stays alive for a
    /// moment.
    fn settle(&mut self) -> Result<Option<Healthy>> {
        let look = self.look_after_it()?;
        if let Presence::Up(Running { own_health: Some(healthy), .. }) =
            look.presence(&self.service.name)
        {
            return Ok(Some(healthy));
        }
        let settled = Instant::now() + SETTLING;
        // A death wakes it, and is looked into.
        while self.sleep(settled)? {}
        let name = &self.service.name;
        match self.look_after_it()?.presence(name) {
            // What its manager has started again, or is about to, does not stay alive.
            Presence::Up(Running { restarts, trouble, .. })
                if Some(restarts) != self.restarts || trouble.is_some() =>
            {
                Err(self.died("ended at once, and its manager keeps restarting it"))
            }
            _ => Ok(Some(Healthy::Yes)),
        }
    }

    /// Sleeps until the deadline unless something happens to the service; tells whether it did.
    fn sleep(&mut self, deadline: Instant) -> Result<bool> {
        Ok(self.wait_for(None, deadline)? == Woken::Event)
    }

    /// Waits for `event` or news of the service, which is looked into before this returns.
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

    /// Asks its manager whether it is still coming up, and fails with what it left behind if not.
    fn look_after_it(&mut self) -> Result<Look<'a>> {
        let (service, context) = (self.service, self.context);
        let on_gpu = || gpu_pids(&context.vram().unwrap_or_default());
        let look = look(context.config, &[service], &context.before.managed, self.stop, on_gpu);
        let presence = look.presence(&service.name);
        // What runs for longer than our own start was just being started by a gpuctl that was killed:
        // before it executed its program, it could not be seen.
        let is_anothers = matches!(&presence, Presence::Up(Running { age: Some(age), .. })
            if *age > self.begun.elapsed() + TICK);
        if is_anothers {
            self.started = None;
        }
        if let Some(started) = &mut self.started {
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
                let handles = running.pids.iter().filter_map(|pid| Handle::open(*pid));
                self.deaths = handles.filter(|handle| !handle.has_ended()).collect();
                Ok(look)
            }
            // Its start command may still be putting it into the background.
            Presence::Down(_) if self.started.is_some() => Ok(look),
            // Somebody is starting it by hand, for all that can be told.
            Presence::Down(_) if !look.unproven(&service.name).is_empty() => Ok(look),
            Presence::Down(ending) => {
                Err(self.died(&ending.unwrap_or_else(|| "exited before it was ready".to_owned())))
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

    /// Tells, after a good answer, whether it was the service that gave it.
    fn answers_itself(&mut self) -> Result<bool> {
        let look = self.look_after_it()?;
        let service = self.service;
        let is_up = matches!(look.presence(&service.name), Presence::Up(_));
        match service.health.as_ref().and_then(|check| look.answered_by(service, local_port(check)))
        {
            Some(other) => Err(self.name_container(other.in_the_way_of(service), &look)),
            None => Ok(is_up && look.heard(Healthy::Yes, service) == Healthy::Yes),
        }
    }

    /// Adds which container a native service's start command has started instead of a process.
    fn name_container(&self, failure: Failure, look: &Look) -> Failure {
        let since = self.started.as_ref().map(Started::since);
        match since.and_then(|since| look.container_since(since)) {
            Some(id) => of_a_container(failure, self.service, &id, self.stop),
            None => failure,
        }
    }

    fn died(&self, how: &str) -> Failure {
        self.explain(Failure::new(Code::StartFailed, format!("{}: {how}", self.service.name)))
    }

    fn timed_out(&self, why: &str) -> Failure {
        let limit = self.service.start_timeout;
        let message =
            format!("{}: not ready within {}: {}", self.service.name, Span(limit), mask(why));
        self.explain(Failure::new(Code::Timeout, message)).hint(format!(
            "it was left running; `gpuctl restart {0}` starts it again, `gpuctl stop {0}` stops it, and a larger start_timeout gives it more time",
            self.service.name
        ))
    }

    /// Adds the end of its log, wherever its manager keeps that.
    fn explain(&self, failure: Failure) -> Failure {
        let name = &self.service.name;
        match (&self.service.manager, &self.started) {
            (Manager::Native(_), Some(started)) => started.explain(failure),
            (Manager::Native(_), None) => match self.context.config.state_dir() {
                Ok(state_dir) => {
                    let config = self.context.config.path.as_deref();
                    let from = starts::log_from(state_dir, self.service, config);
                    logs::attach_file(failure, &logs::path_of(state_dir, name), from)
                }
                Err(_) => failure,
            },
            (Manager::Docker { container }, _) => {
                logs::attach(failure, docker::log_tail(container, self.begun.elapsed(), self.stop))
                    .hint(format!("its log: gpuctl logs {name}"))
            }
            (Manager::Systemd { unit, user }, _) => {
                logs::attach(failure, systemd::log_tail(unit, *user, self.stop))
                    .hint(format!("its log: gpuctl logs {name}"))
            }
        }
    }
}
