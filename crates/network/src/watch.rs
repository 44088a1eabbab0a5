//! Watching the host: its addresses, which the ring keeps from sandboxes, and its rules, which others may flush.
//!
//! One thread, woken by the kernel. It ends with the [`Watch`], or when the network is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::NetworkError;
use crate::foreign::ClosedChain;
use crate::network::Shared;
use crate::route::RouteSocket;

/// SOURCE: RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR in linux/rtnetlink.h.
const ADDRESS_GROUPS: [u32; 2] = [5, 9];
/// SOURCE: NFNLGRP_NFTABLES in linux/netfilter/nfnetlink.h.
const RULE_GROUP: u32 = 7;
/// Changes come in bursts: what follows one within this is looked at together with it (guess).
const BURST: Duration = Duration::from_millis(20);
/// After a repair that failed, the next try.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread.
pub(crate) struct Watch {
    stop: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watch {
    /// Begins. Must be called in the host's namespace.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, NetworkError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(NetworkError::kernel("make an event descriptor"))?;
        let stop = Arc::new(stop);
        let addresses = listener(NETLINK_ROUTE, &ADDRESS_GROUPS)?;
        let rules = listener(NETLINK_NETFILTER, &[RULE_GROUP])?;
        let routes = RouteSocket::open()?;
        let (shared, ended) = (Arc::clone(shared), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("network-watch".into())
            .spawn(move || run(&shared, &ended, &addresses, &rules, routes))
            .map_err(NetworkError::kernel("start a thread"))?;
        Ok(Self { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        // A counter that is full wakes the thread as well.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches the host's network has panicked");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listener(protocol: isize, groups: &[u32]) -> Result<Socket, NetworkError> {
    let failed = || NetworkError::kernel("listen for changes of the host's network");
    let mut socket = Socket::new(protocol).map_err(failed())?;
    socket.bind(&SocketAddr::new(0, 0)).map_err(failed())?;
    for group in groups {
        socket.add_membership(*group).map_err(failed())?;
    }
    socket.set_non_blocking(true).map_err(failed())?;
    Ok(socket)
}

fn run(
    shared: &Shared,
    stop: &OwnedFd,
    addresses: &Socket,
    rules: &Socket,
    mut routes: RouteSocket,
) {
    // Once at the beginning: something may have changed before anybody listened.
    let (mut look_at_addresses, mut look_at_rules) = (true, true);
    let mut failed = false;
    let mut told = Vec::new();
    loop {
        if look_at_addresses || look_at_rules {
            failed = false;
        }
        if look_at_addresses
            && let Err(error) = routes.addresses().and_then(|it| shared.set_host_addresses(it))
        {
            tracing::warn!(%error, "the ring does not know the host's addresses");
            failed = true;
        }
        if look_at_rules && !shared.host_table_is_there() {
            tracing::warn!(
                table = shared.names.table,
                "somebody removed atoll's rules from the host; they are put back"
            );
            if let Err(error) = shared.load_host() {
                tracing::error!(%error, "atoll's rules could not be put back: no egress, no published ports");
                failed = true;
            }
        }
        if look_at_rules {
            match shared.pass_foreign_chains() {
                Ok(closed) => tell_of(closed, &mut told),
                Err(error) => {
                    tracing::warn!(%error, "other tools' rules may keep sandboxes from the world");
                    failed = true;
                }
            }
        }
        let timeout = failed.then_some(PAUSE);
        let Some(woken) = wait(stop, addresses, rules, timeout) else { return };
        if wait_out_the_burst(stop) {
            return;
        }
        look_at_addresses = drain(addresses, |_| true) || woken.timed_out;
        look_at_rules = drain(rules, is_about_rules) || woken.timed_out;
    }
}

/// Once for each set of chains.
fn tell_of(closed: Vec<ClosedChain>, told: &mut Vec<ClosedChain>) {
    if closed != *told {
        for chain in &closed {
            tracing::warn!(
                %chain,
                "a chain of another tool refuses to forward: unless its rules let sandboxes pass they reach no world, and no visitor them"
            );
        }
        *told = closed;
    }
}

struct Woken {
    timed_out: bool,
}

/// `None`: it is over.
fn wait(
    stop: &OwnedFd,
    addresses: &Socket,
    rules: &Socket,
    timeout: Option<Duration>,
) -> Option<Woken> {
    let timeout = timeout.and_then(|it| Timespec::try_from(it).ok());
    loop {
        let mut polled = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(addresses.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(rules.as_fd(), PollFlags::IN),
        ];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) => return Some(Woken { timed_out: true }),
            Ok(_) if !polled[0].revents().is_empty() => return None,
            Ok(_) => return Some(Woken { timed_out: false }),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "the host's network is not watched any more");
                return None;
            }
        }
    }
}

/// True: it is over.
fn wait_out_the_burst(stop: &OwnedFd) -> bool {
    let timeout = Timespec::try_from(BURST).ok();
    poll(&mut [PollFd::new(stop, PollFlags::IN)], timeout.as_ref()).is_ok_and(|count| count > 0)
}

/// Whether a datagram tells of a table, chain or rule. Elements of sets come and go with every published port, atoll's own, and change
/// nothing that is looked at here. SOURCE: struct nlmsghdr in linux/netlink.h; NFT_MSG_NEWTABLE to NFT_MSG_DELRULE in
/// linux/netfilter/nf_tables.h. What cannot be read may be anything.
fn is_about_rules(datagram: &[u8]) -> bool {
    const LAST_ABOUT_RULES: u16 = 8;
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_first_chunk::<6>() {
        let [length @ .., low, high] = *header;
        if u16::from_ne_bytes([low, high]) & 0xff <= LAST_ABOUT_RULES {
            return true;
        }
        let length = u32::from_ne_bytes(length).checked_next_multiple_of(4).unwrap_or(0);
        match rest.get(length as usize..) {
            Some(next) if length > 0 => rest = next,
            _ => return true,
        }
    }
    false
}

/// Reads what came; true when something `wanted` did, or when more came than the socket could keep.
fn drain(socket: &Socket, wanted: impl Fn(&[u8]) -> bool) -> bool {
    let mut something = false;
    loop {
        match socket.recv_from_full() {
            Ok((datagram, _)) => something |= wanted(&datagram),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return something,
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
            {
                something = true;
            }
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(u16::from_be_bytes([10, kind]).to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn elements_of_sets_are_no_change_of_rules() {
        let (element, generation) = (message(12, b"a port"), message(15, &[0; 8]));
        assert!(!is_about_rules(&[element.clone(), generation.clone()].concat()));
        assert!(!is_about_rules(&[]));
        for kind in [0, 2, 3, 5, 6, 8] {
            let change = [element.clone(), message(kind, b"x"), generation.clone()].concat();
            assert!(is_about_rules(&change), "{kind}");
        }
        for nonsense in [&[0; 16][..], &[0xff; 40], &element[..element.len() - 4]] {
            assert!(is_about_rules(nonsense), "{nonsense:?}");
        }
    }
}
