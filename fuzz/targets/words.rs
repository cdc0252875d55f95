//! Fuzzes how gpuctl reads sizes, durations, windows, URLs and logs: `gpuctl::properties::words`
//! must hold for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::words(input));
