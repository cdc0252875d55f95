//! Fuzzes how gpuctl reads what systemd says of units: `gpuctl::properties::systemd` must hold for
//! any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::systemd(input));
