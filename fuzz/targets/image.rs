//! What a registry says about an image, and the users that an image names.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    atoll_image::fuzz_manifest(data);
    atoll_image::fuzz_users(data);
});
