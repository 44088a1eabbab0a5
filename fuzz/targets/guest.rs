//! What a guest, or a shim's client, sends: frames, and the messages in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    atoll_wire::frame::fuzz_frame(data);
    atoll_wire::guest::fuzz_guest_messages(data);
});
