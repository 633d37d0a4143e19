//! The program that libFuzzer drives: [`imds_fuzz::capsules`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imds_fuzz::capsules::run(data));
