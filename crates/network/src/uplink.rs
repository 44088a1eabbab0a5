//! The one way between ring and host: a pair of interfaces, a route on each side, and the host's consent to forward.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::NetworkError;
use crate::route::{End, InterfaceIndex, Route, RouteSocket, host_length};
use crate::rules::{HostNames, UPLINK_IN_RING};
use crate::subnet::{MacAddress, Subnet};

const MAC_IN_RING: MacAddress = [0x02, 0x61, 0x74, 0x6f, 0x00, 0x02];
const MAC_ON_HOST: MacAddress = [0x02, 0x61, 0x74, 0x6f, 0x00, 0x03];

/// Makes what is missing of the uplink. Must be called in the host's namespace.
pub(crate) fn ensure(
    host: &mut RouteSocket,
    ring: &mut RouteSocket,
    ring_namespace: BorrowedFd<'_>,
    names: &HostNames,
    subnet: &Subnet,
) -> Result<(), NetworkError> {
    let ends = ensure_pair(host, ring, ring_namespace, names)?;
    let setting = |name: &str| format!("/proc/sys/net/ipv6/conf/{}/{name}", names.uplink);
    // Set before it is up, where the kernel has IPv6. A host that uses none on its own interfaces has it on this one, where nobody is met.
    for (name, value) in [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")] {
        write_if_there(Path::new(&setting(name)), value)?;
    }
    for address in subnet.uplink_host().both() {
        host.add_address(ends.on_host, address)?;
    }
    for address in subnet.uplink_ring().both() {
        ring.add_address(ends.in_ring, address)?;
    }
    host.bring_up_silent(ends.on_host)?;
    ring.bring_up_silent(ends.in_ring)?;
    add_routes(host, ring, &ends, subnet)?;
    // The gateway of every slot: on no wire, as all interfaces of the ring answer for it.
    if let Some(loopback) = ring.index("lo")? {
        for address in subnet.gateway().both() {
            ring.add_address(loopback, address)?;
        }
        ring.bring_up(loopback)?;
    }
    let_host_forward()
}

/// The numbers of the uplink's interfaces.
struct Ends {
    on_host: InterfaceIndex,
    in_ring: InterfaceIndex,
}

/// The pair of interfaces, made anew where one of them is missing.
fn ensure_pair(
    host: &mut RouteSocket,
    ring: &mut RouteSocket,
    ring_namespace: BorrowedFd<'_>,
    names: &HostNames,
) -> Result<Ends, NetworkError> {
    let found = (host.index(&names.uplink)?, ring.index(UPLINK_IN_RING)?);
    if let (Some(on_host), Some(in_ring)) = found {
        return Ok(Ends { on_host, in_ring });
    }
    for (socket, left) in [(&mut *host, found.0), (&mut *ring, found.1)] {
        left.map_or(Ok(()), |left| socket.remove(left))?;
    }
    let here = End { name: &names.uplink, mac: MAC_ON_HOST };
    let there = End { name: UPLINK_IN_RING, mac: MAC_IN_RING };
    // An interface of the host has no addresses but those it is given.
    host.make_pair(&here, &there, ring_namespace)?;
    let missing = || {
        NetworkError::kernel("find the uplink")(std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    let on_host = host.index(&names.uplink)?.ok_or_else(missing)?;
    Ok(Ends { on_host, in_ring: ring.index(UPLINK_IN_RING)?.ok_or_else(missing)? })
}

/// The host finds the ring's networks, and the ring everything, each through the other's end.
fn add_routes(
    host: &mut RouteSocket,
    ring: &mut RouteSocket,
    ends: &Ends,
    subnet: &Subnet,
) -> Result<(), NetworkError> {
    let ((ipv4, length4), (ipv6, length6)) = (subnet.ipv4(), subnet.ipv6());
    let networks: [(IpAddr, u8); 2] = [(ipv4.into(), length4), (ipv6.into(), length6)];
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let pairs = subnet.uplink_host().both().into_iter().zip(subnet.uplink_ring().both());
    for ((at_host, at_ring), (network, everywhere)) in
        pairs.zip(networks.into_iter().zip(everywhere))
    {
        host.add_neighbour(ends.on_host, at_ring, MAC_IN_RING)?;
        ring.add_neighbour(ends.in_ring, at_host, MAC_ON_HOST)?;
        let direct =
            |to, through| Route { to: (to, host_length(to)), through, gateway: None, source: None };
        host.add_route(&direct(at_ring, ends.on_host))?;
        ring.add_route(&direct(at_host, ends.in_ring))?;
        let (through, gateway) = (ends.on_host, Some(at_ring));
        host.add_route(&Route { to: network, through, gateway, source: None })?;
        let (through, gateway) = (ends.in_ring, Some(at_host));
        ring.add_route(&Route { to: (everywhere, 0), through, gateway, source: None })?;
    }
    Ok(())
}

/// Removes the uplink's interfaces. Missing ones are fine.
pub(crate) fn remove(host: &mut RouteSocket, names: &HostNames) -> Result<(), NetworkError> {
    match host.index(&names.uplink)? {
        Some(index) => host.remove(index),
        None => Ok(()),
    }
}

/// The host forwards between its interfaces, as with any container network. It stays so afterwards: somebody else may rely on it by then.
///
/// A host that forwards IPv6 stops to learn its own routes from advertisements unless it is told to go on (`accept_ra` 2). SOURCE: the
/// kernel's ip-sysctl documentation.
fn let_host_forward() -> Result<(), NetworkError> {
    write_if_there(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")?;
    let all = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    if fs::read_to_string(all).is_ok_and(|value| value.trim() != "0") {
        return Ok(());
    }
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for interface in interfaces {
        let accept = interface.path().join("accept_ra");
        if fs::read_to_string(&accept).is_ok_and(|value| value.trim() == "1") {
            write_if_there(&accept, "2")?;
        }
    }
    write_if_there(all, "1")
}

fn write_if_there(path: &Path, value: &str) -> Result<(), NetworkError> {
    // Written only where it differs: /proc/sys may be read-only with the right value.
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(found) if found.trim() == value => Ok(()),
        _ => fs::write(path, value).map_err(NetworkError::io("write", path)),
    }
}
