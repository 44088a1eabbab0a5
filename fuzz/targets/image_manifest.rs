//! Manifests, indexes and configurations of images.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_image::fuzz_manifest(data));
