//! Whatever comes on `shim.sock`, the sandbox goes on.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use atoll_wire::frame::{Frame, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use atoll_wire::guest::{HostKind, HostMessage};
use atoll_wire::shim::{EVENT_KIND, REQUEST_KIND, ShimReply, ShimRequest};

use crate::harness::{PATIENCE, Sandbox, Spawner, exec, shell};

fn connect(sandbox: &Sandbox) -> UnixStream {
    let stream = UnixStream::connect(sandbox.path("shim.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn closed(mut stream: UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn rubbish_closes_its_own_connection_and_nothing_else() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let mode = std::fs::metadata(sandbox.path("shim.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let encoded = |kind, payload: &[u8]| {
        let mut bytes = Vec::new();
        Frame { kind, stream: 0, payload: payload.into() }.encode(&mut bytes).unwrap();
        bytes
    };
    let mut huge = encoded(REQUEST_KIND, b"{}");
    huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut random = vec![0; 100_000];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    for bytes in [
        random,
        huge,
        vec![0; 1000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        encoded(EVENT_KIND, b"{}"),
        encoded(HostKind::Start.number(), b"{}"),
    ] {
        let mut stream = connect(&sandbox);
        let _ = stream.write_all(&bytes);
        assert!(closed(stream), "{:?}", &bytes[..8]);
    }
    let mut answered = sandbox.connect();
    for payload in [&b"{}"[..], b"", b"null", b"{\"request\":\"fly\"}", &[b'['; MAX_PAYLOAD_BYTES]]
    {
        answered.send_frame(&Frame { kind: REQUEST_KIND, stream: 9, payload: payload.into() });
        assert!(matches!(answered.reply(), ShimReply::Refused { .. }));
    }
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}

#[test]
fn only_what_belongs_to_a_process_goes_through_to_the_guest() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    for kind in [
        HostKind::Hello,
        HostKind::Boot,
        HostKind::Start,
        HostKind::Exec,
        HostKind::ExitAck,
        HostKind::Upload,
        HostKind::SetHostname,
    ] {
        let mut client = sandbox.connect();
        let request = ShimRequest::Exec { container: "main".into(), process: shell("sleep 1000") };
        assert_eq!(client.request(&request), ShimReply::Ok);
        client.send_frame(&Frame { kind: kind.number(), stream: 0, payload: b"{}".to_vec() });
        while client.frame().is_some() {}
    }
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}

#[test]
fn half_frames_and_hundreds_of_silent_connections_keep_nobody_out() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    let mut events = spawner.request(&sandbox.directory, false);
    events.until_started();
    let mut bytes = Vec::new();
    Frame { kind: REQUEST_KIND, stream: 0, payload: vec![b' '; 1000] }.encode(&mut bytes).unwrap();
    let mut silent = Vec::new();
    for at in 0..600_usize {
        let mut stream = connect(&sandbox);
        let _ = stream.write_all(&bytes[..at % (HEADER_BYTES + 900)]);
        silent.push(stream);
        if at % 150 == 0 {
            assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
        }
    }
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
    drop(silent);
    assert_eq!(sandbox.connect().request(&ShimRequest::Stop { grace_millis: 0 }), ShimReply::Ok);
    events.until_ended();
}

#[test]
fn a_client_that_asks_and_never_reads_is_not_kept_for_ever() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    let mut events = spawner.request(&sandbox.directory, false);
    events.until_started();
    let payload = serde_json::to_vec(&ShimRequest::Subscribe).unwrap();
    let mut frame = Vec::new();
    Frame { kind: REQUEST_KIND, stream: 0, payload }.encode(&mut frame).unwrap();
    let mut flood = connect(&sandbox);
    flood.set_nonblocking(true).unwrap();
    let mut sent = 0_usize;
    while sent < 50_000 && flood.write_all(&frame).is_ok() {
        sent += 1;
    }
    assert!(sent < 50_000, "the shim stops reading from who does not read");
    // More input than the window: the client waits, and the process gets all of it.
    let mut client = sandbox.connect();
    let process = shell("sleep 0.2; head -c 2000000 | wc -c");
    client.request(&ShimRequest::Exec { container: "main".into(), process });
    for _ in 0..67 {
        client.send(HostMessage::Stdin(vec![1; 30_000]));
    }
    assert_eq!(client.finish().text(), "2000000\n");
    let resident = std::fs::read_to_string(format!("/proc/{}/statm", sandbox.shim().pid)).unwrap();
    let pages: u64 = resident.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages < 16 * 1024 / 4, "{pages} pages");
}
