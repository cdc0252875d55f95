//! Takes a plan from the look that it is made from to its last step.

use super::drain::{self, Drain, DrainClock};
use super::{Context, Evicting, Outcome, contained, execute};
use crate::config::Config;
use crate::error::Result;
use crate::model::{Service, Snapshot};
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use std::sync::{Mutex, PoisonError};

/// What a plan is carried out with: by a command, by the gpuctl that restores after it, or by the
/// canary.
#[derive(Clone, Copy)]
pub struct Executor<'a> {
    pub config: &'a Config,
    pub stop: &'a Stop,
    pub reader: &'a Mutex<Reader>,
    pub progress: &'a Progress,
}

impl Executor<'_> {
    /// Looks at everything; `asks` decides what each service itself is asked.
    pub fn look(&self, asks: &dyn Fn(&Service) -> Ask) -> Result<Snapshot> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        observe(self.config, &mut reader, self.stop, asks)
    }

    /// Looks, makes the plan, waits for the work of the services that have to go, and carries the
    /// plan out. Only services for which `asks` is true are asked for their health; `witness` is
    /// called at each moment of an eviction. If a step fails, the outcome says so.
    pub fn carry_out(
        &self,
        drain: Drain,
        asks: impl Fn(&Service) -> bool,
        plan: impl Fn(&Config, &Snapshot) -> Result<Plan>,
        witness: &(dyn Fn(Evicting) + Sync),
    ) -> Result<(Plan, Outcome)> {
        let clock = DrainClock::start(drain);
        let (mut drained, mut has_created) = (Vec::new(), false);
        loop {
            let before = self.look(&|service| Ask::state_if(asks(service)))?;
            Notes::keep(self.config, &before);
            let plan = plan(self.config, &before)?;
            let context = Context { executor: *self, before: &before, witness, drain: clock };
            if !has_created && contained::create_missing(&plan, &context)? {
                has_created = true;
                continue;
            }
            let waited = drain::drain(&plan, &context)?;
            if !waited.is_empty() {
                // Nothing need be as it was when the plan was made, so a new one is made.
                drained.extend(waited);
                continue;
            }
            for warning in &plan.warnings {
                self.progress.warning(warning);
            }
            let mut outcome = execute(&plan, &context);
            outcome.steps.splice(..0, drained);
            return Ok((plan, outcome));
        }
    }
}
