//! The program that libFuzzer drives: [`imds_fuzz::stack`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::stack::run(data));
