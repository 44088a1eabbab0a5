//! After a crash, and after others had their hands in the host's rules.

use atoll_network::{KnownSlot, Protocol, PublishedPort, Reach};
use std::io::{Read, Write};

use crate::lab::{Echo, HOST4, HOST6, Lab, WORLD4, WORLD6, comes_true, policy};

const PORT: PublishedPort =
    PublishedPort { protocol: Protocol::Tcp, host_port: 20_000, slot_port: 80 };

#[test]
fn a_killed_server_leaves_connections_of_the_living_and_nothing_of_the_dead() {
    let Some(mut lab) = Lab::new("attacks::a_killed_server_leaves_connections") else { return };
    let (living, sandbox) = lab.sandbox(Reach::World);
    let (dead, dead_space) = lab.sandbox(Reach::World);
    let unused = lab.network().prepare_slot().unwrap();
    lab.network().publish(living.number, &[PORT]).unwrap();
    let (_inside, _outside) = (Echo::serve(&sandbox, 80), Echo::serve(&lab.world, 80));
    let mut inbound = lab.world.connect(HOST4, 20_000);
    let mut outbound = sandbox.connect(WORLD4, 80);
    let known = KnownSlot {
        number: living.number,
        policy: Some(policy(Reach::World)),
        published: vec![PORT],
    };
    let gone =
        KnownSlot { number: atoll_network::SlotNumber(4711), policy: None, published: Vec::new() };
    for _ in 0..3 {
        assert_eq!(lab.open(&[known.clone(), gone.clone()]), [gone.number], "what is lost is told");
        for stream in [&mut inbound, &mut outbound] {
            let mut answer = [0; 4];
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut answer).unwrap();
        }
        assert_eq!(lab.network().inventory().unwrap().slots, [living.number]);
    }
    assert!(sandbox.connects(WORLD4, 80) && lab.world.connects(HOST4, 20_000));
    assert!(!dead_space.connects(WORLD4, 80));
    for number in [dead.number, unused.number] {
        lab.network().admit(number, &policy(Reach::World)).unwrap_err();
    }
    let fresh = lab.network().prepare_slot().unwrap();
    assert_ne!(fresh.number, living.number);
}

/// Everything of everybody: nothing opens, and what was open comes back.
#[test]
fn a_foreign_flush_opens_nothing_and_is_mended() {
    let Some(lab) = Lab::new("attacks::a_foreign_flush_opens_nothing") else { return };
    let (slot, sandbox) = lab.sandbox(Reach::World);
    let (other, _space) = lab.sandbox(Reach::World);
    let _servers =
        [Echo::serve(&sandbox, 80), Echo::serve(&lab.host, 80), Echo::serve(&lab.world, 80)];
    lab.network().publish(slot.number, &[PORT]).unwrap();
    assert!(lab.world.connects(HOST4, 20_000));
    let [other, _] = other.addresses.both();
    for _ in 0..3 {
        lab.host.sh("nft flush ruleset");
        for to in [HOST4, "192.168.77.1", &other.to_string()] {
            assert!(!sandbox.connects(to, 80), "{to}");
        }
        comes_true("the rules come back", || {
            lab.world.connects(HOST4, 20_000) && sandbox.connects(WORLD4, 80)
        });
    }
}

/// As Docker leaves a host: nothing may be forwarded that no rule of its own accepts.
#[test]
fn a_foreign_chain_that_refuses_to_forward_is_passed_and_opens_nothing() {
    let Some(lab) = Lab::new("attacks::a_foreign_chain_that_refuses") else { return };
    let (slot, sandbox) = lab.sandbox(Reach::World);
    let (other, _space) = lab.sandbox(Reach::World);
    let _servers =
        [Echo::serve(&sandbox, 80), Echo::serve(&lab.host, 80), Echo::serve(&lab.world, 80)];
    lab.network().publish(slot.number, &[PORT]).unwrap();
    let ends = |family: &str, refused: &str| {
        format!(
            "nft add table {family} filter
             nft add chain {family} filter FORWARD '{{ type filter hook forward priority 0; policy drop; }}'
             nft add rule {family} filter FORWARD {family} daddr {refused} drop\n"
        )
    };
    lab.host.sh(&(ends("ip", "9.9.9.9") + &ends("ip6", "2a00::9")));
    comes_true("the uplink passes", || {
        [WORLD4, WORLD6].iter().all(|to| sandbox.connects(to, 80))
            && [HOST4, HOST6].iter().all(|to| lab.world.connects(to, 20_000))
    });
    for to in ["9.9.9.9", "2a00::9"] {
        assert!(!sandbox.connects(to, 80), "{to}: a rule of the other tool holds");
    }
    for to in other.addresses.both() {
        assert!(!sandbox.connects(&to.to_string(), 80), "{to}");
    }
    assert!(!lab.world.connects(&slot.addresses.ipv4.to_string(), 80), "nobody is routed in");
    // One rule each way, however often it is looked at.
    lab.host.sh("nft add table ip another; nft delete table ip another");
    let rules =
        || lab.host.sh("nft list chain ip filter FORWARD; nft list chain ip6 filter FORWARD");
    assert_eq!(rules().matches("ifname \"at-").count(), 4, "{}", rules());
    lab.network().remove().unwrap();
    assert_eq!(rules().matches("ifname \"at-").count(), 0, "{}", rules());
    assert!(rules().contains("9.9.9.9"));
}

#[test]
fn an_address_that_the_host_gets_later_is_no_part_of_the_world() {
    let Some(lab) = Lab::new("attacks::an_address_that_the_host_gets_later") else { return };
    let (_slot, sandbox) = lab.sandbox(Reach::World);
    let _host = Echo::serve(&lab.host, 80);
    lab.host.sh("ip addr add 8.8.4.99/32 dev out; ip -6 addr add 2600::99/128 dev out nodad");
    // The host's own rules refuse at once; the ring's, which hold without them, follow the kernel's news.
    assert!(!sandbox.connects("8.8.4.99", 80) && !sandbox.connects("2600::99", 80));
    let options = lab.options();
    let ring = options.directory.join("ring");
    let listed = || {
        lab.host.try_sh(&format!("nsenter --net={} nft list table inet atoll", ring.display())).1
    };
    comes_true("the ring knows it", || {
        let text = listed();
        text.contains("8.8.4.99") && text.contains("2600::99")
    });
    lab.host.sh("ip addr del 8.8.4.99/32 dev out");
    comes_true("the ring forgets it", || !listed().contains("8.8.4.99"));
}

#[test]
fn a_probe_finds_the_rules_loadable_and_leaves_nothing() {
    let Some(lab) = Lab::new("attacks::a_probe_finds_the_rules_loadable") else { return };
    let before = lab.host.sh("nft list tables; ip -o link");
    lab.host.inside(atoll_network::probe).unwrap();
    assert_eq!(lab.host.sh("nft list tables; ip -o link"), before);
}

#[test]
fn two_instances_do_not_meet_and_end_apart() {
    let Some(lab) = Lab::new("attacks::two_instances_do_not_meet") else { return };
    let (slot, sandbox) = lab.sandbox(Reach::World);
    let directory = tempfile::tempdir().unwrap();
    let mut options = lab.options();
    options.directory = directory.path().join("network");
    options.instance = format!("{}x", &lab.instance[..11]);
    let (second, _) = lab.host.inside(|| atoll_network::Network::open(&options, &[])).unwrap();
    assert_ne!(second.subnet().ipv4(), lab.network().subnet().ipv4());
    let far = second.prepare_slot().unwrap();
    second.admit(far.number, &policy(Reach::World)).unwrap();
    let far_space = crate::lab::Space::of(&far);
    let _servers =
        [Echo::serve(&sandbox, 80), Echo::serve(&far_space, 80), Echo::serve(&lab.world, 80)];
    assert!(sandbox.connects(WORLD4, 80) && far_space.connects(WORLD4, 80));
    for (from, to) in [(&sandbox, far.addresses), (&far_space, slot.addresses)] {
        for to in to.both() {
            assert!(!from.connects(&to.to_string(), 80), "{to}");
        }
    }
    second.remove().unwrap();
    assert!(!directory.path().join("network/ring").exists());
    assert!(sandbox.connects(WORLD4, 80), "the first goes on");
}

/// As administrators leave a host that is to use IPv4 alone.
#[test]
fn a_host_that_disables_ipv6_has_a_network_all_the_same() {
    let Some(mut lab) = Lab::new("attacks::a_host_that_disables_ipv6") else { return };
    lab.network().remove().unwrap();
    let disable =
        "for of in all default; do echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6; done";
    lab.host.sh(disable);
    lab.open(&[]);
    let (slot, sandbox) = lab.sandbox(Reach::World);
    let _servers = [Echo::serve(&sandbox, 80), Echo::serve(&lab.world, 80)];
    lab.network().publish(slot.number, &[PORT]).unwrap();
    assert!(sandbox.connects(WORLD4, 80) && lab.world.connects(HOST4, 20_000));
    assert!(!sandbox.connects(WORLD6, 80), "the host has no way there");
}
