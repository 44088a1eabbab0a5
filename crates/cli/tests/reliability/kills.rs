//! kill -9 of server, shims and spawners at moments of chance, while sandboxes are created, end and are deleted; then the truth is counted.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::seed::Chance;
use crate::support::{
    IMAGE, Instance, REAL_CLASSES, instance_with_image, processes_of, skipped, wait_until,
};

/// Sandboxes in an ordinary run, and where `ATOLL_TEST_FULL` is set.
const ORDINARY: u64 = 48;
const FULL: u64 = 300;
/// Between two kills, in milliseconds, at most.
const LONGEST_CALM_MILLIS: u64 = 400;

fn manifest(name: &str, class: &str, lives: bool) -> String {
    let script = if lives { "sleep 1000" } else { "echo out; exit 3" };
    format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n"
    )
}

/// The spawners: what the server itself has started.
pub(crate) fn spawners(instance: &Instance) -> Vec<Pid> {
    let Some(server) = instance.server_pid() else { return Vec::new() };
    let parent = format!("PPid:\t{}", server.as_raw_nonzero());
    processes_of(&instance.data_dir())
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| status.lines().any(|line| line == parent))
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// The shims, by what they wrote about themselves.
pub(crate) fn shims(instance: &Instance) -> Vec<Pid> {
    let alive = processes_of(&instance.data_dir());
    let directories = std::fs::read_dir(instance.data_dir().join("sandboxes"));
    directories
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("shim.json")).ok())
        .filter_map(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .filter_map(|record| i32::try_from(record["shim"]["pid"].as_i64()?).ok())
        .filter(|pid| alive.contains(pid))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Kills something of atoll's own, and starts the server again if it was that.
fn strike(instance: &Instance, chance: &mut Chance) {
    let (spawners, shims) = (spawners(instance), shims(instance));
    let one = |pids: &[Pid], chance: &mut Chance| {
        let index = usize::try_from(chance.below(pids.len().max(1) as u64)).unwrap_or(0);
        pids.get(index).copied()
    };
    let (victims, server) = match chance.below(5) {
        0 | 1 => (Vec::new(), true),
        2 => (one(&shims, chance).into_iter().collect(), false),
        3 => (one(&spawners, chance).into_iter().collect(), false),
        _ => (shims.into_iter().chain(spawners).collect::<Vec<_>>(), true),
    };
    kill(instance, &victims, server);
}

/// Kills these, and the server first, where it is to be; then starts that again.
pub(crate) fn kill(instance: &Instance, victims: &[Pid], server: bool) {
    if server {
        instance.kill_server();
    }
    for pid in victims {
        // It may have ended by itself.
        let _ = kill_process(*pid, Signal::KILL);
    }
    if server {
        instance.up();
    }
}

#[test]
fn kills_at_any_moment_lose_nothing_acknowledged_and_leave_nothing() {
    let Some(instance) = instance_with_image("kills") else { return };
    let available = instance.available_classes();
    let classes: Vec<&str> =
        REAL_CLASSES.into_iter().filter(|class| available.iter().any(|a| a == class)).collect();
    if classes.is_empty() {
        skipped("kills", "no real class is available here");
        return;
    }
    let count = if std::env::var_os("ATOLL_TEST_FULL").is_some() { FULL } else { ORDINARY };
    let mut chance = Chance::new();
    let (mut acknowledged, mut deleted) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..count {
        let class = classes[usize::try_from(number).unwrap_or(0) % classes.len()];
        let (name, lives) = (format!("k{number}"), chance.below(3) == 0);
        let mut create = instance.begin(["create", "-f", "-"]);
        create.write(manifest(&name, class, lives).as_bytes());
        create.close_stdin();
        let strikes = chance.below(4) == 0;
        if strikes {
            // The moment of a strike is left to chance, so that in time all of them are tried.
            std::thread::sleep(Duration::from_millis(chance.below(LONGEST_CALM_MILLIS)));
            strike(&instance, &mut chance);
        }
        if create.finish().code == Some(0) {
            acknowledged.insert(name.clone());
        }
        if chance.below(3) == 0
            && let Some(victim) = acknowledged.difference(&deleted).next().cloned()
        {
            let delete = instance.begin(["delete", &format!("sandbox/{victim}")]);
            if chance.below(6) == 0 {
                strike(&instance, &mut chance);
            }
            if delete.finish().code == Some(0) {
                deleted.insert(victim);
            }
        }
    }
    settle(&instance, &acknowledged, &deleted);
    instance.end();
}

/// What was acknowledged is there and true; what was deleted is gone; the host has nothing that the API does not have.
fn settle(instance: &Instance, acknowledged: &BTreeSet<String>, deleted: &BTreeSet<String>) {
    wait_until("no sandbox is on its way any more", || {
        instance.sandboxes().iter().all(|sandbox| {
            let phase = sandbox["status"]["phase"].as_str().unwrap_or_default();
            matches!(phase, "Running" | "Succeeded" | "Failed")
        })
    });
    let known = instance.sandboxes();
    let names: BTreeSet<String> =
        known.iter().filter_map(|sandbox| sandbox["id"].as_str().map(str::to_owned)).collect();
    for name in acknowledged.difference(deleted) {
        // A deletion that was recorded and whose answer was lost is no loss.
        if !names.contains(name) {
            let events = instance.atoll(["events", &format!("sandbox/{name}")]).text();
            assert!(events.contains("Delet"), "{name} was acknowledged and is gone:\n{events}");
        }
    }
    for name in deleted {
        assert!(!names.contains(name), "{name} was deleted and is there");
    }
    let mut wrong = Vec::new();
    for sandbox in &known {
        let name = sandbox["id"].as_str().unwrap_or_default();
        let status = &sandbox["status"];
        let container = &status["containers"][0];
        match status["phase"].as_str() {
            Some("Running") => {
                let exec = instance.atoll(["exec", name, "--", "true"]);
                if exec.code != Some(0) && still_runs(instance, name) {
                    wrong.push(format!("{name} is said to run: {}", exec.stderr));
                }
            }
            _ => {
                let code = &container["exit_code"];
                let unseen = code.is_null();
                if !(unseen || *code == 3 || *code == 137) {
                    wrong.push(format!("{name}: {status}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let directories = instance.leftovers().directories.len();
    assert!(directories <= known.len(), "{directories} directories for {} sandboxes", known.len());
}

fn still_runs(instance: &Instance, name: &str) -> bool {
    instance.sandbox(name).is_some_and(|sandbox| sandbox["status"]["phase"] == "Running")
}
