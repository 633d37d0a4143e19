//! The program that libFuzzer drives: [`imds_fuzz::tokens`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::tokens::run(data));
