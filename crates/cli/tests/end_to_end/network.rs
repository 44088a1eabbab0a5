//! Sandboxes with a network: what they reach and what they do not.

use serde_json::Value;

use crate::support::world::{HOST, PRIVATE, WORLD, on_a_host};
use crate::support::{IMAGE, processes_of};

fn say(class: &str, egress: bool, to: &str) -> Vec<String> {
    let mut arguments = vec!["run", "--class", class];
    arguments.extend(egress.then_some("--egress"));
    let script = format!("echo | timeout 5 nc {to} 80");
    arguments.extend([IMAGE, "--", "sh", "-c", &script]);
    arguments.into_iter().map(str::to_owned).collect()
}

#[test]
fn who_asks_for_egress_reaches_the_world_and_nobody_else_does() {
    on_a_host("who_asks_for_egress_reaches_the_world", |instance, class, _| {
        let world = instance.atoll(say(class, true, WORLD));
        assert_eq!(world.succeeded(), format!("hello {HOST}\n"), "as the host");
        for (egress, to) in [(true, PRIVATE), (true, HOST), (false, WORLD), (false, PRIVATE)] {
            let refused = instance.atoll(say(class, egress, to));
            assert_ne!(refused.code, Some(0), "{egress} {to}");
            assert_eq!(refused.text(), "", "{egress} {to}");
        }
    });
}

#[test]
fn names_are_resolved_for_who_has_egress_and_refused_at_once_for_others() {
    on_a_host("names_are_resolved_for_who_has_egress", |instance, class, _| {
        let look_up = |more: &[&str]| {
            let look_up = [IMAGE, "--", "nslookup", "-type=a", "world.example"];
            let run = ["run", "--class", class];
            instance.atoll(run.iter().chain(more).chain(&look_up))
        };
        let found = look_up(&["--egress"]);
        assert!(found.succeeded().contains(&format!("Address: {WORLD}")), "{found:?}");
        assert_ne!(look_up(&[]).code, Some(0));
    });
}

/// A sandbox that asks for a private destination, and waits.
fn granted(class: &str, name: &str, egress: bool, cidr: &str, port: u16) -> String {
    format!(
        "kind: Sandbox
id: {name}
spec:
  class: {class}
  egress: {egress}
  egress_allow: [{{cidr: {cidr}, port: {port}}}]
  containers: [{{name: main, image: {IMAGE}, args: [sleep, '1000']}}]
"
    )
}

#[test]
fn a_private_destination_is_open_to_whom_manifest_and_node_both_name_it() {
    on_a_host("a_private_destination_is_open", |instance, class, _| {
        let create = |text: String| {
            instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes())
        };
        create(granted(class, "inner", false, PRIVATE, 80)).succeeded();
        create(granted(class, "both", true, PRIVATE, 80)).succeeded();
        let connect = |name: &str, to: &str| {
            let script = format!("echo | timeout 5 nc {to} 80");
            instance.atoll(["exec", name, "--", "sh", "-c", &script]).text()
        };
        for _ in 0..2 {
            for (name, to, is_open) in [
                ("inner", PRIVATE, true),
                ("inner", WORLD, false),
                ("both", PRIVATE, true),
                ("both", WORLD, true),
            ] {
                assert_eq!(connect(name, to).starts_with("hello"), is_open, "{name} {to}");
            }
            instance.kill_server();
            instance.up();
        }
        let wide = create(granted(class, "wide", true, "192.168.0.0/16", 80));
        wide.ended_with(1);
        wide.complains("spec.egress_allow[0]").complains("--allow-egress 192.168.0.0/16:80/tcp");
        let other = create(granted(class, "other", true, PRIVATE, 81));
        other.complains("spec.egress_allow[0]");
        let metadata = create(granted(class, "metadata", true, "169.254.169.254", 80));
        metadata.complains("spec.egress_allow[0].cidr").complains("metadata");
        for name in ["sandbox/inner", "sandbox/both"] {
            instance.atoll(["delete", name]).succeeded();
        }
    });
}

/// Two names with the same 32 bits of FNV-1a, by which sandboxd-o names its rules. SOURCE: computed; `0x244e0516` both.
const SAME_HASH: [&str; 2] = ["vousgcrxnb", "mu9gxzke5j"];

#[test]
fn names_that_collide_elsewhere_share_no_rule() {
    let hash = |name: &str| {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        name.bytes().fold(0x811c_9dc5, step)
    };
    assert_eq!(hash(SAME_HASH[0]), hash(SAME_HASH[1]));
    on_a_host("names_that_collide_elsewhere", |instance, class, _| {
        for (name, egress) in SAME_HASH.iter().zip([true, false]) {
            let text = format!(
                "kind: Sandbox\nid: {name}\nspec: {{class: {class}, egress: {egress}, containers: [{{name: main, image: {IMAGE}, args: [sleep, '1000']}}]}}\n"
            );
            instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        }
        let script = format!("echo | timeout 5 nc {WORLD} 80");
        let say = |name| instance.atoll(["exec", name, "--", "sh", "-c", &script]).text();
        let hello = format!("hello {HOST}\n");
        assert_eq!(SAME_HASH.map(say), [hello.clone(), String::new()]);
        instance.atoll(["delete", &format!("sandbox/{}", SAME_HASH[1])]).succeeded();
        assert_eq!(say(SAME_HASH[0]), hello, "what was the other's is gone, and no more");
        instance.atoll(["delete", &format!("sandbox/{}", SAME_HASH[0])]).succeeded();
    });
}

/// A name of the world that leads to a private address is a name without one, but for whom that address is granted.
#[test]
fn a_name_leads_nobody_to_a_private_address() {
    on_a_host("a_name_leads_nobody_to_a_private_address", |instance, class, _| {
        let look_up = ["nslookup", "-type=a", "inner.example"];
        let run = ["run", "--egress", "--class", class, IMAGE, "--"];
        let rebound = instance.atoll(run.iter().chain(&look_up));
        assert!(!rebound.text().contains(PRIVATE), "{rebound:?}");
        let text = granted(class, "granted", true, PRIVATE, 80);
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        let found = instance.atoll(["exec", "granted", "--"].iter().chain(&look_up));
        assert!(found.succeeded().contains(&format!("Address: {PRIVATE}")), "{found:?}");
        instance.atoll(["delete", "sandbox/granted"]).succeeded();
    });
}

#[test]
fn a_sandbox_has_an_address_of_its_own_that_it_knows_and_the_status_shows() {
    on_a_host("a_sandbox_has_an_address_of_its_own", |instance, class, _| {
        let begin = |name: &str| {
            let arguments =
                ["run", "--keep", "--egress", "--class", class, "--name", name, IMAGE, "--"];
            let script = ["sh", "-c", "cat /etc/hosts; sleep 1000"];
            instance.begin(arguments.iter().chain(&script))
        };
        let mut first = begin("first");
        first.line_with("ip6-localhost");
        let address = |name: &str| {
            // Its output may be here before its status is.
            let object = format!("sandbox/{name}");
            instance.atoll(["wait", &object, "--for", "running"]).succeeded();
            match instance.sandbox(name) {
                Some(Value::Object(it)) => it["status"]["ip"].as_str().unwrap().to_owned(),
                other => panic!("{other:?}"),
            }
        };
        let own = address("first");
        assert!(first.line_with("first").starts_with(&format!("{own}\t")), "{own}");
        let mut second = begin("second");
        second.line_with("ip6-localhost");
        assert_ne!(own, address("second"));
        let meet = format!("echo | timeout 5 nc {own} 80");
        let meet = ["exec", "second", "--", "sh", "-c", &meet];
        assert_ne!(instance.atoll(meet).code, Some(0), "sandboxes do not meet");
        instance.kill_server();
        instance.up();
        let say = format!("echo | timeout 5 nc {WORLD} 80");
        let still = instance.atoll(["exec", "second", "--", "sh", "-c", &say]);
        assert_eq!(still.succeeded(), format!("hello {HOST}\n"), "after a restart of the server");
        assert_eq!(address("first"), own);
        for name in ["sandbox/first", "sandbox/second"] {
            instance.atoll(["delete", name]).succeeded();
        }
    });
}

#[test]
fn a_network_whose_server_was_killed_is_taken_down() {
    on_a_host("a_network_whose_server_was_killed", |instance, _, _| {
        let keeper = |pid: &i32| {
            let of = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            of.contains("/+network-keeper")
        };
        let of_instance = processes_of(&instance.data_dir());
        let keepers = of_instance.iter().filter(|pid| keeper(pid)).count();
        assert_eq!(keepers, 1, "in a group of its own, not in that of who began the server");
        instance.kill_server();
        let down = instance.atoll(["down"]);
        assert!(down.succeeded().contains("atoll has ended"), "{down:?}");
        let left = instance.leftovers();
        assert!(left.is_empty(), "{left:#?}");
        instance.up();
    });
}
