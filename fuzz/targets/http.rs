//! Fuzzes how gpuctl reads an HTTP request: `gpuctl::properties::http` must hold for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::http(input));
