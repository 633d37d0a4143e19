//! The program that libFuzzer drives: [`imds_fuzz::http`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::http::run(data));
