//! Fuzzes how gpuctl reads files of /proc: `gpuctl::properties::proc` must hold for any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gpuctl::properties::proc(input));
