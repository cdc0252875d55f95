//! Fuzzes how gpuctl reads what Docker says of containers: `gpuctl::properties::docker` must hold
//! for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::docker(input));
