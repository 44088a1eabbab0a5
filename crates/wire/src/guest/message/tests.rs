use proptest::prelude::*;

use super::*;
use crate::guest::{StartFailureKind, StreamState, UserIds, UserLimits};

fn spec() -> ProcessSpec {
    ProcessSpec {
        args: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec!["PATH=/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: 0,
        no_new_privileges: true,
        stdin: false,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

fn host_messages() -> Vec<HostMessage> {
    let transfer = TransferRequest { path: "/tmp".into(), user: UserIds::default() };
    vec![
        HostMessage::Hello(Hello { versions: vec![1, 2], epoch: u64::MAX }),
        HostMessage::Boot(Boot {
            hostname: Some("island".into()),
            seccomp_filter_base64: String::new(),
            pids_limit: Some(64),
            user_limits: Some(UserLimits { root: 65, other: 63 }),
        }),
        HostMessage::Start(spec()),
        HostMessage::Exec(spec()),
        HostMessage::Stdin(vec![0xff; MAX_DATA_BYTES]),
        HostMessage::StdinEnd,
        HostMessage::Resize(TerminalSize { rows: 24, columns: 80 }),
        HostMessage::Signal(SignalRequest { signal: 15, everyone: true }),
        HostMessage::Credit(7),
        HostMessage::ExitAck,
        HostMessage::Upload(transfer.clone()),
        HostMessage::Download(transfer),
        HostMessage::ListProcesses,
        HostMessage::SetHostname("reef".into()),
        HostMessage::Detach,
    ]
}

fn guest_messages() -> Vec<GuestMessage> {
    let exited = Exited { code: Some(3), signal: None, pids_limit: false };
    let state = StreamState {
        stream: u32::MAX,
        pid: Some(i32::MAX),
        stdout_sent_bytes: u64::MAX,
        stderr_sent_bytes: u64::MAX,
        exited: Some(exited),
    };
    vec![
        // The largest that a guest can have to send: it must fit into a frame.
        GuestMessage::HelloAck(HelloAck {
            version: 1,
            epoch: u64::MAX,
            build: "0.1.0".into(),
            booted: true,
            streams: vec![state; MAX_STREAM_STATES],
        }),
        GuestMessage::Started(Started { pid: 2 }),
        GuestMessage::StartFailed(StartFailure {
            kind: StartFailureKind::NotFound,
            message: "no such program".into(),
        }),
        GuestMessage::Stdout { offset: u64::MAX, data: vec![1; MAX_DATA_BYTES] },
        GuestMessage::Stderr { offset: 0, data: Vec::new() },
        GuestMessage::Exited(exited),
        GuestMessage::Credit(u32::MAX),
        GuestMessage::TransferDone(TransferOutcome { error: Some("full".into()) }),
        GuestMessage::Processes(vec![ProcessInfo {
            pid: 2,
            parent_pid: 1,
            uid: 0,
            resident_kib: 1,
            cpu_millis: 2,
            command: "sleep 9".into(),
        }]),
        GuestMessage::Done,
        GuestMessage::Refused("no".into()),
    ]
}

#[test]
fn every_message_survives_its_frame() {
    for message in host_messages() {
        let frame = message.clone().into_frame(5).unwrap();
        assert!(GuestMessage::from_frame(frame.clone()).is_err(), "a reflected frame is no answer");
        assert_eq!(frame.stream, 5);
        assert_eq!(HostMessage::from_frame(frame).unwrap(), message);
    }
    for message in guest_messages() {
        let frame = message.clone().into_frame(6).unwrap();
        assert!(frame.clone().encode(&mut Vec::new()).is_ok());
        assert!(HostMessage::from_frame(frame.clone()).is_err());
        assert_eq!(GuestMessage::from_frame(frame).unwrap(), message);
    }
}

#[test]
fn what_is_too_large_is_an_error_for_the_sender() {
    let mut large = spec();
    large.args.push("x".repeat(MAX_PAYLOAD_BYTES));
    assert!(matches!(
        HostMessage::Exec(large).into_frame(1),
        Err(MessageError::TooLarge { kind: 4, .. })
    ));
    assert!(HostMessage::Stdin(vec![0; MAX_DATA_BYTES + 9]).into_frame(1).is_err());
}

#[test]
fn what_a_guest_says_is_cut_and_cleaned() {
    let long = "\u{1b}[2J".to_owned() + &"x".repeat(5000);
    let frame = GuestMessage::Refused(long).into_frame(0).unwrap();
    let GuestMessage::Refused(reason) = GuestMessage::from_frame(frame).unwrap() else {
        panic!("another kind");
    };
    assert_eq!(reason.chars().count(), MAX_TEXT_CHARS);
    assert!(reason.starts_with("\u{fffd}[2J"));
    let oversized = Frame {
        kind: GuestKind::Stdout.number(),
        stream: 0,
        payload: vec![0; 8 + MAX_DATA_BYTES + 1],
    };
    assert!(GuestMessage::from_frame(oversized).is_err());
    let short = Frame { kind: GuestKind::Stdout.number(), stream: 0, payload: vec![0; 7] };
    assert!(GuestMessage::from_frame(short).is_err());
}

#[test]
fn the_first_version_of_the_protocol_stays_readable() {
    let frozen = br#"{"args":["/bin/true"],"env":[],"working_directory":"/","make_working_directory":false,"user":{"uid":1,"gid":2,"supplementary_gids":[3]},"capabilities":5,"no_new_privileges":true,"stdin":false,"terminal":{"rows":1,"columns":2},"umask":18,"oom_score_adj":1,"open_files":64}"#;
    let frame = Frame { kind: 4, stream: 1, payload: frozen.to_vec() };
    let HostMessage::Exec(spec) = HostMessage::from_frame(frame).unwrap() else {
        panic!("another kind");
    };
    assert_eq!((spec.user.uid, spec.capabilities, spec.open_files), (1, 5, Some(64)));
    let frozen = br#"{"hostname":null,"seccomp_filter_base64":"","pids_limit":7}"#;
    let boot = HostMessage::from_frame(Frame { kind: 2, stream: 0, payload: frozen.to_vec() });
    let HostMessage::Boot(boot) = boot.unwrap() else { panic!("another kind") };
    assert_eq!((boot.pids_limit, boot.user_limits), (Some(7), None));
    let exited = Frame { kind: 70, stream: 1, payload: br#"{"code":0,"signal":null}"#.to_vec() };
    assert_eq!(
        GuestMessage::from_frame(exited).unwrap(),
        GuestMessage::Exited(Exited { code: Some(0), signal: None, pids_limit: false })
    );
}

proptest! {
    #[test]
    fn any_payload_of_any_kind_is_read_or_refused(
        kind in prop_oneof![1_u8..=15, 65_u8..=75, any::<u8>()],
        payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\{(\"(code|pid|signal|versions|epoch|path|error|rows)\":(0|-1|null|\"x\"|\\[\\]|1e400),?){0,4}\\}".prop_map(String::into_bytes),
        ],
    ) {
        let mut data = vec![kind];
        data.extend(payload);
        fuzz_guest_messages(&data);
    }
}
