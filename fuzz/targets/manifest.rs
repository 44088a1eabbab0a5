//! Manifests and request bodies, as JSON and YAML.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| atoll_wire::rest::strict::fuzz_manifest(data));
