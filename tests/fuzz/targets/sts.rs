//! The program that libFuzzer drives: [`imds_fuzz::sts`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::sts::run(data));
