//! A guest that a workload has taken over: it may end its own container, and nothing else.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use atoll_sys::process::ProcessState;
use atoll_wire::frame::{Decoder, Frame};
use atoll_wire::guest::{GuestMessage, HelloAck, HostMessage, PROTOCOL_VERSION, Started};
use atoll_wire::record::ExitReason;
use atoll_wire::shim::{ShimEvent, ShimReply, ShimRequest};
use rustix::fs::OFlags;

use crate::harness::{Client, Sandbox, Spawner, container, shell, wait_until};

/// The test speaks as the guest of the first container, whose process only sleeps.
pub(crate) struct Rogue {
    pub(crate) sandbox: Sandbox,
    pub(crate) client: Client,
    out: std::fs::File,
    decoder: Decoder,
    requests: std::fs::File,
}

impl Rogue {
    /// A guest that has not answered yet; and the epoch of its Hello.
    pub(crate) fn begin(spawner: &Spawner) -> (Self, u64) {
        let sandbox = Sandbox::with(vec![container("main", "true")], |launch| {
            let guest = launch.placement.directory.parent().unwrap().join("rogue");
            let script = "#!/bin/sh\nexec sleep 1000\n";
            std::fs::write(&guest, script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&guest, mode).unwrap();
            launch.placement.guest_binary = guest;
        });
        let mut client = spawner.request(&sandbox.directory, false);
        client.events_until(|event| matches!(event, ShimEvent::Isolated { .. }));
        let open = |name: &str, nonblocking: bool| {
            let flags = if nonblocking { OFlags::NONBLOCK } else { OFlags::empty() };
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits().cast_signed())
                .open(sandbox.path(name))
                .unwrap()
        };
        let (out, requests) =
            (open("container.main/guest.out", false), open("container.main/guest.in", false));
        let mut rogue = Self { sandbox, client, out, decoder: Decoder::new(), requests };
        let epoch = rogue.hello();
        (rogue, epoch)
    }

    fn start(spawner: &Spawner) -> Self {
        let (mut rogue, epoch) = Self::begin(spawner);
        rogue.say(
            0,
            GuestMessage::HelloAck(HelloAck {
                version: PROTOCOL_VERSION,
                epoch,
                build: "rogue".into(),
                booted: false,
                streams: Vec::new(),
            }),
        );
        rogue.say(0, GuestMessage::Started(Started { pid: 1 }));
        rogue.client.until_started();
        rogue
    }

    /// The next Hello's epoch; other requests before it are passed over.
    pub(crate) fn hello(&mut self) -> u64 {
        loop {
            if let HostMessage::Hello(hello) = self.next_request().1 {
                return hello.epoch;
            }
        }
    }

    pub(crate) fn next_request(&mut self) -> (u32, HostMessage) {
        use std::io::Read;
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return (frame.stream, HostMessage::from_frame(frame).unwrap());
            }
            let count = self.requests.read(&mut buffer).unwrap();
            self.decoder.push(&buffer[..count]);
        }
    }

    pub(crate) fn say(&mut self, stream: u32, message: GuestMessage) {
        let mut bytes = Vec::new();
        message.into_frame(stream).unwrap().encode(&mut bytes).unwrap();
        self.out.write_all(&bytes).unwrap();
    }

    pub(crate) fn raw(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.out.write_all(&bytes).unwrap();
    }

    fn is_served(&self) {
        let mut client = self.sandbox.connect();
        client.ask(&ShimRequest::Subscribe);
        client.state();
    }
}

#[test]
fn rubbish_lies_and_floods_of_control_frames_change_nothing() {
    let spawner = Spawner::start();
    let mut rogue = Rogue::start(&spawner);
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    for round in 0..2_000_u32 {
        let kind = if round % 2 == 0 { 60 + random() % 20 } else { random() };
        // The end of the main process, and its windows, are the next test's.
        if [68, 69, 70, 67].contains(&kind) {
            continue;
        }
        let payload: Vec<u8> = (0..usize::from(random())).map(|_| random()).collect();
        rogue.raw(&Frame { kind, stream: u32::from(random() % 4), payload });
        if round % 10 == 0 {
            let rubbish: Vec<u8> = (0..500).map(|_| random()).collect();
            rogue.out.write_all(&rubbish).unwrap();
            rogue.out.write_all(&atoll_wire::frame::resync_padding()).unwrap();
        }
    }
    for stream in [0, 1, 7, u32::MAX] {
        for _ in 0..100 {
            rogue.say(stream, GuestMessage::Credit(u32::MAX));
            rogue.say(stream, GuestMessage::Done);
            rogue.say(stream, GuestMessage::Refused("no".into()));
            rogue.say(stream, GuestMessage::Processes(Vec::new()));
            rogue.say(stream, GuestMessage::Started(Started { pid: -1 }));
        }
    }
    rogue.is_served();
    rogue.sandbox.connect().request(&ShimRequest::Stop { grace_millis: 0 });
    rogue.client.until_ended();
}

#[test]
fn more_output_than_was_allowed_ends_its_container() {
    let spawner = Spawner::start();
    let mut rogue = Rogue::start(&spawner);
    let mut client = rogue.sandbox.connect();
    let request = ShimRequest::Exec { container: "main".into(), process: shell("true") };
    assert_eq!(client.request(&request), ShimReply::Ok);
    let mut offset = 0;
    let first = rogue.sandbox.first_process();
    // The client takes nothing, so that no credit is given: 256 KiB are allowed.
    for _ in 0..9 {
        rogue.say(1, GuestMessage::Stdout { offset, data: vec![0; 32 * 1024] });
        offset += 32 * 1024;
    }
    wait_until("its container is killed", || first.state().unwrap() != ProcessState::Running);
    rogue.client.until_ended();
    assert_eq!(rogue.sandbox.end().unwrap().containers[0].reason, ExitReason::GuestDied);
    drop(client);
}

#[test]
fn a_flood_for_a_client_that_does_not_read_costs_that_client_only() {
    let spawner = Spawner::start();
    let mut rogue = Rogue::start(&spawner);
    let mut client = rogue.sandbox.connect();
    let request = ShimRequest::Exec { container: "main".into(), process: shell("true") };
    assert_eq!(client.request(&request), ShimReply::Ok);
    for _ in 0..100_000 {
        rogue.say(1, GuestMessage::Started(Started { pid: 1 }));
    }
    rogue.is_served();
    let status =
        std::fs::read_to_string(format!("/proc/{}/statm", rogue.sandbox.shim().pid)).unwrap();
    let pages: u64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages < 4096, "{pages} pages");
}

#[test]
fn what_a_guest_says_about_itself_is_in_the_reason_of_its_end() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::with(vec![container("main", "true")], |launch| {
        let guest = launch.placement.directory.parent().unwrap().join("rogue");
        let script = "#!/bin/sh\nprintf 'panicked:\\033[31m\\n\\tat the disco' >&2\nexit 125\n";
        std::fs::write(&guest, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&guest, mode).unwrap();
        launch.placement.guest_binary = guest;
    });
    spawner.request(&sandbox.directory, false).until_ended();
    let exit = sandbox.end().unwrap().containers.remove(0);
    assert_eq!(exit.reason, ExitReason::GuestDied);
    assert!(
        exit.message.ends_with("code 125; it said: panicked: [31m at the disco"),
        "{}",
        exit.message
    );
}
