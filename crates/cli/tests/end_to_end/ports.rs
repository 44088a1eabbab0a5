//! Published ports: reached while their sandbox is ready, from everywhere, and never otherwise.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::support::world::{HOST, WORLD, on_a_host};
use crate::support::{IMAGE, Instance, wait_until};

/// A web server that is asked for /ok, and an echo beside it.
fn server(instance: &Instance, class: &str, name: &str) {
    let text = format!(
        "kind: Sandbox
id: {name}
spec:
  class: {class}
  ports:
    - {{container_port: 8000}}
    - {{container_port: 7, protocol: tcp, host_port: 7}}
  readiness_probe:
    {{protocol: http, port: 8000, path: /ok, initial_delay_seconds: 1, period_seconds: 1, timeout_seconds: 5, success_threshold: 1, failure_threshold: 2}}
  containers:
    - name: main
      image: {IMAGE}
      args: [sh, -c, 'mkdir /tmp/www; echo fine > /tmp/www/ok; nc -ll -p 7 -e cat & exec httpd -f -p 8000 -h /tmp/www']
"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

fn status(instance: &Instance, name: &str) -> Value {
    instance.sandbox(name).unwrap()["status"].clone()
}

/// The host's port for a port inside.
fn port_of(instance: &Instance, name: &str, inside: u16) -> u16 {
    let status = status(instance, name);
    let ports = status["assigned_ports"].as_array().unwrap();
    let port = ports.iter().find(|it| it["container_port"] == inside).unwrap();
    u16::try_from(port["host_port"].as_u64().unwrap()).unwrap()
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(5))
}

/// What a web server answers; empty: nothing.
fn get(stream: std::io::Result<TcpStream>) -> String {
    let mut answer = String::new();
    let asked = stream.and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /ok HTTP/1.0\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    if asked.is_ok() { answer } else { String::new() }
}

fn echo(stream: &mut TcpStream, word: &[u8]) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(word).unwrap();
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, word);
}

#[test]
fn a_published_port_is_reached_from_everywhere_while_its_sandbox_is_ready() {
    on_a_host("a_published_port_is_reached", |instance, class, world| {
        let name = format!("web-{class}");
        server(instance, class, &name);
        assert_eq!(status(instance, &name)["ready"], true);
        let port = port_of(instance, &name, 8000);
        let from = |host: &str| get(connect(at(host, port)));
        for host in ["127.0.0.1", "::1", HOST] {
            assert!(from(host).contains("fine"), "{host}");
        }
        assert!(get(world.connect(at(HOST, port))).contains("fine"), "from the world");
        let mut long = world.connect(at(HOST, port_of(instance, &name, 7))).unwrap();
        echo(&mut long, b"before");
        // Another sandbox does not reach it: neither at its address nor at the host's.
        let own = status(instance, &name)["ip"].as_str().unwrap().to_owned();
        for (host, port) in [(own.as_str(), 8000), (HOST, port)] {
            let script = format!("echo | timeout 5 nc {host} {port}");
            let arguments = ["run", "--egress", "--class", class, IMAGE, "--", "sh", "-c", &script];
            assert_ne!(instance.atoll(arguments).code, Some(0), "{host}");
        }

        let inside = |script: &str| instance.atoll(["exec", &name, "--", "sh", "-c", script]);
        inside("rm /tmp/www/ok").succeeded();
        wait_until("it is not ready", || status(instance, &name)["ready"] == false);
        assert_eq!(status(instance, &name)["phase"], "Running");
        wait_until("visitors are let in no more", || {
            connect(at("127.0.0.1", port)).is_err() && world.connect(at(HOST, port)).is_err()
        });
        assert!(TcpListener::bind(at("127.0.0.1", port)).is_err(), "nobody else takes it");
        echo(&mut long, b"who is in stays");
        inside("echo fine > /tmp/www/ok").succeeded();
        wait_until("it is ready again", || status(instance, &name)["ready"] == true);
        assert!(get(world.connect(at(HOST, port))).contains("fine"));

        instance.kill_server();
        echo(&mut long, b"without a server");
        assert!(get(world.connect(at(HOST, port))).contains("fine"), "without a server");
        assert!(from("127.0.0.1").contains("fine"), "without a server, from here");
        instance.up();
        echo(&mut long, b"after its restart");
        assert_eq!(port_of(instance, &name, 8000), port);
        assert!(get(world.connect(at(HOST, port))).contains("fine"), "after a restart");

        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        assert!(world.connect(at(HOST, port)).is_err(), "after its end");
        drop(TcpListener::bind(at("0.0.0.0", port)).unwrap());
    });
}

#[test]
fn a_port_that_is_wanted_is_had_or_told_who_has_it() {
    on_a_host("a_port_that_is_wanted", |instance, class, world| {
        let run = |name: &str, publish: &str, script: &str| {
            let mut arguments = vec!["run", "--keep", "--class", class, "--name", name];
            arguments.extend(["-p", publish, IMAGE, "--", "sh", "-c", script]);
            instance.begin(arguments)
        };
        let serve = "echo up; exec nc -ll -p 80 -e echo hello";
        let mut first = run("first", "12345:80", serve);
        first.line_with("up");
        let greeting = || {
            let mut text = String::new();
            let stream = world.connect(at(HOST, 12_345));
            drop(stream.and_then(|mut stream| stream.read_to_string(&mut text)));
            text
        };
        wait_until("it greets", || greeting() == "hello\n");
        let description = instance.atoll(["describe", "sandbox/first"]).succeeded();
        assert!(description.contains("12345 -> 80/tcp"), "{description}");
        run("second", "12345:80", serve).finish().complains("taken by sandbox first");
        let foreign = TcpListener::bind(at("0.0.0.0", 12_346)).unwrap();
        run("second", "12346:80", serve).finish().complains("a program outside of atoll");
        drop(foreign);
        run("second", "80:80", serve).finish().complains("outside of this node's range");
        run("second", "12345:80/udp", "true").finish().succeeded();
        // Once its command has ended its port is free, though the record stays.
        instance.atoll(["exec", "first", "--", "sh", "-c", "kill -9 -1"]);
        drop(first.finish());
        wait_until("its port can be had", || {
            let third = run("third", "12345:80", "true").finish();
            assert!(third.code == Some(0) || third.stderr.contains("taken by"), "{third:?}");
            third.code == Some(0)
        });
        for name in ["sandbox/first", "sandbox/second", "sandbox/third"] {
            instance.atoll(["delete", name]).succeeded();
        }
    });
}

#[test]
fn a_keeper_that_is_killed_is_replaced_and_nobody_notices_for_long() {
    on_a_host("a_keeper_that_is_killed", |instance, class, world| {
        let name = format!("kept-{class}");
        server(instance, class, &name);
        let port = port_of(instance, &name, 8000);
        let keeper = || {
            let own = instance.data_dir().display().to_string();
            crate::support::processes_of(&instance.data_dir()).into_iter().find(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains("network-keeper") && line.contains(&own)
            })
        };
        let first = keeper().unwrap();
        let kill = |pid| {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        kill(first);
        wait_until("another keeper", || keeper().is_some_and(|pid| pid != first));
        wait_until("loopback works again", || get(connect(at("127.0.0.1", port))).contains("fine"));
        assert!(get(world.connect(at(HOST, port))).contains("fine"));
        let look_up = [
            "run",
            "--egress",
            "--class",
            class,
            IMAGE,
            "--",
            "nslookup",
            "-type=a",
            "world.example",
        ];
        let found = instance.atoll(look_up);
        assert!(found.succeeded().contains(&format!("Address: {WORLD}")), "{found:?}");

        // With nobody there to hold it, its port goes to another program: then it is not shown as ready, nor half open.
        instance.kill_server();
        kill(keeper().unwrap());
        wait_until("nobody holds it", || keeper().is_none());
        let thief = TcpListener::bind(at("0.0.0.0", port)).unwrap();
        thief.set_nonblocking(true).unwrap();
        instance.up();
        wait_until("it is not ready", || status(instance, &name)["ready"] == false);
        let why = status(instance, &name)["conditions"].to_string();
        assert!(why.contains("visitors cannot be let in"), "{why}");
        wait_until("the port is the other program's alone", || {
            // The visitor hangs up first: the port is not to be kept by what is over.
            world.connect(at(HOST, port)).map(drop).is_ok() && thief.accept().is_ok()
        });
        drop(thief);
        wait_until("it is ready again", || status(instance, &name)["ready"] == true);
        assert!(get(world.connect(at(HOST, port))).contains("fine"));
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}
