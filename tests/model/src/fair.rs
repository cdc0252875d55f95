//! The fair continuation of a state, which shows whether a waiter is forgotten: from every state,
//! once no more faults come and everybody does what is due, each waiter must be served.

use crate::client::{Phase, Process};
use crate::steps::{Step, all};
use crate::world::{Scenario, World};

/// Reports whether any client waits.
pub fn waits(world: &World) -> bool {
    world.clients.iter().any(|one| one.phase == Phase::Waiting && one.gpuctl != Process::None)
}

/// Returns the world after the next fair step, or `None` if no fair step changes anything.
pub fn next(world: &World, scenario: &Scenario) -> Option<World> {
    let is_fair = |step: &Step| {
        matches!(
            step,
            Step::Continue(_)
                | Step::Thaw(_)
                | Step::Begin(_)
                | Step::Leave(_)
                | Step::CommandEnds(_)
                | Step::EndCommand(_)
                | Step::Release(_)
                | Step::Keep(_)
                | Step::GiveUp(_)
                | Step::Attempt(_)
                | Step::LegacyGets
                | Step::LegacyDeletes
                | Step::CallEnds
                | Step::Tick
        )
    };
    let may = |step: &Step| !scenario.is_timely || !world.waits_for_lookers(*step);
    let mut steps = all().filter(is_fair).filter(may);
    // A look that changes nothing does not count as a step.
    steps.find_map(|step| world.after(step, &scenario.rules).filter(|next| next != world))
}
