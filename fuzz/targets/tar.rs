//! Archives of layers and images, as registries and people send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_image::fuzz_tar(data));
