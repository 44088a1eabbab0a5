//! Processes beside the command, and the command's own input and output.

use std::time::Duration;

use atoll_runtime::{ProcessInput, ProcessOutput, RuntimeError};
use atoll_wire::guest::{StartFailureKind, TerminalSize, TransferRequest, UserIds};

use crate::bench::{Bench, PATIENCE, command, shell};
use crate::running::finish;

pub(crate) async fn exec_output_and_codes(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let outcome = running.script("echo \"$GREETING\"; echo bad >&2; exit 3").await;
    assert!(outcome.started);
    assert_eq!((outcome.text(), outcome.errors()), ("hello there\n".into(), "bad\n".into()));
    assert_eq!(outcome.code(), Some(3));
    let killed = running.script("kill -9 $$").await;
    assert_eq!(killed.exited.and_then(|exited| exited.signal), Some(9));
    let unknown = running.sandbox.exec("nobody", shell("true")).await;
    assert!(matches!(unknown, Err(RuntimeError::NoContainer { .. })));
}

pub(crate) async fn exec_not_found(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let outcome = running.exec("main", command(&["no-such-program"]), b"").await;
    let failure = outcome.failure.expect("the start must fail");
    assert_eq!((failure.kind, failure.kind.exit_code()), (StartFailureKind::NotFound, 127));
    assert!(!outcome.started);
}

pub(crate) async fn exec_input(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    // More than both windows hold.
    let input: Vec<u8> = (0..1_500_000_u32).map(|number| (number % 251) as u8).collect();
    let outcome = running.exec("main", command(&["cat"]), &input).await;
    assert_eq!(outcome.code(), Some(0), "{}", outcome.errors());
    assert!(outcome.stdout == input, "{} bytes came back", outcome.stdout.len());
    let without = running.exec("main", command(&["cat"]), b"").await;
    assert_eq!((without.code(), without.text()), (Some(0), String::new()), "no input is its end");
}

pub(crate) async fn exec_terminal(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let mut spec =
        shell("test -t 0 && test -t 1 && stty size; read line; echo \"got $line\"; stty size");
    spec.terminal = Some(TerminalSize { rows: 33, columns: 120 });
    spec.stdin = true;
    let mut stream = running.sandbox.exec("main", spec).await.unwrap();
    let mut text = String::new();
    let mut answered = false;
    let exited = loop {
        let told = tokio::time::timeout(PATIENCE, stream.output.recv()).await.unwrap();
        match told.expect("the stream ends with Exited") {
            ProcessOutput::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            ProcessOutput::Exited(exited) => break exited,
            ProcessOutput::Started => {}
            other => panic!("unexpected: {other:?}"),
        }
        if !answered && text.contains("33 120") {
            answered = true;
            let size = TerminalSize { rows: 10, columns: 20 };
            stream.input.send(ProcessInput::Resize(size)).await.unwrap();
            stream.input.send(ProcessInput::Stdin("word\n".into())).await.unwrap();
        }
    };
    assert_eq!(exited.code, Some(0), "{text:?}");
    assert!(text.contains("got word") && text.contains("10 20"), "{text:?}");
}

pub(crate) async fn attach_lossless(bench: &mut Bench) {
    let mut expected = String::new();
    let script = if bench.sim.is_some() {
        expected.push_str("one\ntwo\n");
        "echo one; echo two; echo other >&2; exit 4"
    } else {
        for number in 1..=60_000 {
            expected.push_str(&format!("{number}\n"));
        }
        "seq 1 60000; echo other >&2; exit 4"
    };
    let mut plan = bench.plan(script);
    plan.containers[0].await_attach = true;
    let mut running = bench.launch(plan).await;
    let stream = running.sandbox.attach("main", true).await.unwrap();
    let outcome = finish(stream, b"").await;
    assert_eq!(outcome.lost, None);
    assert!(
        outcome.text() == expected,
        "{} of {} bytes came",
        outcome.stdout.len(),
        expected.len()
    );
    assert_eq!(outcome.errors(), "other\n");
    assert_eq!(outcome.code(), Some(4));
    assert_eq!(running.exit("main").await.code, Some(4));
    running.ended().await;
}

pub(crate) async fn attach_input(bench: &mut Bench) {
    let mut plan = bench.plan("");
    plan.containers[0].process = command(&["cat"]);
    plan.containers[0].process.stdin = true;
    plan.containers[0].await_attach = true;
    let mut running = bench.launch(plan).await;
    let stream = running.sandbox.attach("main", true).await.unwrap();
    let outcome = finish(stream, b"to and fro").await;
    assert_eq!(
        (outcome.text().as_str(), outcome.code()),
        ("to and fro", Some(0)),
        "{:?}",
        outcome.lost
    );
    assert_eq!(running.exit("main").await.code, Some(0));
    running.ended().await;
}

pub(crate) async fn slow_reader(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let mut unread = running.sandbox.exec("main", command(&["yes", "unread"])).await.unwrap();
    for _ in 0..10 {
        let outcome = running.script("echo others work").await;
        assert_eq!(outcome.text(), "others work\n");
    }
    // What was written is bounded by windows: the process waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut bytes = 0;
    while let Ok(told) = unread.output.try_recv() {
        if let ProcessOutput::Stdout(data) = told {
            bytes += data.len();
        }
    }
    assert!(
        bytes > 0 && bytes < 4 << 20,
        "{bytes} bytes had been written to a client who does not read"
    );
    drop(unread);
}

pub(crate) async fn transfers(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let mut archive = tar::Builder::new(Vec::new());
    let content: Vec<u8> = (0..700_000_u32).map(|number| (number % 253) as u8).collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    archive.append_data(&mut header, "dir/file", &content[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    let request = |path: &str| TransferRequest { path: path.into(), user: UserIds::default() };
    let upload = running.sandbox.upload("main", request("/data")).await.unwrap();
    let outcome = finish(upload, &archive).await;
    assert_eq!(outcome.transfer, Some(None), "{:?}", outcome.lost);
    let listed = running.script("stat -c '%a %s' /data/dir/file").await;
    assert_eq!(listed.text(), "640 700000\n", "{}", listed.errors());
    let download = running.sandbox.download("main", request("/data/dir/file")).await.unwrap();
    let outcome = finish(download, b"").await;
    assert_eq!(outcome.transfer, Some(None), "{:?}", outcome.lost);
    let mut archive = tar::Archive::new(&outcome.stdout[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("file"));
    let mut back = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut back).unwrap();
    assert!(back == content, "what came back is what was sent");
    let missing = running.sandbox.download("main", request("/data/nothing")).await.unwrap();
    let outcome = finish(missing, b"").await;
    assert!(matches!(&outcome.transfer, Some(Some(why)) if why.contains("nothing")), "{outcome:?}");
}
