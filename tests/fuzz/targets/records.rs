//! The program that libFuzzer drives: [`imds_fuzz::records`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::records::run(data));
