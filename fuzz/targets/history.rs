//! Fuzzes how gpuctl reads the event log: `gpuctl::properties::history` must hold for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::history(input));
