//! Fuzzes how gpuctl reads a configuration in JSON: `gpuctl::properties::config_json` must hold for
//! any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::config_json(input));
