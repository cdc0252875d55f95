//! Fuzzes how gpuctl reads the canary's files: `gpuctl::properties::ledger` must hold for any
//! bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::ledger(input));
