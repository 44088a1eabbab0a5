//! Sandboxes with ports and egress under kill -9 and under constant change: who is said to be ready answers at its own port and reaches the
//! world, open connections stay, and ports, rules and slots of the gone are gone.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::kills::{kill, shims, spawners};
use crate::seed::Chance;
use crate::support::world::{HOST, WORLD, World, on_one_host};
use crate::support::{IMAGE, Instance, REAL_CLASSES, processes_of, wait_until};

/// Sandboxes that are killed around, in an ordinary run and where `ATOLL_TEST_FULL` is set.
const ORDINARY: u64 = 24;
const FULL: u64 = 150;
/// Between two kills, in milliseconds, at most.
const LONGEST_CALM_MILLIS: u64 = 300;
/// So many are there at a time: more would make this a test of the machine's size.
const MOST_AT_A_TIME: usize = 12;
/// Slots that a server keeps ready, and one that it is about to.
const SPARE_SLOTS: usize = 5;

/// Says its name to whoever comes to port 7, and sends back what is sent to port 8.
fn manifest(name: &str, class: &str) -> String {
    format!(
        "kind: Sandbox
id: {name}
spec:
  class: {class}
  egress: true
  ports: [{{container_port: 7}}, {{container_port: 8}}]
  readiness_probe:
    {{protocol: tcp, port: 7, initial_delay_seconds: 1, period_seconds: 1, timeout_seconds: 5, success_threshold: 1, failure_threshold: 60}}
  containers:
    - name: main
      image: {IMAGE}
      args: [sh, -c, 'nc -ll -p 8 -e cat & exec nc -ll -p 7 -e echo {name}']
      resource: {{cpu: 100m, memory: 64Mi}}
"
    )
}

/// The host's ports for 7 and 8.
fn ports(instance: &Instance, name: &str) -> Option<[u16; 2]> {
    let sandbox = instance.sandbox(name)?;
    let assigned = sandbox["status"]["assigned_ports"].as_array()?.clone();
    let port = |inside: u64| {
        let port = assigned.iter().find(|port| port["container_port"] == inside)?;
        u16::try_from(port["host_port"].as_u64()?).ok()
    };
    Some([port(7)?, port(8)?])
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

/// Who answers at a port of the host; empty: nobody.
fn visit(world: &World, port: u16) -> String {
    let mut name = String::new();
    let read = world.connect(at(HOST, port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.read_to_string(&mut name)
    });
    if read.is_err() { String::new() } else { name.trim().to_owned() }
}

/// Sends something and gets it back; false: the connection is broken.
fn echoes(stream: &mut TcpStream, text: &[u8]) -> bool {
    let mut back = vec![0; text.len()];
    stream.write_all(text).and_then(|()| stream.read_exact(&mut back)).is_ok() && back == text
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Ports of the range that sockets of the host hold.
fn held_ports() -> BTreeSet<u16> {
    let listing = output("ss", &["-Hltun"]);
    let ports = listing.lines().filter_map(|line| {
        let local = line.split_whitespace().nth(4)?;
        local.rsplit_once(':')?.1.parse().ok()
    });
    ports.filter(|port| (10_000..=32_767).contains(port)).collect()
}

/// Nothing of the gone is left in the host's rules, the ring or the keeper.
fn nothing_is_left_of_the_gone(instance: &Instance) {
    let table = output("nft", &["list", "tables"]);
    let table = table.lines().find_map(|line| line.strip_prefix("table inet atoll_")).unwrap();
    let name = format!("atoll_{table}");
    for map in ["published4", "published6"] {
        let elements = output("nft", &["list", "map", "inet", &name, map]);
        assert!(!elements.contains("elements"), "{elements}");
    }
    let ring = format!("--net={}", instance.data_dir().join("network/ring").display());
    wait_until("no slot is left but spare ones", || {
        let links = output("nsenter", &[&ring, "ip", "-o", "link"]);
        let slots =
            links.lines().filter(|line| line.contains("link-netns") || line.contains("@if"));
        slots.count() <= SPARE_SLOTS + 1
    });
    let rules = output("nsenter", &[&ring, "nft", "list", "ruleset"]);
    for set in ["doors4", "doors6", "slots"] {
        let set = rules.split(&format!("{set} {{")).nth(1).unwrap().split('}').next().unwrap();
        assert!(!set.contains("elements"), "{set}");
    }
    let held = held_ports();
    let server = instance.sandboxes();
    assert!(held.is_empty(), "{held:?} are held for nobody; {server:?}");
}

fn keepers(instance: &Instance) -> Vec<Pid> {
    let is_keeper = |pid: &i32| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains("/+network-keeper")
    };
    processes_of(&instance.data_dir())
        .into_iter()
        .filter(is_keeper)
        .filter_map(Pid::from_raw)
        .collect()
}

/// Kills something of atoll's own, and starts the server again if it was that.
fn strike(instance: &Instance, chance: &mut Chance) {
    let (victims, server) = match chance.below(5) {
        0 | 1 => (Vec::new(), true),
        2 => (keepers(instance), false),
        3 => (keepers(instance), true),
        _ => (shims(instance).into_iter().chain(spawners(instance)).collect(), true),
    };
    kill(instance, &victims, server);
}

fn classes(instance: &Instance) -> Vec<&'static str> {
    let available = instance.available_classes();
    REAL_CLASSES.into_iter().filter(|class| available.iter().any(|it| it == class)).collect()
}

#[test]
fn kills_at_any_moment_leave_ports_rules_and_slots_as_the_status_says() {
    on_one_host("network_kills", |instance, world| {
        let classes = classes(instance);
        let count = if std::env::var_os("ATOLL_TEST_FULL").is_some() { FULL } else { ORDINARY };
        let mut chance = Chance::new();
        let mut acknowledged = BTreeSet::new();
        let mut stays = None;
        for number in 0..count {
            let name = format!("n{number}");
            let class = classes[usize::try_from(number).unwrap_or(0) % classes.len()];
            let mut create = instance.begin(["create", "-f", "-"]);
            create.write(manifest(&name, class).as_bytes());
            create.close_stdin();
            if chance.below(3) == 0 {
                std::thread::sleep(Duration::from_millis(chance.below(LONGEST_CALM_MILLIS)));
                strike(instance, &mut chance);
            }
            if create.finish().code == Some(0) {
                acknowledged.insert(name.clone());
            }
            if stays.is_none() && acknowledged.contains(&name) {
                // From the world, without the keeper's proxy: no kill may break it.
                instance
                    .atoll(["wait", &format!("sandbox/{name}"), "--for", "running"])
                    .succeeded();
                let [_, port] = ports(instance, &name).unwrap();
                stays = Some((name.clone(), world.connect(at(HOST, port)).unwrap()));
            }
            if (chance.below(2) == 0 || acknowledged.len() >= MOST_AT_A_TIME)
                && let Some(victim) = acknowledged
                    .iter()
                    .find(|it| stays.as_ref().is_none_or(|(stays, _)| stays != *it))
                    .cloned()
            {
                let delete = instance.begin(["delete", &format!("sandbox/{victim}")]);
                if chance.below(4) == 0 {
                    strike(instance, &mut chance);
                }
                if delete.finish().code == Some(0) {
                    acknowledged.remove(&victim);
                }
            }
        }
        let (_, mut stream) = stays.unwrap();
        assert!(echoes(&mut stream, b"still here"), "a connection broke");
        drop(stream);
        settle(instance, world);
        for sandbox in instance.sandboxes() {
            let name = sandbox["id"].as_str().unwrap().to_owned();
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        }
        nothing_is_left_of_the_gone(instance);
    });
}

/// Who is said to run answers at its own port and reaches the world; who is not, has no port.
fn settle(instance: &Instance, world: &World) {
    wait_until("no sandbox is on its way any more", || {
        instance.sandboxes().iter().all(|sandbox| {
            let phase = sandbox["status"]["phase"].as_str().unwrap_or_default();
            matches!(phase, "Running" | "Succeeded" | "Failed")
        })
    });
    let mut wanted = BTreeSet::new();
    for sandbox in instance.sandboxes() {
        let name = sandbox["id"].as_str().unwrap();
        if sandbox["status"]["phase"] != "Running" {
            assert!(ports(instance, name).is_none(), "{sandbox}");
            continue;
        }
        let both = ports(instance, name).unwrap();
        wanted.extend(both);
        assert_eq!(visit(world, both[0]), name, "{sandbox}\n{}", instance.server_log());
        let say = format!("echo | timeout 5 nc {WORLD} 80");
        let said = instance.atoll(["exec", name, "--", "sh", "-c", &say]);
        assert_eq!(said.text(), format!("hello {HOST}\n"), "{name}");
    }
    assert_eq!(held_ports(), wanted, "held are the ports of those who run");
}

/// How long sandboxes come and go, and how many at a time: little here, `ATOLL_TEST_SOAK_SECONDS=600` for the whole.
fn soak() -> (Duration, usize) {
    let seconds = std::env::var("ATOLL_TEST_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    (Duration::from_secs(seconds.unwrap_or(15)), if seconds.is_some() { 100 } else { 24 })
}

/// Long connections: from the world to the host's address, and from the host through 127.0.0.1.
fn connections(instance: &Instance, world: &World) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for (index, class) in classes(instance).iter().cycle().take(4).enumerate() {
        let name = format!("stays{index}");
        let text = manifest(&name, class);
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        let [_, port] = ports(instance, &name).unwrap();
        for number in 0..5 {
            let stream = match number {
                0 => TcpStream::connect((Ipv4Addr::LOCALHOST, port)),
                _ => world.connect(at(HOST, port)),
            };
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            streams.push(stream);
        }
    }
    streams
}

#[test]
fn sandboxes_come_and_go_and_no_long_connection_breaks() {
    on_one_host("network_soak", |instance, world| {
        let (length, most) = soak();
        let streams = connections(instance, world);
        assert_eq!(streams.len(), 20);
        let (over, broken) = (AtomicBool::new(false), AtomicU64::new(0));
        let (come, visited) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for mut stream in streams {
                let (over, broken) = (&over, &broken);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        if !echoes(&mut stream, b"as long as it lasts") {
                            broken.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(50));
                    }
                });
            }
            let until = Instant::now() + length;
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (come, visited) = (&come, &visited);
                    scope.spawn(move || {
                        churn(instance, world, worker, most / 4, until, come, visited)
                    })
                })
                .collect();
            // All are waited for before one's panic is passed on, and the connections end in any case.
            let ends: Vec<_> =
                workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::Relaxed);
            for end in ends {
                if let Err(panic) = end {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        println!("{come:?} came and went, {visited:?} were visited, 20 connections");
        assert_eq!(broken.into_inner(), 0, "long connections broke");
        assert!(visited.into_inner() > 0);
        for sandbox in instance.sandboxes() {
            let name = sandbox["id"].as_str().unwrap().to_owned();
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        }
        nothing_is_left_of_the_gone(instance);
    });
}

/// Fills its share of sandboxes, and from then on replaces the oldest; each tenth is of class `gvisor` where that is there.
fn churn(
    instance: &Instance,
    world: &World,
    worker: usize,
    most: usize,
    until: Instant,
    come: &AtomicU64,
    visited: &AtomicU64,
) {
    let classes = classes(instance);
    let mut there = std::collections::VecDeque::new();
    let mut number = 0;
    while Instant::now() < until {
        let class = if number % 10 == 9 { classes[classes.len() - 1] } else { classes[0] };
        let name = format!("c{worker}-{number}");
        let text = manifest(&name, class);
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        let [port, _] = ports(instance, &name).unwrap();
        assert_eq!(visit(world, port), name, "{}", instance.atoll(["describe", &name]).text());
        visited.fetch_add(1, Ordering::Relaxed);
        there.push_back(name);
        if there.len() >= most
            && let Some(oldest) = there.pop_front()
        {
            instance.atoll(["delete", &format!("sandbox/{oldest}")]).succeeded();
            come.fetch_add(1, Ordering::Relaxed);
        }
        number += 1;
    }
}
