//! An image's user, /etc/passwd and /etc/group.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_image::fuzz_users(data));
