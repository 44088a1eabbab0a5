//! What a sandbox reaches, and what reaches it.

use atoll_network::Reach;

use crate::lab::{Echo, HOST4, HOST6, Lab, Space, WORLD4, WORLD6};

/// Each destination by either protocol.
fn reaches(space: &Space, to: &str, port: u16) -> [bool; 2] {
    [space.connects(to, port), space.hears(to, port)]
}

#[test]
fn who_is_isolated_reaches_nothing() {
    let Some(lab) = Lab::new("attacks::who_is_isolated_reaches_nothing") else { return };
    let (_other, other) = lab.sandbox(Reach::World);
    let (_slot, sandbox) = lab.sandbox(Reach::Isolated);
    let _servers =
        [Echo::serve(&lab.world, 80), Echo::serve(&lab.host, 80), Echo::serve(&other, 80)];
    let other = lab.network().subnet().slot(atoll_network::SlotNumber(0));
    for to in
        [WORLD4, WORLD6, "9.9.9.9", "2a00::9", HOST4, HOST6, "192.168.77.1", "169.254.169.254"]
    {
        assert_eq!(reaches(&sandbox, to, 80), [false, false], "{to}");
    }
    for to in other.both() {
        assert_eq!(reaches(&sandbox, &to.to_string(), 80), [false, false], "{to}");
    }
}

#[test]
fn who_has_egress_reaches_the_world_and_nobody_near() {
    let Some(lab) = Lab::new("attacks::who_has_egress_reaches_the_world_and_nobody_near") else {
        return;
    };
    let (slot, other) = lab.sandbox(Reach::World);
    let (_slot, sandbox) = lab.sandbox(Reach::World);
    let _servers =
        [Echo::serve(&lab.world, 80), Echo::serve(&lab.host, 80), Echo::serve(&other, 80)];
    for to in [WORLD4, WORLD6] {
        assert_eq!(reaches(&sandbox, to, 80), [true, true], "{to}");
    }
    for to in ["9.9.9.9", "2a00::9"] {
        assert!(sandbox.connects(to, 80), "{to}");
    }
    for to in
        [HOST4, HOST6, "192.168.77.1", "192.168.77.2", "10.9.9.9", "169.254.169.254", "fd99::9"]
    {
        assert_eq!(reaches(&sandbox, to, 80), [false, false], "{to}");
    }
    let subnet = lab.network().subnet();
    let ((near4, _), (near6, _)) = (subnet.ipv4(), subnet.ipv6());
    // The ends of the uplink, the gateway, and the other sandbox.
    for host in 1..4 {
        let near4 = std::net::Ipv4Addr::from_bits(near4.to_bits() | host).to_string();
        let near6 = std::net::Ipv6Addr::from_bits(near6.to_bits() | u128::from(host)).to_string();
        assert_eq!(reaches(&sandbox, &near4, 80), [false, false], "{near4}");
        assert_eq!(reaches(&sandbox, &near6, 80), [false, false], "{near6}");
    }
    for to in slot.addresses.both() {
        assert_eq!(reaches(&sandbox, &to.to_string(), 80), [false, false], "{to}");
    }
}

#[test]
fn nobody_is_in_before_admission() {
    let Some(lab) = Lab::new("attacks::nobody_is_in_before_admission") else { return };
    let slot = lab.network().prepare_slot().unwrap();
    let space = Space::of(&slot);
    let _server = Echo::serve(&lab.world, 80);
    assert_eq!(reaches(&space, WORLD4, 80), [false, false]);
    lab.network().admit(slot.number, &crate::lab::policy(Reach::World)).unwrap();
    assert_eq!(reaches(&space, WORLD4, 80), [true, true]);
    lab.network().admit(slot.number, &crate::lab::policy(Reach::Isolated)).unwrap();
    assert_eq!(reaches(&space, WORLD4, 80), [false, false]);
}
