//! Clients of exec and attach that end, give up or are cut off, many of them: neither the server nor the shim keeps anything of them.

use std::net::TcpStream;
use std::time::Duration;

use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::support::{IMAGE, Instance, LIMIT, in_each_class, wait_until};

/// Attaches of a round, and execs of each kind.
const ATTACHES: usize = 200;
const EXECS: usize = 8;
/// Most by which a process may grow from one round to the next, in KiB: 4 KiB for each stream, and more than what an allocator keeps
/// differently from one time to another (guess, from measuring).
const NOISE_KIB: u64 = 1024;

type Socket = WebSocket<TcpStream>;

/// A server, as a client that is no `atoll` sees it.
struct Server {
    address: String,
    token: String,
    pid: i32,
}

impl Server {
    fn of(instance: &Instance) -> Self {
        let read = |name: &str| std::fs::read_to_string(instance.data_dir().join(name)).unwrap();
        let record: serde_json::Value = serde_json::from_str(&read("server.json")).unwrap();
        let address = record["address"].as_str().unwrap().trim_start_matches("http://").to_owned();
        let pid = instance.server_pid().expect("a server runs").as_raw_nonzero().get();
        Self { address, token: read("token").trim().to_owned(), pid }
    }

    /// An upgraded connection on which nothing has been asked for.
    fn connect(&self, what: &str) -> Socket {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let url = format!("ws://{}/api/v1/sandboxes/left/{what}", self.address);
        let mut request = url.into_client_request().unwrap();
        let token = format!("Bearer {}", self.token).parse().unwrap();
        request.headers_mut().insert("authorization", token);
        client(request, stream).unwrap().0
    }

    fn ask(&self, what: &str, request: &serde_json::Value) -> Socket {
        let mut socket = self.connect(what);
        socket.send(Message::Text(request.to_string().into())).unwrap();
        socket
    }
}

/// Reads until a message has this in it.
fn until(socket: &mut Socket, expected: &str) {
    loop {
        match socket.read().unwrap() {
            Message::Close(_) => panic!("it was closed before {expected:?} came"),
            message if message.to_text().is_ok_and(|text| text.contains(expected)) => return,
            _ => {}
        }
    }
}

/// One of each kind of end.
fn execs(server: &Server) {
    let cat = serde_json::json!({"command": ["cat"], "stdin": true});
    // Cut off: its input ends with the client, and the command with it.
    let mut cut = server.ask("exec", &cat);
    until(&mut cut, "started");
    drop(cut);
    // Cut off before it was begun, and before it was asked for.
    drop(server.ask("exec", &cat));
    drop(server.connect("exec"));
    // With a terminal that is changed while it cannot be started. SOURCE: CVE-2022-23471.
    let absent = serde_json::json!({"command": ["/absent"], "tty": true, "stdin": true, "size": {"rows": 24, "columns": 80}});
    let mut faulty = server.ask("exec", &absent);
    let resize = serde_json::json!({"type": "resize", "rows": 25, "columns": 81}).to_string();
    for _ in 0..4 {
        // It may be over by then.
        if faulty.send(Message::Text(resize.clone().into())).is_err() {
            break;
        }
    }
    until(&mut faulty, "start_failed");
    let mut whole = server.ask("exec", &serde_json::json!({"command": ["true"]}));
    until(&mut whole, "exited");
}

fn round(server: &Server) {
    for number in 0..ATTACHES {
        let stdin = number % 2 == 0;
        let mut socket = server.ask("attach", &serde_json::json!({"stdin": stdin}));
        match number % 4 {
            0 => until(&mut socket, "tick"),
            1 => drop(server.connect("attach")),
            2 => socket.close(None).unwrap(),
            _ => {}
        }
    }
    for _ in 0..EXECS {
        execs(server);
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: i32) -> Self {
        let count = |what: &str| {
            std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count)
        };
        Self { descriptors: count("fd"), threads: count("task") }
    }

    /// When nothing is given back any more. A leak of one round is in it, and that of the next is seen against it.
    fn at_rest(pid: i32) -> Self {
        let mut last = Self::by(pid);
        wait_until("it is at rest", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = Self::by(pid);
            std::mem::replace(&mut last, now) == now
        });
        last
    }

    fn is_within(self, bound: Self) -> bool {
        self.descriptors <= bound.descriptors && self.threads <= bound.threads
    }
}

/// Of its memory that is its own and in use.
fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// GO-2025-4108, where each attach that was over left something of itself behind in the daemon.
#[test]
fn clients_that_end_or_are_cut_off_leave_nothing_in_server_and_shim() {
    in_each_class("clients_leave_nothing", |instance, class| {
        let text = format!(
            "kind: Sandbox\nid: left\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      stdin: true\n      args: [sh, -c, 'while :; do echo tick; sleep 0.05; done']\n"
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        let server = Server::of(instance);
        let uid = instance.sandbox("left").expect("it runs")["uid"].as_str().unwrap().to_owned();
        let record = instance.data_dir().join("sandboxes").join(uid).join("shim.json");
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let shim = i32::try_from(record["shim"]["pid"].as_i64().unwrap()).unwrap();
        // What is made once and kept (threads, buffers) is made now.
        round(&server);
        let bounds = [server.pid, shim].map(|pid| (pid, Held::at_rest(pid)));
        let before = bounds.map(|(pid, _)| resident_kib(pid));
        round(&server);
        for (pid, bound) in bounds {
            wait_until("all is given back", || Held::by(pid).is_within(bound));
        }
        let after = bounds.map(|(pid, _)| resident_kib(pid));
        println!("{class}: {bounds:?} {before:?} KiB, then {after:?} KiB");
        for (before, after) in before.into_iter().zip(after) {
            assert!(after <= before + NOISE_KIB, "{before} KiB became {after} KiB");
        }
        let inside = instance.atoll(["exec", "left", "--", "ps", "-o", "comm"]).succeeded();
        assert!(!inside.lines().any(|line| line.trim() == "cat"), "{inside}");
        instance.atoll(["delete", "sandbox/left"]).succeeded();
    });
}
