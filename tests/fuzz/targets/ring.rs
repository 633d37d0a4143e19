//! The program that libFuzzer drives: [`imds_fuzz::ring`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::ring::run(data));
