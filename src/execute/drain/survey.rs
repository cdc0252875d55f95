//! Finds what services are at work on: the jobs that they report or, for a service that gives no
//! answer, what the driver says of its processes.

use crate::config::Config;
use crate::error::Result;
use crate::model::{InFlight, Managed, NO_ADDRESS, Presence, Running, Service};
use crate::observe::{attributed, count_jobs, gpu_pids, look};
use crate::world::host;
use crate::world::http::NoAnswer;
use crate::world::jobs::Count;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use jiff::Timestamp;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time by which the driver may be late to report that a process works: it takes a sample now and
/// then.
const SAMPLE_LAG: Duration = Duration::from_secs(5);

/// What a service is at work on, `None` if on nothing; or why that cannot be determined.
pub type Found = std::result::Result<Option<InFlight>, NoAnswer>;

/// The means by which services are asked what they are at work on.
#[derive(Clone, Copy)]
pub struct Survey<'a> {
    pub config: &'a Config,
    pub reader: &'a Mutex<Reader>,
    pub stop: &'a Stop,
    /// What the managers of services have said before.
    pub managed: &'a [Managed],
}

impl Survey<'_> {
    /// Asks services for their jobs, side by side; each may take `limit` to answer. The driver is
    /// asked about those that do not answer.
    pub fn ask(&self, services: &[&Service], limit: Duration) -> Result<Vec<Found>> {
        let begun = host::now();
        let located: Vec<Vec<Service>> = services.iter().map(|one| self.located(one)).collect();
        let counts = count_jobs(&located, limit, self.stop)?;
        let is_silent =
            |count: &Option<Count>| matches!(count, Some(Err(failed)) if failed.is_silence);
        let silent = services.iter().zip(&counts).filter(|(_, count)| is_silent(count));
        let silent: Vec<&Service> = silent.map(|(service, _)| *service).collect();
        // The system's clock may have been set back meanwhile.
        let since = begun.min(host::now()) - SAMPLE_LAG;
        let on_card = match silent.is_empty() {
            true => HashSet::new(),
            false => self.on_card(&silent, since),
        };
        self.stop.check()?;
        let found = |(service, count): (&&Service, Option<Count>)| match count {
            None if service.is_by_address() => Err(NoAnswer::other(NO_ADDRESS)),
            None | Some(Ok(0)) => Ok(None),
            Some(Ok(jobs)) => Ok(Some(InFlight::Jobs(jobs))),
            Some(Err(failed)) => match failed.is_silence && on_card.contains(&*service.name) {
                true => Ok(Some(InFlight::OnCard)),
                false => Err(failed),
            },
        };
        Ok(services.iter().zip(counts).map(found).collect())
    }

    /// Returns copies of a service, one for each address that it is reached at.
    fn located(&self, service: &Service) -> Vec<Service> {
        let at = self.config.place_of(&service.name);
        service.at(&at.map(|at| self.managed[at].addresses()).unwrap_or_default())
    }

    /// Returns the names of those services whose processes have worked on the card since a time.
    fn on_card<'a>(&self, services: &[&'a Service], since: Timestamp) -> HashSet<&'a str> {
        let reading = {
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            reader.read_use(since)
        };
        let Ok(vram) = reading else { return HashSet::new() };
        let vram = attributed(vram, self.config, services, self.managed, self.stop);
        let names = services.iter().map(|service| service.name.as_str());
        names.filter(|name| vram.shows_at_work(name)).collect()
    }

    /// Reports whether a service is still there, well enough to work.
    pub fn is_there(&self, service: &Service) -> bool {
        let on_gpu = || self.reader.lock().unwrap_or_else(PoisonError::into_inner).read();
        let on_gpu = || on_gpu().map(|vram| gpu_pids(&vram)).unwrap_or_default();
        let look = look(self.config, &[service], self.managed, self.stop, on_gpu);
        can_work(&look.presence(&service.name))
    }
}

/// Reports whether a service runs and nothing is known that keeps it from working.
pub fn can_work(presence: &Presence) -> bool {
    matches!(presence, Presence::Up(Running { trouble: None, .. }))
}
