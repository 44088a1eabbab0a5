//! Conversations with processes: windows end to end, attachments, copies.

use atoll_wire::guest::{GuestMessage, HostMessage, SignalRequest, TransferRequest, UserIds};
use atoll_wire::shim::{ShimReply, ShimRequest};

use crate::harness::{Client, Sandbox, Spawner, container, exec, shell, wait_until};

fn attach(sandbox: &Sandbox, from_start: bool) -> Client {
    let mut client = sandbox.connect();
    let request = ShimRequest::Attach { container: "main".into(), from_start };
    assert_eq!(client.request(&request), ShimReply::Ok);
    client
}

fn begin_exec(sandbox: &Sandbox, script: &str) -> Client {
    let mut client = sandbox.connect();
    let request = ShimRequest::Exec { container: "main".into(), process: shell(script) };
    assert_eq!(client.request(&request), ShimReply::Ok);
    client
}

#[test]
fn exec_gives_output_errors_and_exit_and_takes_input_of_any_size() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let finished = exec(&sandbox, "main", "echo out; echo err >&2; exit 4");
    assert_eq!((finished.text().as_str(), &finished.stderr[..]), ("out\n", &b"err\n"[..]));
    assert_eq!(finished.code(), Some(4));

    let mut client = begin_exec(&sandbox, "wc -c; echo end");
    let mut writer = Client::clone_of(&client);
    let sender = std::thread::spawn(move || {
        let mut sent = 0;
        while sent < 3_000_000 {
            writer.send(HostMessage::Stdin(vec![b'x'; 30_000]));
            sent += 30_000;
        }
        writer.send(HostMessage::StdinEnd);
    });
    let finished = client.finish();
    sender.join().unwrap();
    assert_eq!(finished.text(), "3000000\nend\n");
    let credit: u64 = finished
        .others
        .iter()
        .map(
            |message| if let GuestMessage::Credit(bytes) = message { u64::from(*bytes) } else { 0 },
        )
        .sum();
    assert!(credit >= 2_900_000, "the client is told what was taken: {credit}");
}

#[test]
fn large_output_arrives_whole_and_a_client_that_does_not_read_slows_only_its_process() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let marker = sandbox.outside("finished");
    let lazy =
        begin_exec(&sandbox, &format!("head -c 20000000 /dev/zero; touch {}", marker.display()));
    let finished = exec(&sandbox, "main", "head -c 20000000 /dev/zero");
    assert_eq!((finished.stdout.len(), finished.code()), (20_000_000, Some(0)));
    assert!(!marker.exists(), "its process waits for its client");
    drop(lazy);
    wait_until("without a client it goes on", || marker.exists());
}

#[test]
fn who_attaches_from_the_start_misses_nothing_and_sets_the_pace() {
    let spawner = Spawner::start();
    let done = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done >&2";
    let mut plan = container("main", done);
    plan.await_attach = true;
    let sandbox = Sandbox::new(vec![plan]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("the first window is full", || sandbox.log_text("main").len() >= 200_000);
    assert!(sandbox.log_text("main").len() < 600_000, "nobody attached, so it waits");
    let finished = attach(&sandbox, true).finish();
    assert_eq!(finished.stdout.len(), 3_000_001);
    assert_eq!((&finished.stderr[..], finished.code()), (&b"done\n"[..], Some(0)));
    client.until_ended();
}

#[test]
fn who_looks_on_and_takes_nothing_is_left_behind_and_the_log_has_all() {
    let spawner = Spawner::start();
    let lines = 200_000;
    let sandbox = Sandbox::with(vec![container("main", "")], |launch| {
        // Outside the sandbox's own directory.
        let marker = launch.placement.directory.parent().unwrap().join("written");
        let script = format!("read _; seq 1 {lines}; touch {}; read _; exit 5", marker.display());
        launch.plan.containers[0].process = shell(&script);
        launch.plan.containers[0].log_bytes = 1 << 30;
    });
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut stuck = attach(&sandbox, false);
    let reader = attach(&sandbox, false);
    let mut typist = Client::clone_of(&reader);
    typist.send(HostMessage::Stdin(b"\n".to_vec()));
    let healthy = std::thread::spawn(move || {
        let mut reader = reader;
        reader.finish()
    });
    wait_until("the command goes on", || sandbox.outside("written").exists());
    typist.send(HostMessage::Stdin(b"\n".to_vec()));
    client.until_ended();
    let whole: String = (1..=lines).map(|number| format!("{number}\n")).collect();
    assert_eq!(sandbox.log_text("main"), whole);
    let finished = healthy.join().unwrap();
    assert_eq!((finished.text(), finished.code()), (whole, Some(5)), "another client has all");
    let finished = stuck.finish();
    let Some(GuestMessage::Refused(why)) = finished.others.last() else {
        panic!("it is not told why")
    };
    assert!(why.contains("log"), "{why}");
    assert!(finished.exited.is_none() && finished.stdout.len() >= 200_000, "as much as it could");
}

#[test]
fn a_command_that_ended_before_its_client_came_is_still_read_to_its_end() {
    let spawner = Spawner::start();
    let mut plan = container("main", "echo quick; exit 6");
    plan.await_attach = true;
    let sandbox = Sandbox::new(vec![plan]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_ended();
    let finished = attach(&sandbox, true).finish();
    assert_eq!((finished.text().as_str(), finished.code()), ("quick\n", Some(6)));
}

#[test]
fn a_client_that_reads_long_after_the_end_loses_nothing() {
    let spawner = Spawner::start();
    // As much as may be under way: more than a socket holds, so that the rest waits in the shim.
    let bytes = atoll_wire::guest::INITIAL_WINDOW_BYTES;
    let mut plan = container("main", &format!("head -c {bytes} /dev/zero; exit 3"));
    plan.await_attach = true;
    let sandbox = Sandbox::new(vec![plan]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut late = attach(&sandbox, true);
    client.until_ended();
    // Longer than what nobody takes is kept.
    std::thread::sleep(std::time::Duration::from_secs(16));
    let finished = late.finish();
    assert_eq!((finished.stdout.len(), finished.code()), (bytes as usize, Some(3)));
}

#[test]
fn several_attach_and_type_and_a_close_detaches() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("while read line; do echo \"got $line\"; done; exit 9");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut first = attach(&sandbox, false);
    let mut second = attach(&sandbox, false);
    drop(attach(&sandbox, true));
    first.send(HostMessage::Stdin(b"one\n".to_vec()));
    wait_until("one arrives", || sandbox.log_text("main").contains("got one"));
    second.send(HostMessage::Stdin(b"two\n".to_vec()));
    wait_until("two arrives", || sandbox.log_text("main").contains("got two"));
    second.send(HostMessage::StdinEnd);
    for client in [&mut first, &mut second] {
        let finished = client.finish();
        assert_eq!(finished.text(), "got one\ngot two\n");
        assert_eq!(finished.code(), Some(9));
    }
    client.until_ended();
}

#[test]
fn a_terminal_is_one_stream_and_knows_its_size() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let mut client = sandbox.connect();
    let mut process = shell("stty size; echo err >&2; read _; stty size");
    process.terminal = Some(atoll_wire::guest::TerminalSize { rows: 33, columns: 44 });
    client.request(&ShimRequest::Exec { container: "main".into(), process });
    let mut seen = String::new();
    while !seen.contains("err") {
        if let Some(GuestMessage::Stdout { data, .. }) = client.message() {
            seen.push_str(&String::from_utf8_lossy(&data));
        }
    }
    assert!(seen.contains("33 44"), "{seen}");
    client.send(HostMessage::Resize(atoll_wire::guest::TerminalSize { rows: 55, columns: 66 }));
    client.send(HostMessage::Stdin(b"\n".to_vec()));
    let finished = client.finish();
    assert!(finished.text().contains("55 66"), "{finished:?}");
}

#[test]
fn a_process_of_exec_takes_signals_of_its_client() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    let mut main = spawner.request(&sandbox.directory, false);
    main.until_started();
    let mut client = begin_exec(&sandbox, "exec sleep 1000");
    assert!(matches!(client.message(), Some(GuestMessage::Started(_))));
    client.send(HostMessage::Signal(SignalRequest { signal: 15, everyone: false }));
    assert_eq!(client.finish().exited.unwrap().signal, Some(15));
    assert_eq!(exec(&sandbox, "main", "echo alive").text(), "alive\n");
}

#[test]
fn files_go_in_and_come_out() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let source = sandbox.outside("source");
    let target = sandbox.outside("target");
    std::fs::create_dir_all(source.join("inner")).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(source.join("inner/file"), vec![7; 1_000_000]).unwrap();
    let transfer = |path: &std::path::Path| TransferRequest {
        path: path.to_str().unwrap().into(),
        user: UserIds::default(),
    };
    let mut down = sandbox.connect();
    let request = ShimRequest::Download { container: "main".into(), transfer: transfer(&source) };
    assert_eq!(down.request(&request), ShimReply::Ok);
    let tar = down.finish();
    assert!(
        matches!(&tar.others[..], [GuestMessage::TransferDone(outcome)] if outcome.error.is_none()),
        "{:?}",
        tar.others
    );
    let mut up = sandbox.connect();
    let request = ShimRequest::Upload { container: "main".into(), transfer: transfer(&target) };
    assert_eq!(up.request(&request), ShimReply::Ok);
    let mut writer = Client::clone_of(&up);
    let bytes = tar.stdout.clone();
    let sender = std::thread::spawn(move || {
        for part in bytes.chunks(32 * 1024) {
            writer.send(HostMessage::Stdin(part.to_vec()));
        }
        writer.send(HostMessage::StdinEnd);
    });
    let finished = up.finish();
    sender.join().unwrap();
    let done = finished.others.iter().any(
        |message| matches!(message, GuestMessage::TransferDone(outcome) if outcome.error.is_none()),
    );
    assert!(done, "{:?}", finished.others);
    let copy = std::fs::read(target.join("source/inner/file")).unwrap();
    assert!(copy == vec![7; 1_000_000]);
}

#[test]
fn processes_are_listed_and_refusals_are_clear() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let ShimReply::Processes { processes } =
        sandbox.connect().request(&ShimRequest::Processes { container: "main".into() })
    else {
        panic!("no list")
    };
    assert!(!processes.is_empty());
    let request = ShimRequest::Processes { container: "other".into() };
    let ShimReply::Refused { message } = sandbox.connect().request(&request) else {
        panic!("not refused")
    };
    assert_eq!(message, "the sandbox has no container \"other\"");
}

#[test]
fn clients_of_processes_hear_the_end_of_the_container() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("read _");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut running = begin_exec(&sandbox, "sleep 1000");
    assert!(matches!(running.message(), Some(GuestMessage::Started(_))));
    sandbox.connect().request(&ShimRequest::Stop { grace_millis: 0 });
    assert_eq!(running.finish().exited.unwrap().signal, Some(9));
    client.until_ended();
}
