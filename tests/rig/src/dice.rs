//! Random numbers that can be repeated: they are the same at each run, or begin with the seed that a
//! failing test prints and `GPUCTL_TEST_HISTORY_SEED` takes.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A random number generator, SplitMix64.
pub struct Dice(u64);

impl Dice {
    /// Makes a generator and prints its seed, which the variable `GPUCTL_TEST_HISTORY_SEED` may
    /// set.
    pub fn new() -> Dice {
        let seed = number("GPUCTL_TEST_HISTORY_SEED");
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed"));
        eprintln!("GPUCTL_TEST_HISTORY_SEED={seed}");
        Dice::seeded(seed)
    }

    /// Makes a generator that returns the same numbers at each run.
    pub fn seeded(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Returns a random number that is less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Returns one of the values at random, or `None` if there are none.
    pub fn one_of<T: Copy>(&mut self, these: &[T]) -> Option<T> {
        (!these.is_empty()).then(|| these[self.below(these.len() as u64) as usize])
    }

    /// Returns a random time of less than `limit` milliseconds.
    pub fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

impl Default for Dice {
    fn default() -> Dice {
        Dice::new()
    }
}

/// Returns the number that an environment variable gives to the tests, or `None` if it is not set.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}
