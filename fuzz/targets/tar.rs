//! Layers and image archives. Needs root: unpacking gives owners.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_image::fuzz_tar(data));
