//! Fuzzes how gpuctl reads the lock's record: `gpuctl::properties::lock` must hold for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::lock(input));
