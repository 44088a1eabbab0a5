//! Image references, as users and registries write them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_model::image_reference::fuzz_reference(data));
