//! Wakes a service that was put to sleep, and makes it load its model.

use super::{Context, LONGEST, SHORTEST, Watch};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{ApiServer, Headers, Observed, Service};
use crate::step::Action;
use crate::world::http::Fetcher;
use crate::world::server::{self, Called};
use crate::world::wait::{Aside, Woken};
use std::time::{Duration, Instant};

/// Time that one call may take to find out whether a service sleeps.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Reports whether a service has put its model aside by an unload and does not take it back by
/// itself.
pub(super) fn has_put_aside(service: &Service, context: &Context) -> bool {
    let Observed { used, kept, .. } = context.before.service(&service.name);
    service.server.as_ref().is_some_and(ApiServer::puts_aside)
        && used.is_some_and(|used| service.holds_residue(used, *kept))
}

impl Watch<'_> {
    /// Makes the call that loads the service's model, and waits for the answer as long as a start
    /// may take.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        let (service, context) = (self.service, self.context);
        let step = context.progress.begin(Action::WarmUp, &service.name, service.start_timeout);
        let located = self.located()?;
        let call = move |limit| {
            let calls = located.iter().filter_map(|it| Some((it.warm_up.as_ref()?, &it.headers)));
            calls.into_iter().try_for_each(|(call, headers)| server::call(call, headers, limit))
        };
        match self.answer(service.start_timeout, call)? {
            Some(Ok(())) => {
                step.done(None);
                Ok(())
            }
            None => Err(self.timed_out("its warm-up call was not answered")),
            Some(Err(failed)) if failed.is_silence => Err(self.timed_out(&failed.why)),
            Some(Err(failed)) => {
                Err(self.died(&format!("its warm-up call failed: {}", failed.why)))
            }
        }
    }

    /// Reports whether the service was put to sleep by an unload. It is asked until it answers, as
    /// long as a start may take, because a service that gives no answer is not known to be awake.
    pub(super) fn is_asleep(&mut self) -> Result<bool> {
        if !self.service.server.as_ref().is_some_and(ApiServer::can_sleep) {
            return Ok(false);
        }
        let end = self.begun + self.service.start_timeout;
        loop {
            let servers = self.servers()?;
            let ask = move |limit| {
                let fetcher = Fetcher::new(limit);
                servers.iter().try_fold(false, |any, (server, headers)| {
                    Ok(server::is_asleep(server, headers, &fetcher)? || any)
                })
            };
            let why = match self.answer(CALL_LIMIT, ask)? {
                Some(Ok(sleeps)) => return Ok(sleeps),
                Some(Err(failed)) => failed.why,
                None => "no answer came in time".to_owned(),
            };
            if Instant::now() >= end {
                return Err(self.timed_out(&format!("cannot tell whether it sleeps: {why}")));
            }
            self.look_after_it()?;
            let pause = (self.begun.elapsed() / 20).clamp(SHORTEST, LONGEST);
            self.sleep((Instant::now() + pause).min(end))?;
        }
    }

    /// Wakes the service, or brings its model back, and waits for the answer as long as a start may
    /// take.
    pub(super) fn wake(&mut self) -> Result<()> {
        let service = self.service;
        let servers = self.servers()?;
        let call = move |limit| {
            servers.iter().try_for_each(|(server, headers)| server::wake(server, headers, limit))
        };
        match self.answer(service.start_timeout, call)? {
            Some(Ok(())) => Ok(()),
            None => Err(self.timed_out("the call that wakes it was not answered")),
            Some(Err(failed)) if failed.is_silence => Err(self.timed_out(&failed.why)),
            Some(Err(failed)) => Err(not_woken(service, &failed.why)),
        }
    }

    /// Returns the servers that the service consists of, each with the headers to send along.
    fn servers(&mut self) -> Result<Vec<(ApiServer, Headers)>> {
        let located = self.located()?.into_iter();
        Ok(located.filter_map(|service| Some((service.server?, service.headers))).collect())
    }

    /// Makes a call to the service that may take `longest`, and no longer than is left of its start
    /// timeout, and waits for the answer; `None` if none came in time. The service's death and an
    /// interruption end the wait.
    fn answer<T: Send + 'static>(
        &mut self,
        longest: Duration,
        call: impl FnOnce(Duration) -> Called<T> + Send + 'static,
    ) -> Result<Option<Called<T>>> {
        let end = self.begun + self.service.start_timeout;
        let limit = end.saturating_duration_since(Instant::now()).min(longest);
        let deadline = Instant::now() + limit;
        let attempt = Aside::begin(move || call(limit))?;
        loop {
            if let Some(answer) = attempt.take() {
                return Ok(Some(answer));
            }
            if self.wait_for(Some(attempt.ended()), deadline)? == Woken::TimedOut {
                return Ok(None);
            }
        }
    }
}

fn not_woken(service: &Service, why: &str) -> Failure {
    Failure::new(Code::StartFailed, format!("{}: cannot be woken: {why}", service.name))
        .hint("vLLM sleeps and wakes only in development mode (VLLM_SERVER_DEV_MODE=1, --enable-sleep-mode)")
}
