//! The one way between ring and host: a pair of interfaces, a route on each side, and the host's consent to forward.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::NetworkError;
use crate::route::{End, Route, RouteSocket, host_length};
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
    let ends = (host.index(&names.uplink)?, ring.index(UPLINK_IN_RING)?);
    let (on_host, in_ring) = match ends {
        (Some(on_host), Some(in_ring)) => (on_host, in_ring),
        (on_host, in_ring) => {
            for (socket, left) in [(&mut *host, on_host), (&mut *ring, in_ring)] {
                left.map_or(Ok(()), |left| socket.remove(left))?;
            }
            let here = End { name: &names.uplink, mac: MAC_ON_HOST };
            let there = End { name: UPLINK_IN_RING, mac: MAC_IN_RING };
            // An interface of the host has no addresses but those it is given.
            host.make_pair(&here, &there, ring_namespace)?;
            let missing = || {
                NetworkError::kernel("find the uplink")(std::io::Error::from(
                    std::io::ErrorKind::NotFound,
                ))
            };
            let on_host = host.index(&names.uplink)?.ok_or_else(missing)?;
            (on_host, ring.index(UPLINK_IN_RING)?.ok_or_else(missing)?)
        }
    };
    let (host_addresses, ring_addresses) = (subnet.uplink_host(), subnet.uplink_ring());
    let setting = |name: &str| format!("/proc/sys/net/ipv6/conf/{}/{name}", names.uplink);
    // Set before it is up, where the kernel has IPv6.
    for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        write_if_there(Path::new(&setting(name)), value)?;
    }
    for address in host_addresses.both() {
        host.add_address(on_host, address)?;
    }
    for address in ring_addresses.both() {
        ring.add_address(in_ring, address)?;
    }
    host.bring_up_silent(on_host)?;
    ring.bring_up_silent(in_ring)?;
    let ((ipv4, length4), (ipv6, length6)) = (subnet.ipv4(), subnet.ipv6());
    let networks: [(IpAddr, u8); 2] = [(ipv4.into(), length4), (ipv6.into(), length6)];
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let pairs = host_addresses.both().into_iter().zip(ring_addresses.both());
    for ((at_host, at_ring), (network, everywhere)) in
        pairs.zip(networks.into_iter().zip(everywhere))
    {
        host.add_neighbour(on_host, at_ring, MAC_IN_RING)?;
        ring.add_neighbour(in_ring, at_host, MAC_ON_HOST)?;
        let direct =
            |to, through| Route { to: (to, host_length(to)), through, gateway: None, source: None };
        host.add_route(&direct(at_ring, on_host))?;
        ring.add_route(&direct(at_host, in_ring))?;
        let (through, gateway) = (on_host, Some(at_ring));
        host.add_route(&Route { to: network, through, gateway, source: None })?;
        let (through, gateway) = (in_ring, Some(at_host));
        ring.add_route(&Route { to: (everywhere, 0), through, gateway, source: None })?;
    }
    // The gateway of every slot: on no wire, as all interfaces of the ring answer for it.
    if let Some(loopback) = ring.index("lo")? {
        for address in subnet.gateway().both() {
            ring.add_address(loopback, address)?;
        }
        ring.bring_up(loopback)?;
    }
    let_host_forward()
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
