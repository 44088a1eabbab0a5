//! The network of an instance: opened once by its server, asked for slots, told what each may do.
//!
//! ```text
//! open ──► ring, uplink, rules (those of known slots included, in one transaction)
//! prepare_slot ──► closed ──admit──► open to its policy ──publish──► visitors come in
//!                                          ▲                  │
//!                                          └────unpublish─────┘         release (any time) ──► gone
//! ```
//!
//! All methods block for as long as the kernel takes, microseconds to a few milliseconds; [`Network::open`] and a repair start `nft`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_sys::clone;
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::elements::{Change, Element, Row, RuleSocket, was_absent};
use crate::error::NetworkError;
use crate::foreign::{self, ClosedChain};
use crate::namespace::{Namespace, on_a_thread};
use crate::policy::{Policy, PublishedPort, doors, existence, permissions, signs};
use crate::route::{InterfaceIndex, RouteSocket};
use crate::rules::{self, HostNames, RING_TABLE};
use crate::slot::{self, Slot, number_of, ring_name};
use crate::subnet::{MAX_SLOTS, SlotNumber, Subnet};
use crate::uplink;
use crate::watch::Watch;

/// Version of the record in the network's directory.
const RECORD_VERSION: u32 = 1;
/// How many subnets are tried.
const SUBNETS: u32 = 128;

/// What a network is opened with.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Its own directory, made where it is missing. Must be on the host's mount namespace.
    pub directory: PathBuf,
    /// The instance's name, unique on the host.
    pub instance: String,
    /// Chosen by the operator; `None`: derived, the first that is free.
    pub subnet: Option<Subnet>,
}

/// A slot of a sandbox that runs, as its owner wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSlot {
    /// Its number.
    pub number: SlotNumber,
    /// What it may do; `None`: not admitted yet.
    pub policy: Option<Policy>,
    /// What is published of it at the moment.
    pub published: Vec<PublishedPort>,
}

/// What of an instance's network is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Slots in the ring, in order.
    pub slots: Vec<SlotNumber>,
    /// Interfaces of the instance on the host.
    pub host_interfaces: Vec<String>,
    /// The ring's mount is there.
    pub ring: bool,
}

/// The network of an instance. Dropping it leaves everything in place for the next to open.
pub struct Network {
    shared: Arc<Shared>,
    watch: Watch,
}

pub(crate) struct Shared {
    directory: PathBuf,
    pub(crate) names: HostNames,
    pub(crate) subnet: Subnet,
    pub(crate) host: Namespace,
    ring: Namespace,
    state: Mutex<State>,
}

struct State {
    ring_routes: RouteSocket,
    ring_rules: RuleSocket,
    host_rules: RuleSocket,
    host_addresses: Vec<std::net::IpAddr>,
    slots: BTreeMap<SlotNumber, SlotState>,
    /// Where the search for a free number begins: one that has just been given back is taken last.
    next: u32,
}

struct SlotState {
    index: InterfaceIndex,
    policy: Option<Policy>,
    published: Vec<PublishedPort>,
}

/// The record in the network's directory.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    subnet: Subnet,
}

/// Tries in a namespace of its own whether this host takes the rules of a network (some 20 ms). Leaves nothing.
///
/// # Errors
/// [`NetworkError::Unavailable`]: what is missing.
pub fn probe() -> Result<(), NetworkError> {
    on_a_thread(|| {
        clone::unshare(UnshareFlags::NEWNET).map_err(|error| NetworkError::Unavailable {
            message: format!("a network namespace cannot be made: {error}"),
        })?;
        let (namespace, subnet) = (Namespace::current()?, Subnet::derived("probe", 0));
        rules::load(&namespace, &rules::ring(&subnet, &[]))?;
        rules::load(&namespace, &rules::host(&HostNames::of("probe"), &subnet, &[]))
    })
}

/// The chains of the calling thread's host that refuse to forward what none of their rules accepts, and that atoll leaves closed.
///
/// # Errors
/// `nft` is missing.
pub fn closed_chains() -> Result<Vec<ClosedChain>, NetworkError> {
    let mut closed = foreign::closed(&Namespace::current()?)?;
    closed.retain(|chain| !chain.is_shared());
    Ok(closed)
}

impl Network {
    /// Whether a network that was opened in this directory has not been removed.
    #[must_use]
    pub fn is_in(directory: &Path) -> bool {
        record_path(directory).exists() || ring_path(directory).exists()
    }

    /// Makes the network, or takes over what an earlier server left: slots in `known` keep their connections, all others are removed.
    /// Must be called in the host's network namespace. Gives the known slots that are not there any more, too.
    ///
    /// # Errors
    /// [`NetworkError`]: what the host lacks, or no subnet is free. Nothing half-made is left that another call would not take over.
    pub fn open(
        options: &OpenOptions,
        known: &[KnownSlot],
    ) -> Result<(Self, Vec<SlotNumber>), NetworkError> {
        let directory = &options.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(NetworkError::io("create", directory))?;
        let names = HostNames::of(&options.instance);
        let host = Namespace::current()?;
        let mut host_routes = RouteSocket::open()?;
        let host_rules = RuleSocket::open()?;
        let recorded = read_record(directory)?;
        let path = ring_path(directory);
        let (ring, subnet) = match (Namespace::find(&path)?, recorded) {
            (Some(ring), Some(subnet)) if options.subnet.is_none_or(|it| it == subnet) => {
                (ring, subnet)
            }
            _ => {
                Namespace::remove_ring(&path)?;
                uplink::remove(&mut host_routes, &names)?;
                let subnet = choose_subnet(&mut host_routes, options, recorded)?;
                write_record(directory, subnet)?;
                (Namespace::make_ring(&path)?, subnet)
            }
        };
        let (mut ring_routes, ring_rules) =
            ring.inside(|| Ok((RouteSocket::open()?, RuleSocket::open()?)))?;
        uplink::ensure(&mut host_routes, &mut ring_routes, ring.fd(), &names, &subnet)?;
        let (slots, lost) = take_over(&mut ring_routes, known)?;
        let host_addresses = host_routes.addresses()?;
        let next = slots.keys().next_back().map_or(0, |last| last.0.wrapping_add(1));
        let state = State { ring_routes, ring_rules, host_rules, host_addresses, slots, next };
        let directory = directory.clone();
        let shared =
            Arc::new(Shared { directory, names, subnet, host, ring, state: Mutex::new(state) });
        shared.load_ring()?;
        shared.load_host()?;
        let watch = Watch::start(&shared)?;
        Ok((Self { shared, watch }, lost))
    }

    /// The instance's addresses.
    #[must_use]
    pub fn subnet(&self) -> Subnet {
        self.shared.subnet
    }

    /// Begins a thread that lives in the ring.
    ///
    /// # Errors
    /// The ring cannot be entered, or there is no thread.
    pub fn thread_in_ring(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), NetworkError> {
        self.shared.ring.thread(name, work)
    }

    /// Opens sockets in the ring.
    ///
    /// # Errors
    /// What `work` answers, or that the ring could not be entered.
    pub fn inside_ring<T: Send>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> Result<T, NetworkError> {
        self.shared
            .ring
            .inside(|| work().map_err(NetworkError::kernel("open a socket in the ring")))
    }

    /// Makes a slot, closed to everything: half a millisecond or two, so ahead of who needs it.
    ///
    /// # Errors
    /// [`NetworkError::NoSlot`], or what the kernel refused; nothing of the slot is left then.
    pub fn prepare_slot(&self) -> Result<Slot, NetworkError> {
        on_a_thread(|| {
            let mut state = self.shared.state();
            let number = state.free_number().ok_or(NetworkError::NoSlot(MAX_SLOTS))?;
            let (addresses, gateway) =
                (self.shared.subnet.slot(number), self.shared.subnet.gateway());
            let made = slot::make(&mut state.ring_routes, number, addresses, gateway);
            let made = made.and_then(|(slot, index)| {
                let elements = existence(index, &addresses);
                state
                    .ring_rules
                    .apply(RING_TABLE, elements.into_iter().map(Change::Add).collect())?;
                Ok((slot, index))
            });
            match made {
                Ok((slot, index)) => {
                    let fresh = SlotState { index, policy: None, published: Vec::new() };
                    state.slots.insert(number, fresh);
                    Ok(slot)
                }
                Err(error) => {
                    if let Ok(Some(index)) = state.ring_routes.index(&ring_name(number)) {
                        state.ring_routes.remove(index)?;
                    }
                    Err(error)
                }
            }
        })
    }

    /// Opens a slot to its policy. Done before its sandbox's first instruction.
    ///
    /// # Errors
    /// [`NetworkError::UnknownSlot`], or what the kernel refused: the slot stays closed.
    pub fn admit(&self, number: SlotNumber, policy: &Policy) -> Result<(), NetworkError> {
        let own = self.shared.subnet.slot(number);
        let mut state = self.shared.state();
        let (index, before) = {
            let slot = state.slot(number)?;
            (slot.index, slot.policy.clone())
        };
        let mut changes: Vec<Change> = Vec::new();
        if let Some(before) = &before {
            changes.extend(permissions(index, &own, before).into_iter().map(Change::Remove));
        }
        changes.extend(permissions(index, &own, policy).into_iter().map(Change::Add));
        state.ring_rules.apply(RING_TABLE, changes)?;
        state.slot(number)?.policy = Some(policy.clone());
        Ok(())
    }

    /// Lets visitors of these ports of the host in; they replace those published before. Connections that are open stay open.
    ///
    /// # Errors
    /// [`NetworkError::PortInUse`], [`NetworkError::UnknownSlot`], or what the kernel refused.
    pub fn publish(&self, number: SlotNumber, ports: &[PublishedPort]) -> Result<(), NetworkError> {
        let mut state = self.shared.state();
        state.slot(number)?;
        state.check_ports(number, ports)?;
        let own = self.shared.subnet.slot(number);
        let before = std::mem::take(&mut state.slot(number)?.published);
        let difference = |from: Vec<Element>, to: Vec<Element>| {
            let gone = from.iter().filter(|it| !to.contains(it)).cloned().map(Change::Remove);
            let come = to.iter().filter(|it| !from.contains(it)).cloned().map(Change::Add);
            gone.chain(come).collect::<Vec<_>>()
        };
        let ring = difference(doors(&own, &before), doors(&own, ports));
        let host = difference(signs(&own, &before), signs(&own, ports));
        // The record first: should the host's table be gone, its repair has what is wanted.
        state.slot(number)?.published = ports.to_vec();
        state.ring_rules.apply(RING_TABLE, ring)?;
        match state.host_rules.apply(&self.shared.names.table, host) {
            Err(error) if was_absent(&error) => {
                drop(state);
                self.shared.load_host()
            }
            applied => applied,
        }
    }

    /// No new visitors from now on.
    ///
    /// # Errors
    /// As [`Network::publish`].
    pub fn unpublish(&self, number: SlotNumber) -> Result<(), NetworkError> {
        self.publish(number, &[])
    }

    /// Removes a slot and all that was let through for it. One that is not there is fine.
    ///
    /// # Errors
    /// What the kernel refused; it may be tried again.
    pub fn release(&self, number: SlotNumber) -> Result<(), NetworkError> {
        if !self.shared.state().slots.contains_key(&number) {
            return Ok(());
        }
        self.unpublish(number)?;
        let mut state = self.shared.state();
        let own = self.shared.subnet.slot(number);
        let Some(slot) = state.slots.get(&number) else { return Ok(()) };
        let index = slot.index;
        let mut elements = existence(index, &own);
        elements.extend(slot.policy.iter().flat_map(|policy| permissions(index, &own, policy)));
        // First the interface: without it the rules let nothing through, and its number may come again.
        state.ring_routes.remove(index)?;
        for set in ["connections", "visitors"] {
            let counted = Element::of(set, Row::default().interface(index));
            match state.ring_rules.apply(RING_TABLE, vec![Change::Remove(counted)]) {
                // It never had a connection.
                Err(error) if was_absent(&error) => {}
                removed => removed?,
            }
        }
        // Last, and all at once: a release that broke off before is tried again and finds them.
        state.ring_rules.apply(RING_TABLE, elements.into_iter().map(Change::Remove).collect())?;
        state.slots.remove(&number);
        Ok(())
    }

    /// What of it is on the host now.
    ///
    /// # Errors
    /// What could not be listed.
    pub fn inventory(&self) -> Result<Inventory, NetworkError> {
        let mut state = self.shared.state();
        let interfaces = state.ring_routes.interfaces()?;
        let slots = interfaces.keys().filter_map(|name| number_of(name));
        let mut slots: Vec<SlotNumber> = slots.collect();
        slots.sort_unstable();
        let host = self.shared.host.inside(|| RouteSocket::open()?.interfaces())?;
        let host_interfaces =
            host.into_keys().filter(|name| *name == self.shared.names.uplink).collect();
        let ring = Namespace::find(&ring_path(&self.shared.directory))?.is_some();
        Ok(Inventory { slots, host_interfaces, ring })
    }

    /// Removes all of it from the host. Sandboxes that still run keep a namespace that leads nowhere.
    ///
    /// # Errors
    /// What could not be removed; the rest is gone.
    pub fn remove(&self) -> Result<(), NetworkError> {
        self.watch.stop();
        let names = &self.shared.names;
        let unloaded = rules::load(&self.shared.host, &rules::unloading(&names.table));
        let unloaded = unloaded.and(foreign::withdraw(&self.shared.host, &names.uplink));
        let removed = self.shared.host.inside(|| uplink::remove(&mut RouteSocket::open()?, names));
        let path = ring_path(&self.shared.directory);
        unloaded.and(removed).and(Namespace::remove_ring(&path))?;
        let record = record_path(&self.shared.directory);
        match fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::io("remove", record)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads the ring's rules with all that is known.
    fn load_ring(&self) -> Result<(), NetworkError> {
        let state = self.state();
        let mut elements = state.host_elements();
        for (number, slot) in &state.slots {
            let own = self.subnet.slot(*number);
            elements.extend(existence(slot.index, &own));
            elements.extend(
                slot.policy.iter().flat_map(|policy| permissions(slot.index, &own, policy)),
            );
            elements.extend(doors(&own, &slot.published));
        }
        rules::load(&self.ring, &rules::ring(&self.subnet, &elements))
    }

    /// Loads the host's rules with all that is published.
    pub(crate) fn load_host(&self) -> Result<(), NetworkError> {
        let state = self.state();
        let published = |(number, slot): (&SlotNumber, &SlotState)| {
            signs(&self.subnet.slot(*number), &slot.published)
        };
        let elements: Vec<Element> = state.slots.iter().flat_map(published).collect();
        rules::load(&self.host, &rules::host(&self.names, &self.subnet, &elements))
    }

    /// Lets the uplink pass where other tools refuse to forward. Gives the chains that stay closed.
    pub(crate) fn pass_foreign_chains(&self) -> Result<Vec<ClosedChain>, NetworkError> {
        foreign::let_through(&self.host, &self.names.uplink)
    }

    /// Whether the host still has the instance's table.
    pub(crate) fn host_table_is_there(&self) -> bool {
        self.state().host_rules.has_table(&self.names.table)
    }

    /// The host's addresses have changed.
    pub(crate) fn set_host_addresses(
        &self,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<(), NetworkError> {
        let mut state = self.state();
        let before = state.host_elements();
        let old = std::mem::replace(&mut state.host_addresses, addresses);
        let after = state.host_elements();
        let gone = before.iter().filter(|it| !after.contains(it)).cloned().map(Change::Remove);
        let come = after.iter().filter(|it| !before.contains(it)).cloned().map(Change::Add);
        let changes: Vec<Change> = come.chain(gone).collect();
        let applied = state.ring_rules.apply(RING_TABLE, changes);
        if applied.is_err() {
            state.host_addresses = old;
        }
        applied
    }
}

impl State {
    fn slot(&mut self, number: SlotNumber) -> Result<&mut SlotState, NetworkError> {
        self.slots.get_mut(&number).ok_or(NetworkError::UnknownSlot(number.0))
    }

    fn free_number(&mut self) -> Option<SlotNumber> {
        let tried = (0..MAX_SLOTS).map(|offset| self.next.wrapping_add(offset) % MAX_SLOTS);
        let free = tried.map(SlotNumber).find(|number| !self.slots.contains_key(number))?;
        self.next = (free.0 + 1) % MAX_SLOTS;
        Some(free)
    }

    fn check_ports(&self, number: SlotNumber, ports: &[PublishedPort]) -> Result<(), NetworkError> {
        for (index, port) in ports.iter().enumerate() {
            let same = |other: &PublishedPort| {
                (other.protocol, other.host_port) == (port.protocol, port.host_port)
            };
            let of_others = self.slots.iter().filter(|(other, _)| **other != number);
            let mut of_others =
                of_others.filter(|(_, slot)| slot.published.iter().any(same)).map(|(it, _)| it.0);
            let own = ports[..index].iter().any(same).then_some(number.0);
            if let Some(slot) = own.or_else(|| of_others.next()) {
                let (port, protocol) = (port.host_port, port.protocol.name());
                return Err(NetworkError::PortInUse { port, protocol, slot });
            }
        }
        Ok(())
    }

    fn host_elements(&self) -> Vec<Element> {
        let one = |address: &std::net::IpAddr| {
            let set = if address.is_ipv4() { "host4" } else { "host6" };
            Element::of(set, Row::default().address(*address))
        };
        self.host_addresses.iter().map(one).collect()
    }
}

/// Finds the interfaces of known slots and removes those of all others.
fn take_over(
    ring: &mut RouteSocket,
    known: &[KnownSlot],
) -> Result<(BTreeMap<SlotNumber, SlotState>, Vec<SlotNumber>), NetworkError> {
    let mut slots = BTreeMap::new();
    for (name, index) in ring.interfaces()? {
        let Some(number) = number_of(&name) else { continue };
        match known.iter().find(|it| it.number == number) {
            Some(known) => {
                let (policy, published) = (known.policy.clone(), known.published.clone());
                slots.insert(number, SlotState { index, policy, published });
            }
            None => ring.remove(index)?,
        }
    }
    let lost = known.iter().map(|it| it.number).filter(|it| !slots.contains_key(it)).collect();
    Ok((slots, lost))
}

fn choose_subnet(
    host: &mut RouteSocket,
    options: &OpenOptions,
    recorded: Option<Subnet>,
) -> Result<Subnet, NetworkError> {
    let routes = host.destinations()?;
    let in_the_way =
        |subnet: &Subnet| routes.iter().find(|(to, length, _)| subnet.overlaps(*to, *length));
    if let Some(chosen) = options.subnet {
        return match in_the_way(&chosen) {
            None => Ok(chosen),
            Some((to, length, _)) => Err(NetworkError::SubnetInUse {
                subnet: chosen.to_string(),
                route: format!("{to}/{length}"),
            }),
        };
    }
    let derived = (0..SUBNETS).map(|attempt| Subnet::derived(&options.instance, attempt));
    let mut choices = recorded.into_iter().chain(derived);
    choices.find(|subnet| in_the_way(subnet).is_none()).ok_or(NetworkError::NoSubnet)
}

fn ring_path(directory: &Path) -> PathBuf {
    directory.join("ring")
}

fn record_path(directory: &Path) -> PathBuf {
    directory.join("network.json")
}

fn read_record(directory: &Path) -> Result<Option<Subnet>, NetworkError> {
    let path = record_path(directory);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(NetworkError::io("read", path)(error)),
    };
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version <= RECORD_VERSION => Ok(Some(record.subnet)),
        Ok(record) => Err(NetworkError::Unavailable {
            message: format!(
                "{} has version {}, this atoll knows up to {RECORD_VERSION}: use the newer atoll that wrote it",
                path.display(),
                record.version
            ),
        }),
        Err(error) => {
            // Worth nothing but the same addresses as before.
            tracing::warn!(path = %path.display(), %error, "the network's record is damaged and made anew");
            Ok(None)
        }
    }
}

fn write_record(directory: &Path, subnet: Subnet) -> Result<(), NetworkError> {
    let path = record_path(directory);
    let new = directory.join("network.json.new");
    let bytes = serde_json::to_vec(&Record { version: RECORD_VERSION, subnet })
        .map_err(|error| NetworkError::io("write", &path)(std::io::Error::other(error)))?;
    fs::write(&new, bytes).map_err(NetworkError::io("write", &new))?;
    fs::rename(&new, &path).map_err(NetworkError::io("write", &path))
}
