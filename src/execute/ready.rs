//! Makes one service ready: starts it, and watches until it answers. Its death, the end of its
//! start command and the answer of its health check all wake the watch at once.

use super::contained::{self, Batches};
use super::{Context, LONGEST, SHORTEST};
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{
    ApiServer, Container, Health, Healthy, HttpCall, Managed, Manager, Observed, Presence, Running,
    Service, Trouble,
};
use crate::observe::{Look, gpu_pids, look};
use crate::plan::StartHow;
use crate::redact::mask;
use crate::step::{Action, Step};
use crate::world::docker::{Docker, Events};
use crate::world::health;
use crate::world::http::Fetcher;
use crate::world::native::{self, Started};
use crate::world::ports::local_port;
use crate::world::process::mains_in;
use crate::world::wait::{Aside, Event, Handle, Stop, Woken, wait};
use crate::world::{logs, server, starts, systemd};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A service without a health check counts as ready once it has lived this long.
const SETTLING: Duration = Duration::from_millis(500);

/// The kernel tells when a process began to a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);

/// One call may take so long that asks whether a service sleeps.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What a container is heard to do is looked at all the same after this time: not all that happens may
/// be heard.
const UNHEARD: Duration = Duration::from_secs(10);

/// A manager restarts a service this often before it counts as looping.
const RESTARTS: u64 = 2;

/// `None` where it was found ready.
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
        StartHow::Wake if !is_asleep(service)? && !has_put_aside(service, context) => {
            return Ok(None);
        }
        StartHow::Wake => begin(Action::Wake),
        StartHow::Await => begin(Action::Await),
        StartHow::Start => begin(Action::Start),
    };
    match how {
        StartHow::Wake => return wake(service).map(|()| Some(step.done(None))),
        StartHow::Await => {}
        StartHow::Start => watch.start(batches)?,
    }
    watch.until_ready()?;
    if let Some(started) = &mut watch.started {
        started.record_ready()?;
    }
    let slept = is_asleep(service)?;
    if slept {
        wake(service)?;
    }
    if let Some(call) = &service.warm_up {
        watch.warm_up(call)?;
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
    Watch::new(service, context.stop, context).died(&why)
}

/// Whether it has put its model aside by an unload, and does not take it back by itself.
fn has_put_aside(service: &Service, context: &Context) -> bool {
    let used = context.before.service(&service.name).used;
    service.server.as_ref().is_some_and(ApiServer::puts_aside)
        && used.is_some_and(|used| service.holds_residue(used))
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
fn of_a_container(failure: Failure, service: &Service, id: &str, engine: &Docker) -> Failure {
    let name = engine.name_of(id).unwrap_or_else(|| id[..12].to_owned());
    let message = format!("{}; it started the container {name}", failure.message);
    Failure { message, ..failure }.hint(format!(
        "a container is managed by its engine: in services.{}, set type = \"docker\" and container = \"{name}\"",
        service.name
    ))
}

/// Whether the engine has told that a container's HEALTHCHECK passes: docker as the event
/// "health_status: healthy", podman as a status beside it.
fn says_healthy(events: &str) -> bool {
    events.lines().last().is_some_and(|last| {
        last.contains("health_status") && last.contains("healthy\"") && !last.contains("unhealthy")
    })
}

struct Watch<'a> {
    service: &'a Service,
    stop: &'a Stop,
    context: &'a Context<'a>,
    /// It tells what became of a native service's start command.
    started: Option<Started>,
    /// Its containers, as they were when they were started.
    managed: Option<Managed>,
    /// Where these are asked, where that is by their own addresses.
    addresses: Vec<IpAddr>,
    /// What happens to them; begun where their own HEALTHCHECK is waited for.
    events: Option<Events>,
    /// Why its manager could not be asked at last.
    away: Option<Failure>,
    /// Restarts by its manager when the watch began.
    restarts: Option<u64>,
    /// Processes whose death is news.
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
            addresses: Vec::new(),
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
                // A start by hand makes the engine count from nothing.
                self.restarts = Some(0);
                managed.map(|managed| self.managed = Some(managed))
            }
            Manager::Systemd { unit, user } => systemd::start(unit, *user, limit, self.stop),
        }
        .map_err(|failure| match failure.code {
            // A manager that waits for the service itself, and was waited for long enough.
            Code::Unavailable
                if self.begun.elapsed() >= limit
                    && matches!(self.service.manager, Manager::Systemd { .. }) =>
            {
                self.timed_out(&failure.message)
            }
            Code::StartFailed => self.died(&failure.message),
            _ => Failure {
                message: format!("{}: {}", self.service.name, failure.message),
                ..failure
            },
        })
    }

    /// Makes the call that loads its model, and waits for the answer as long as a start may take.
    fn warm_up(&mut self, call: &HttpCall) -> Result<()> {
        let (service, context) = (self.service, self.context);
        let deadline = self.begun + service.start_timeout;
        let step = context.progress.begin(Action::WarmUp, &service.name, service.start_timeout);
        let left = deadline.saturating_duration_since(Instant::now());
        let (call, headers) = (call.clone(), service.headers.clone());
        let attempt = Aside::begin(move || server::call(&call, &headers, left))?;
        let answer = loop {
            if let Some(answer) = attempt.take() {
                break answer;
            }
            if self.wait_for(Some(attempt.ended()), deadline)? == Woken::TimedOut {
                return Err(self.timed_out("its warm-up call was not answered"));
            }
        };
        match answer {
            Ok(()) => {
                step.done(None);
                Ok(())
            }
            Err(failed) if failed.is_silence => Err(self.timed_out(&failed.why)),
            Err(failed) => Err(self.died(&format!("its warm-up call failed: {}", failed.why))),
        }
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
            if self.deaths.is_empty() && !self.sees_containers() {
                self.look_after_it()?;
            }
            let pause = (self.begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
            if !self.sleep((Instant::now() + pause).min(deadline))? && Instant::now() >= deadline {
                return Err(self.timed_out(&why));
            }
        }
    }

    /// Asks it, and each of its containers where it is asked by their own addresses; the first answer
    /// that is not good counts.
    fn ask(&mut self, check: &Health, deadline: Instant) -> Result<Option<Healthy>> {
        if !check.is_by_address() {
            return self.ask_at(check, deadline);
        }
        if self.addresses.is_empty() {
            let look = self.look_after_it()?;
            self.addresses = look.addresses(&self.service.name);
        }
        let mut answer = Some(Healthy::No(Health::NO_ADDRESS.to_owned()));
        for address in self.addresses.clone() {
            answer = self.ask_at(&check.at(address), deadline)?;
            if answer != Some(Healthy::Yes) {
                // It may have another when it is started again.
                self.addresses.clear();
                break;
            }
        }
        Ok(answer)
    }

    /// One health check, abandoned at the deadline (`None`) and cut short by a death.
    fn ask_at(&mut self, check: &Health, deadline: Instant) -> Result<Option<Healthy>> {
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

    /// Finds the main processes of the containers that it has started, by their control groups, and
    /// watches these: the engine need not be asked. Tells whether it sees all.
    fn sees_containers(&mut self) -> bool {
        let Some(managed) = &self.managed else { return false };
        let ids: Vec<&str> = managed.containers.iter().map(|one| one.id.as_str()).collect();
        let pids = mains_in(&ids);
        self.deaths = pids.iter().filter_map(|pid| Handle::open(*pid)).collect();
        self.deaths.retain(|handle| !handle.has_ended());
        !ids.is_empty() && self.deaths.len() == ids.len()
    }

    /// Waits for what a container's own HEALTHCHECK says, as the engine tells it when it changes; `None`
    /// where there is none.
    fn hear(&mut self) -> Result<Option<Healthy>> {
        let Some(managed) = &self.managed else { return Ok(None) };
        let checked: Vec<&Container> =
            managed.containers.iter().filter(|one| one.setup.has_healthcheck).collect();
        // Of several the engine says which; one look at all is as good.
        let [only] = checked.as_slice() else { return Ok(None) };
        let is_alone = managed.containers.len() == 1;
        let id = only.id.clone();
        if self.events.as_ref().is_none_or(Events::are_over) {
            let past = self.begun.elapsed();
            self.events = Some(self.context.engine(self.stop).events(&[&id], past)?);
        }
        if self.deaths.is_empty() && !self.sees_containers() {
            self.look_after_it()?;
        }
        let until = (Instant::now() + UNHEARD).min(self.begun + self.service.start_timeout);
        loop {
            let events = self.events.as_mut().expect("begun above");
            let mut watched = events.fds();
            watched.extend(self.deaths.iter().map(Handle::fd));
            let woken = wait(&watched, self.stop, until);
            let has_died = self.deaths.iter().any(Handle::has_ended);
            let heard = events.read();
            self.stop.check()?;
            if is_alone && says_healthy(&heard) {
                return Ok(Some(Healthy::Yes));
            }
            if has_died || !heard.is_empty() || woken != Woken::Event || events.are_over() {
                let look = self.look_after_it()?;
                return Ok(match look.presence(&self.service.name) {
                    Presence::Up(Running { own_health, .. }) => own_health,
                    _ => Some(Healthy::No("it is not there".to_owned())),
                });
            }
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
        // Asked before the look: what ends after it is judged by the next one.
        let has_ended = self.started.as_mut().is_some_and(Started::has_ended);
        let on_gpu = || gpu_pids(&context.vram().unwrap_or_default());
        let look = look(context.config, &[service], &context.before.managed, self.stop, on_gpu);
        let presence = look.presence(&service.name);
        self.away = None;
        // What runs for longer than our own start was just being started by a gpuctl that was killed:
        // before it executed its program, it could not be seen.
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
            // Its start command may still be putting it into the background.
            Presence::Down(_) if self.started.is_some() => Ok(look),
            // Somebody is starting it by hand, for all that can be told.
            Presence::Down(_) if !look.unproven(&service.name).is_empty() => Ok(look),
            Presence::Down(ending) => {
                Err(self.died(&ending.unwrap_or_else(|| "exited before it was ready".to_owned())))
            }
            // An engine that is away for a moment is no news of its containers.
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

    /// Tells, after a good answer, whether it was the service that gave it.
    fn answers_itself(&mut self) -> Result<bool> {
        // That its containers live is seen, and whose the answer is the last look tells.
        let is_http = matches!(self.service.health, Some(Health::Http(_)) | None);
        if is_http && self.managed.is_some() && self.service.unload.is_none() {
            let is_watched = !self.deaths.is_empty() || self.sees_containers();
            if is_watched && self.deaths.iter().all(|handle| !handle.has_ended()) {
                return Ok(true);
            }
        }
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
            Some(id) => of_a_container(failure, self.service, &id, &self.context.engine(self.stop)),
            None => failure,
        }
    }

    fn died(&self, how: &str) -> Failure {
        self.explain(Failure::new(Code::StartFailed, format!("{}: {how}", self.service.name)))
    }

    fn timed_out(&self, why: &str) -> Failure {
        if let Some(away) = &self.away {
            return Failure {
                message: format!("{}: {}", self.service.name, away.message),
                ..away.clone()
            };
        }
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
            (Manager::Containers(_), _) => {
                let managed = self.managed.as_ref();
                let managed = managed.unwrap_or_else(|| self.context.before.managed(name));
                let engine = self.context.engine(self.stop);
                let tail = |one: &Container| engine.log_tail(&one.id, self.begun.elapsed());
                let lines: Vec<String> = match managed.containers.as_slice() {
                    [only] => tail(only),
                    several => several
                        .iter()
                        .flat_map(|one| {
                            tail(one).into_iter().map(|line| format!("{} | {line}", one.name))
                        })
                        .collect(),
                };
                logs::attach(failure, lines).hint(format!("its log: gpuctl logs {name}"))
            }
            (Manager::Systemd { unit, user }, _) => {
                logs::attach(failure, systemd::log_tail(unit, *user, self.stop))
                    .hint(format!("its log: gpuctl logs {name}"))
            }
        }
    }
}
