//! Chance that can be had again: `GPUCTL_TEST_HISTORY_SEED` is what a failure prints.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    /// Prints its seed, which the environment may give.
    pub fn new() -> Dice {
        let seed = number("GPUCTL_TEST_HISTORY_SEED");
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed"));
        eprintln!("GPUCTL_TEST_HISTORY_SEED={seed}");
        Dice(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    pub fn one_of<T: Copy>(&mut self, these: &[T]) -> Option<T> {
        (!these.is_empty()).then(|| these[self.below(these.len() as u64) as usize])
    }

    pub fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

impl Default for Dice {
    fn default() -> Dice {
        Dice::new()
    }
}

/// A number that the environment may give to tests.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}
