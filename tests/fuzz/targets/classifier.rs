//! The program that libFuzzer drives: [`imds_fuzz::classifier`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::classifier::run(data));
