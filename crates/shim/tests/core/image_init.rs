//! Containers whose first process is the image's own.

use atoll_wire::guest::{GuestMessage, HostMessage, SignalRequest, TransferRequest, UserIds};
use atoll_wire::record::ExitReason;
use atoll_wire::shim::{Init, ShimEvent, ShimReply, ShimRequest};

use crate::harness::{Client, Sandbox, Spawner, container, exec, kill, shell, wait_until};

fn sandbox(script: &str) -> Sandbox {
    let mut plan = container("main", script);
    plan.init = Init::Image;
    Sandbox::new(vec![plan])
}

fn attach(sandbox: &Sandbox) -> Client {
    let mut client = sandbox.connect();
    let request = ShimRequest::Attach { container: "main".into(), from_start: false };
    assert_eq!(client.request(&request), ShimReply::Ok);
    client
}

#[test]
fn its_output_input_and_exit_go_through_the_shim() {
    let spawner = Spawner::start();
    let sandbox = sandbox("echo pid $$; read line; echo got $line >&2; cat; exit 12");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "pid 1\n");
    let mut attached = attach(&sandbox);
    attached.send(HostMessage::Stdin(b"word\nrest".to_vec()));
    attached.send(HostMessage::StdinEnd);
    let finished = attached.finish();
    assert_eq!((finished.text().as_str(), &finished.stderr[..]), ("rest", &b"got word\n"[..]));
    assert_eq!(finished.code(), Some(12));
    client.until_ended();
    assert_eq!(sandbox.end().unwrap().containers[0].code, Some(12));
}

#[test]
fn large_output_waits_for_its_client_and_none_is_lost_at_the_end() {
    let spawner = Spawner::start();
    let mut plan = container("main", "head -c 3000000 /dev/zero; echo end >&2");
    plan.init = Init::Image;
    plan.await_attach = true;
    let sandbox = Sandbox::new(vec![plan]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: true });
    let finished = attached.finish();
    assert_eq!((finished.stdout.len(), &finished.stderr[..]), (3_000_000, &b"end\n"[..]));
    assert_eq!(finished.code(), Some(0));
    client.until_ended();
}

#[test]
fn processes_enter_from_outside() {
    let spawner = Spawner::start();
    let sandbox = sandbox("sleep 1000");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let finished = exec(&sandbox, "main", "echo out; echo err >&2; exit 4");
    assert_eq!((finished.text().as_str(), &finished.stderr[..]), ("out\n", &b"err\n"[..]));
    assert_eq!(finished.code(), Some(4));
    let large = exec(&sandbox, "main", "head -c 5000000 /dev/zero");
    assert_eq!((large.stdout.len(), large.code()), (5_000_000, Some(0)));

    let mut typed = sandbox.connect();
    let process = shell("wc -c");
    typed.request(&ShimRequest::Exec { container: "main".into(), process });
    for _ in 0..50 {
        typed.send(HostMessage::Stdin(vec![1; 20_000]));
    }
    typed.send(HostMessage::StdinEnd);
    assert_eq!(typed.finish().text(), "1000000\n");

    let mut with_terminal = shell("true");
    with_terminal.terminal = Some(atoll_wire::guest::TerminalSize { rows: 1, columns: 1 });
    let mut refused = sandbox.connect();
    refused.request(&ShimRequest::Exec { container: "main".into(), process: with_terminal });
    assert!(matches!(refused.message(), Some(GuestMessage::StartFailed(_))));

    sandbox.connect().request(&ShimRequest::Stop { grace_millis: 0 });
    client.until_ended();
    assert_eq!(sandbox.end().unwrap().containers[0].reason, ExitReason::Stopped);
}

#[test]
fn its_stop_signal_reaches_it() {
    let spawner = Spawner::start();
    let sandbox = sandbox("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("it is ready", || sandbox.log_text("main") == "ready\n");
    let signal = SignalRequest { signal: 15, everyone: false };
    let request = ShimRequest::Signal { container: "main".into(), signal };
    assert_eq!(sandbox.connect().request(&request), ShimReply::Ok);
    client.until_ended();
    assert_eq!(sandbox.log_text("main"), "ready\nbye\n");
}

#[test]
fn it_survives_its_shim_and_its_output_waits() {
    let spawner = Spawner::start();
    let sandbox = sandbox("echo before; sleep 0.5; echo while away; sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    sandbox.kill_shim();
    std::thread::sleep(std::time::Duration::from_millis(700));
    let mut client = spawner.request(&sandbox.directory, true);
    assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
    assert!(client.state().containers[0].exit.is_none());
    wait_until("it is read", || sandbox.log_text("main") == "before\nwhile away\n");
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
    kill(&sandbox.first_process());
    client.until_ended();
    let exit = sandbox.end().unwrap().containers.remove(0);
    assert_eq!((exit.code, exit.reason), (None, ExitReason::Unknown), "nobody's child any more");
}

#[test]
fn files_are_copied_by_the_images_own_tar() {
    let spawner = Spawner::start();
    let sandbox = sandbox("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let (source, target) = (sandbox.outside("source"), sandbox.outside("target"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(source.join("file"), vec![9; 100_000]).unwrap();
    let transfer = |path: &std::path::Path| TransferRequest {
        path: path.to_str().unwrap().into(),
        user: UserIds::default(),
    };
    let copy = |request| {
        let mut client = sandbox.connect();
        assert_eq!(client.request(&request), ShimReply::Ok);
        client
    };
    let main = || "main".to_owned();
    let down = ShimRequest::Download { container: main(), transfer: transfer(&source) };
    let tar = copy(down).finish().stdout;
    let up = ShimRequest::Upload { container: main(), transfer: transfer(&target) };
    let mut client = copy(up);
    for part in tar.chunks(10_000) {
        client.send(HostMessage::Stdin(part.to_vec()));
    }
    client.send(HostMessage::StdinEnd);
    let done = client.finish().others;
    assert!(
        matches!(done.last(), Some(GuestMessage::TransferDone(outcome)) if outcome.error.is_none()),
        "{done:?}"
    );
    assert_eq!(std::fs::read(target.join("source/file")).unwrap(), vec![9; 100_000]);
    let missing = ShimRequest::Download {
        container: main(),
        transfer: transfer(std::path::Path::new("/no/such/path")),
    };
    let done = copy(missing).finish().others;
    assert!(
        matches!(done.last(), Some(GuestMessage::TransferDone(outcome)) if outcome.error.is_some()),
        "{done:?}"
    );
}
