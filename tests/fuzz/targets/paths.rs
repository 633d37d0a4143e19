//! The program that libFuzzer drives: [`imds_fuzz::paths`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::paths::run(data));
