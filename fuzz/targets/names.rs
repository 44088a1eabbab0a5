//! What a sandbox asks the resolver, and what an upstream server answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_keeper::fuzz::names(data));
