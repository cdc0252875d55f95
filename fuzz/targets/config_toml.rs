//! Fuzzes how gpuctl reads a configuration in TOML: `gpuctl::properties::config_toml` must hold for
//! any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::config_toml(input));
