//! Makes ready again what a call has evicted, the highest priority first.

use super::drain::Drain;
use super::{Executor, reclaim};
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::history::Recorder;
use crate::model::{Evict, Service, Snapshot};
use crate::plan::{Debt, Plan};
use crate::progress::Progress;
use crate::screen::text::span;
use crate::world::nvml::Reader;
use crate::world::wait::{Stop, wait};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time after which memory that is not back yet is looked for again.
const RETRY: Duration = Duration::from_millis(100);

/// Pays the debt of a gpuctl that is gone, and records in the event log what was done.
pub fn restore_for_another(config: &Config, mut debt: Debt) -> Result<()> {
    let owed = debt.services(config);
    let names: Vec<&str> = owed.iter().map(|service| service.name.as_str()).collect();
    let recorder = Recorder::begin(config, "restore", &names.join(", ")).map(Arc::new).ok();
    let progress = match &recorder {
        Some(recorder) => Progress::silent().recorded(recorder),
        None => Progress::silent(),
    };
    let reader = Mutex::new(Reader::open(&config.gpu));
    let stop = Stop::never();
    let executor = Executor { config, reader: &reader, stop: &stop, progress: &progress };
    let result = executor.restore(&mut debt, &|_| ()).map(|()| Answer::Yes);
    recorder.iter().for_each(|recorder| recorder.end(&result));
    result.map(drop)
}

impl Executor<'_> {
    /// Pays a debt as far as that can be done, and calls `tell` after each service with what is
    /// left of it. The failure names the services that are not ready.
    pub fn restore(&self, debt: &mut Debt, tell: &dyn Fn(&Debt)) -> Result<()> {
        let owed = debt.services(self.config);
        if owed.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = owed.iter().map(|service| service.name.as_str()).collect();
        self.progress.line(&format!("restoring {}", names.join(", ")));
        // A service whose eviction does not come to its end is up, as it is to be.
        if debt.is_underway() {
            let finished = self.carry_out_owed(|_| false, |_, snapshot| Ok(debt.finish(snapshot)));
            finished.unwrap_or_else(|failure| log::warn!("what was begun is not over: {failure}"));
        }
        let begun = Instant::now();
        let (mut back, mut failed) = (Vec::new(), Vec::<(&str, Failure)>::new());
        for service in owed {
            match self.make_ready(debt, service, begun + reclaim::LIMIT) {
                Ok(()) => {
                    back.push(service.name.as_str());
                    debt.settle(&service.name);
                    tell(debt);
                }
                Err(failure) => failed.push((&service.name, failure)),
            }
        }
        if !back.is_empty() {
            let took = span(begun.elapsed());
            self.progress.line(&format!("restored {} ({took})", back.join(", ")));
        }
        let Some((_, first)) = failed.first() else { return Ok(()) };
        let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
        let why = failed.iter().map(|(_, failure)| failure.message.as_str());
        let message =
            format!("not restored: {} ({})", names.join(", "), why.collect::<Vec<_>>().join("; "));
        let failure = Failure { message, code: Code::StartFailed, ..first.clone() };
        Err(failure.detail("not_restored", names))
    }

    /// Makes an owed service ready. While there is no room, it tries again until the deadline,
    /// because what the command held may be on its way back.
    fn make_ready(&self, debt: &Debt, service: &Service, deadline: Instant) -> Result<()> {
        loop {
            let is_it = |other: &Service| other.name == service.name;
            let pay = |config: &Config, snapshot: &Snapshot| debt.pay(config, snapshot, service);
            let result = self.carry_out_owed(is_it, pay);
            let is_tight = |failure: &Failure| failure.code == Code::InsufficientVram;
            if !result.as_ref().is_err_and(is_tight) || Instant::now() >= deadline {
                return result;
            }
            wait(&[], self.stop, Instant::now() + RETRY);
            self.stop.check()?;
        }
    }

    /// Carries out a plan for a debt. Services that make room here may work for others than the
    /// command, so their work is waited for.
    fn carry_out_owed(
        &self,
        asks: impl Fn(&Service) -> bool,
        plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
    ) -> Result<()> {
        let asks = |service: &Service| asks(service) || service.evict == Evict::Unload;
        let (_, outcome) = self.carry_out(Drain::Configured, asks, plan, &|_| ())?;
        outcome.failure.map_or(Ok(()), Err)
    }
}
