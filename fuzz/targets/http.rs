//! See `gpuctl::properties`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::http(input));
