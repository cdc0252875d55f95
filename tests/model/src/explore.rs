//! The search through all states that can be reached. It goes breadth first, so that the way to a
//! broken promise is a shortest one.

use crate::fair;
use crate::steps::{Step, all};
use crate::world::{Promise, Scenario, World};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// The result of an exploration.
#[derive(Debug, Default)]
pub struct Explored {
    /// Number of different states that were reached.
    pub states: usize,
    /// Number of steps from the first state to the farthest.
    pub depth: usize,
    /// The promises that can be broken, each with the steps that break it.
    pub broken: BTreeMap<Promise, Vec<Step>>,
}

/// Explores all states that a scenario can reach; panics if there are more than `most`.
pub fn explore(scenario: &Scenario, most: usize) -> Explored {
    let steps: Vec<Step> = all().collect();
    let mut explored = Explored::default();
    let first = World::of(scenario);
    let mut numbers: HashMap<World, u32, BuildHasherDefault<Mixer>> = HashMap::default();
    // For each world, the step that led to it and the number of the world before.
    let mut worlds = vec![first];
    let mut from = vec![(Step::Tick, 0_u32)];
    numbers.insert(first, 0);
    let (mut at, mut level) = (0, 0);
    while at < worlds.len() {
        if at == level {
            level = worlds.len();
            explored.depth += 1;
        }
        let world = worlds[at];
        if let Some(promise) = world.broken {
            explored.broken.entry(promise).or_insert_with(|| way(&from, at));
            at += 1;
            continue;
        }
        for step in &steps {
            if scenario.is_timely && world.waits_for_lookers(*step) {
                continue;
            }
            let Some(next) = world.after(*step, &scenario.rules) else { continue };
            numbers.entry(next).or_insert_with(|| {
                worlds.push(next);
                from.push((*step, at as u32));
                worlds.len() as u32 - 1
            });
        }
        assert!(worlds.len() <= most, "more than {most} states: {scenario:?}");
        at += 1;
    }
    explored.states = worlds.len();
    if let Some(forgotten) = forgotten(&worlds, &numbers, scenario) {
        explored.broken.insert(Promise::NobodyForgotten, way(&from, forgotten));
    }
    explored
}

/// Returns the index of a state from which some waiter is never served though no more faults come,
/// or `None` if there is none.
fn forgotten(
    worlds: &[World],
    numbers: &HashMap<World, u32, BuildHasherDefault<Mixer>>,
    scenario: &Scenario,
) -> Option<usize> {
    // For each state: 0 if not seen yet, 1 if on the way that is followed now, 2 if its way ends
    // well.
    let mut seen = vec![0_u8; worlds.len()];
    for start in 0..worlds.len() {
        let (mut way, mut at) = (Vec::new(), start);
        let ends_well = loop {
            let world = &worlds[at];
            match seen[at] {
                1 => break false,
                2 => break true,
                _ if world.broken.is_some() || !fair::waits(world) => break true,
                _ => {}
            }
            seen[at] = 1;
            way.push(at);
            match fair::next(world, scenario) {
                Some(next) => at = numbers[&next] as usize,
                None => break false,
            }
        };
        if !ends_well {
            return Some(start);
        }
        way.iter().for_each(|here| seen[*here] = 2);
    }
    None
}

/// Returns the steps from the first state to state `to`.
fn way(from: &[(Step, u32)], to: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = to;
    while at > 0 {
        steps.push(from[at].0);
        at = from[at].1 as usize;
    }
    steps.reverse();
    steps
}

/// A fast hash for small keys; nobody chooses the keys so that they collide.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_i8(&mut self, number: i8) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}
