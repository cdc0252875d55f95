//! Waking a service that was put to sleep, and having it load its model.

use super::{Context, Watch};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{ApiServer, HttpCall, Service};
use crate::step::Action;
use crate::world::http::Fetcher;
use crate::world::server;
use crate::world::wait::{Aside, Woken};
use std::time::{Duration, Instant};

/// One call may take so long that asks whether a service sleeps.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Whether it has put its model aside by an unload, and does not take it back by itself.
pub(super) fn has_put_aside(service: &Service, context: &Context) -> bool {
    let used = context.before.service(&service.name).used;
    service.server.as_ref().is_some_and(ApiServer::puts_aside)
        && used.is_some_and(|used| service.holds_residue(used))
}

/// Whether it was put to sleep by an unload.
pub(super) fn is_asleep(service: &Service) -> Result<bool> {
    let fetcher = Fetcher::new(CALL_LIMIT);
    let ask = |server| server::is_asleep(server, &service.headers, &fetcher);
    service.server.as_ref().map_or(Ok(false), ask).map_err(|failed| not_woken(service, &failed.why))
}

pub(super) fn wake(service: &Service) -> Result<()> {
    let wake = |server| server::wake(server, &service.headers, service.start_timeout);
    service.server.as_ref().map_or(Ok(()), wake).map_err(|failed| not_woken(service, &failed.why))
}

fn not_woken(service: &Service, why: &str) -> Failure {
    Failure::new(Code::StartFailed, format!("{}: cannot be woken: {why}", service.name))
        .hint("vLLM sleeps and wakes only in development mode (VLLM_SERVER_DEV_MODE=1, --enable-sleep-mode)")
}

impl Watch<'_> {
    /// Makes the call that loads its model, and waits for the answer as long as a start may take.
    pub(super) fn warm_up(&mut self, call: &HttpCall) -> Result<()> {
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
}
