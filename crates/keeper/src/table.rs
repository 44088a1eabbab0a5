//! What is held for whom: the wanted state that servers gave, made true.
//!
//! Owns every port, proxy and the resolver. Ports are taken all or none; a change made again changes nothing, and does what failed before.

use std::collections::BTreeMap;
use std::fs::File;

use rustix::io::Errno;

use crate::member::{Holding, Member, Names, Port, PortHold, ResolverPlace};
use crate::ports::{HeldPort, Limits, Room};
use crate::resolver::{Asker, Resolver, ResolverSockets, Servers};

/// Ports of one sandbox, at most.
const MAX_PORTS: usize = 256;
/// Longest uid that is taken.
const MAX_UID_BYTES: usize = 64;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// A port that is not to be had. Nothing has changed.
    #[error("{hold} is taken")]
    Taken { hold: PortHold, by: Option<String> },
    /// Everything else; what could be done was done.
    #[error("{message}")]
    Failed { message: String },
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> TableError {
    TableError::Failed { message: format!("cannot {what}: {error}") }
}

/// All sandboxes.
#[derive(Debug)]
pub(crate) struct Table {
    members: BTreeMap<String, Held>,
    room: Room,
    resolver: Option<(ResolverPlace, Resolver)>,
}

#[derive(Debug)]
struct Held {
    wanted: Member,
    ports: BTreeMap<PortHold, HeldPort>,
    room: Room,
}

impl Table {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { members: BTreeMap::new(), room: Room::for_all(limits), resolver: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Holds ports besides those that are held for a sandbox, closed.
    pub(crate) fn hold(&mut self, uid: &str, ports: &[PortHold]) -> Result<(), TableError> {
        let mut member = self.members.get(uid).map_or_else(
            || Member {
                uid: uid.to_owned(),
                addresses: None,
                names: Names::Refuse,
                ports: Vec::new(),
            },
            |held| held.wanted.clone(),
        );
        for hold in ports {
            if member.ports.iter().all(|port| port.hold != *hold) {
                member.ports.push(Port { hold: *hold, target_port: hold.host_port, open: false });
            }
        }
        self.put(member)
    }

    /// Makes true what is wanted of a sandbox.
    pub(crate) fn put(&mut self, member: Member) -> Result<(), TableError> {
        check(&member)?;
        let mut taken = self.take_missing(&member)?;
        let held = self.members.entry(member.uid.clone()).or_insert_with(|| Held {
            wanted: Member {
                uid: member.uid.clone(),
                addresses: None,
                names: Names::Refuse,
                ports: Vec::new(),
            },
            ports: BTreeMap::new(),
            room: self.room.for_one(),
        });
        held.ports.append(&mut taken);
        let before = std::mem::replace(&mut held.wanted, member);
        let outcome = held.follow(&before);
        if let Some((_, resolver)) = &self.resolver {
            tell(resolver, Some(&before), Some(&held.wanted));
        }
        outcome
    }

    /// Ports that are wanted and not held yet, all of them.
    fn take_missing(&self, member: &Member) -> Result<BTreeMap<PortHold, HeldPort>, TableError> {
        let mut taken = BTreeMap::new();
        let own = self.members.get(&member.uid);
        for Port { hold, .. } in &member.ports {
            if own.is_some_and(|held| held.ports.contains_key(hold)) {
                continue;
            }
            match HeldPort::take(*hold) {
                Ok(port) => taken.insert(*hold, port),
                Err(Errno::ADDRINUSE) => {
                    let by = self.members.values().find(|held| held.ports.contains_key(hold));
                    let by = by.map(|held| held.wanted.uid.clone());
                    return Err(TableError::Taken { hold: *hold, by });
                }
                Err(errno) => return Err(failed(&format!("hold {hold}"), &errno)),
            };
        }
        Ok(taken)
    }

    /// Lets everything of a sandbox go; its connections are cut.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(held) = self.members.remove(uid) else { return };
        if let Some((_, resolver)) = &self.resolver {
            tell(resolver, Some(&held.wanted), None);
        }
    }

    /// Lets everybody go but these.
    pub(crate) fn retain(&mut self, uids: &[String]) {
        let gone: Vec<String> =
            self.members.keys().filter(|uid| !uids.contains(uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    pub(crate) fn inventory(&self) -> impl Iterator<Item = Holding> {
        self.members.values().map(|held| Holding {
            member: held.wanted.clone(),
            connections: u32::try_from(held.room.connections()).unwrap_or(u32::MAX),
        })
    }

    /// Serves names there, or nowhere.
    pub(crate) fn resolve(&mut self, place: Option<ResolverPlace>) -> Result<(), TableError> {
        if self.resolver.as_ref().map(|(place, _)| place) == place.as_ref() {
            return Ok(());
        }
        self.resolver = None;
        let Some(place) = place else { return Ok(()) };
        let sockets = sockets_in(&place)?;
        let servers = match &place.servers[..] {
            [] => Servers::of_host(),
            servers => Servers::fixed(servers.to_vec()),
        };
        let resolver =
            Resolver::serve(sockets, servers).map_err(|error| failed("serve names", &error))?;
        for held in self.members.values() {
            tell(&resolver, None, Some(&held.wanted));
        }
        self.resolver = Some((place, resolver));
        Ok(())
    }
}

impl Held {
    /// Makes the ports follow what is wanted, after `before`.
    fn follow(&mut self, before: &Member) -> Result<(), TableError> {
        let wanted = &self.wanted;
        self.ports.retain(|hold, _| wanted.ports.iter().any(|port| port.hold == *hold));
        for port in &wanted.ports {
            let target = |member: &Member| {
                let port = member.ports.iter().find(|it| it.hold == port.hold)?;
                Some((member.addresses?, port.target_port))
            };
            let (was, is) = (target(before), target(wanted));
            let Some(held) = self.ports.get_mut(&port.hold) else { continue };
            if was.is_some() && was != is {
                // It leads elsewhere now: what is connected is not what clients will mean.
                held.cut();
            }
            match is {
                Some((addresses, target_port)) if port.open => held
                    .open(addresses, target_port, &self.room)
                    .map_err(|error| failed(&format!("open {}", port.hold), &error))?,
                _ => held.close(),
            }
        }
        Ok(())
    }
}

fn check(member: &Member) -> Result<(), TableError> {
    let refused = |message: &str| Err(TableError::Failed { message: message.to_owned() });
    if member.uid.is_empty() || member.uid.len() > MAX_UID_BYTES {
        return refused("a uid has 1 to 64 bytes");
    }
    if member.ports.len() > MAX_PORTS {
        return refused("a sandbox has 256 ports at most");
    }
    for (at, port) in member.ports.iter().enumerate() {
        if port.hold.host_port == 0 || port.target_port == 0 {
            return refused("0 is no port");
        }
        if member.ports[..at].iter().any(|other| other.hold == port.hold) {
            return refused("a port is wanted twice");
        }
    }
    Ok(())
}

/// Tells the resolver what has changed, and nothing else: who is told again may ask as if it had asked nothing yet.
fn tell(resolver: &Resolver, before: Option<&Member>, now: Option<&Member>) {
    let (was, is) = (before.and_then(asker), now.and_then(asker));
    if was == is {
        return;
    }
    if let Some(was) = was {
        resolver.forget(was.addresses);
    }
    if let Some(is) = is {
        resolver.admit(&is);
    }
}

fn asker(member: &Member) -> Option<Asker> {
    let addresses = member.addresses?.both();
    Some(match &member.names {
        Names::Refuse => Asker { addresses, forward: false, granted: Vec::new() },
        Names::Forward { granted } => Asker { addresses, forward: true, granted: granted.clone() },
    })
}

/// The resolver's sockets, opened by a thread that enters the ring and ends there.
fn sockets_in(place: &ResolverPlace) -> Result<ResolverSockets, TableError> {
    let opening = || -> std::io::Result<ResolverSockets> {
        atoll_sys::clone::enter(File::open(&place.ring)?)?;
        ResolverSockets::open(&place.gateway.both(), place.port)
    };
    let opened = std::thread::scope(|scope| match scope.spawn(opening).join() {
        Ok(opened) => opened,
        Err(_) => Err(std::io::Error::other("its thread panicked")),
    });
    opened.map_err(|error| failed(&format!("serve names in {}", place.ring.display()), &error))
}
