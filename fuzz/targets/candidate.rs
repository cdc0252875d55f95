//! Fuzzes how gpuctl reads candidates of the canary: `gpuctl::properties::candidate` must hold for
//! any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::candidate(input));
