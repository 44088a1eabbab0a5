//! Which sandbox has which port of this host.
//!
//! Owns the book of them while the server runs; it is in the records (`status.assigned_ports`), and read from there after a restart.
//! Who binds them is the network's keeper: only the attempt tells whether a program outside of atoll has one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use atoll_model::ports::{PortError, PortProtocol, PortRange, WantedPort, assign};
use atoll_model::spec::Port;
use atoll_runtime::{HoldError, SandboxNetwork};
use atoll_wire::rest::AssignedPort;
use atoll_wire::shim::{self, PortPlan};

/// How many ports that other programs have are stepped over for one sandbox.
const ATTEMPTS: usize = 64;
/// Who has a port that another program has, while a sandbox's ports are chosen.
const OUTSIDE: &str = "";

/// The ports of this host that sandboxes have.
pub(crate) struct PortBook {
    range: PortRange,
    pages: Mutex<Pages>,
}

struct Pages {
    /// By uid.
    used: BTreeMap<(PortProtocol, u16), String>,
    /// Names of those who have some.
    names: BTreeMap<String, String>,
    /// Where the search for a free one goes on.
    next: u16,
}

/// Why a sandbox gets no ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortRefusal {
    /// The wish itself cannot be.
    #[error("{0}")]
    Wish(PortError),
    /// Somebody has what is wanted, or everything.
    #[error("{0}")]
    Busy(String),
    /// The network cannot.
    #[error("its ports cannot be held: {0}")]
    Unavailable(String),
}

impl PortBook {
    /// Nobody has any. The search begins at `start`, so that a new server does not give out at once what the last one did.
    pub(crate) fn new(range: PortRange, start: u16) -> Self {
        let pages = Pages { used: BTreeMap::new(), names: BTreeMap::new(), next: start };
        Self { range, pages: Mutex::new(pages) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses ports for a sandbox and has them held: all, or none.
    pub(crate) async fn reserve(
        &self,
        network: &dyn SandboxNetwork,
        uid: &str,
        name: &str,
        wanted: &[Port],
    ) -> Result<Vec<AssignedPort>, PortRefusal> {
        let mut outside = Vec::new();
        let reserved = loop {
            let assigned = match self.choose(uid, name, wanted) {
                Ok(assigned) => assigned,
                Err(refusal) => break Err(refusal),
            };
            match network.hold(uid, &plans(&assigned)).await {
                Ok(()) => break Ok(assigned),
                Err(error) => {
                    self.give_back(uid);
                    match self.step_over(&error, wanted, &assigned, &mut outside) {
                        None => {}
                        Some(refusal) => break Err(refusal),
                    }
                }
            }
        };
        let mut pages = self.pages();
        for key in outside {
            if pages.used.get(&key).is_some_and(|by| by == OUTSIDE) {
                pages.used.remove(&key);
            }
        }
        reserved
    }

    fn choose(
        &self,
        uid: &str,
        name: &str,
        wanted: &[Port],
    ) -> Result<Vec<AssignedPort>, PortRefusal> {
        let wishes: Vec<WantedPort> = wanted
            .iter()
            .map(|it| WantedPort { protocol: it.protocol, host_port: it.published_port })
            .collect();
        let mut pages = self.pages();
        let chosen = assign(self.range, &pages.used, &wishes, pages.next)
            .map_err(|error| pages.refusal(error))?;
        for (port, host_port) in wanted.iter().zip(&chosen) {
            pages.used.insert((port.protocol, *host_port), uid.to_owned());
            if port.published_port.is_none() {
                pages.next = host_port.wrapping_add(1);
            }
        }
        pages.names.insert(uid.to_owned(), name.to_owned());
        let assigned = |(port, host_port): (&Port, u16)| AssignedPort {
            host_port,
            container_port: port.container_port,
            protocol: port.protocol.name().to_owned(),
        };
        Ok(wanted.iter().zip(chosen).map(assigned).collect())
    }

    /// After ports could not be held: `None` when others can be tried.
    fn step_over(
        &self,
        error: &HoldError,
        wanted: &[Port],
        assigned: &[AssignedPort],
        outside: &mut Vec<(PortProtocol, u16)>,
    ) -> Option<PortRefusal> {
        let HoldError::Taken { host_port, .. } = error else {
            return Some(PortRefusal::Unavailable(error.to_string()));
        };
        let of_port = wanted.iter().zip(assigned).filter(|(_, it)| it.host_port == *host_port);
        let mut any = false;
        for (port, _) in of_port {
            if port.published_port.is_some() {
                return Some(PortRefusal::Busy(error.to_string()));
            }
            let key = (port.protocol, *host_port);
            self.pages().used.entry(key).or_insert_with(|| OUTSIDE.to_owned());
            outside.push(key);
            any = true;
        }
        let too_many = !any || outside.len() > ATTEMPTS;
        too_many.then(|| PortRefusal::Busy(error.to_string()))
    }

    /// Notes what an earlier server assigned.
    pub(crate) fn note(&self, uid: &str, name: &str, ports: &[AssignedPort]) {
        let mut pages = self.pages();
        for port in ports {
            if let Some(protocol) = PortProtocol::from_name(&port.protocol) {
                pages.used.insert((protocol, port.host_port), uid.to_owned());
                pages.names.insert(uid.to_owned(), name.to_owned());
            }
        }
    }

    /// A sandbox needs its ports no longer.
    pub(crate) fn give_back(&self, uid: &str) {
        let mut pages = self.pages();
        if pages.names.remove(uid).is_some() {
            pages.used.retain(|_, by| by != uid);
        }
    }
}

impl Pages {
    fn refusal(&self, error: PortError) -> PortRefusal {
        match error {
            PortError::Taken { protocol, host_port, by } => {
                let name = self.names.get(&by);
                let by = name.map_or_else(
                    || "a program outside of atoll".to_owned(),
                    |name| format!("sandbox {name}"),
                );
                PortRefusal::Busy(format!("{protocol} port {host_port} is taken by {by}"))
            }
            PortError::Exhausted { .. } => {
                PortRefusal::Busy(format!("{error}: delete sandboxes that publish ports first"))
            }
            PortError::BadRange { .. }
            | PortError::OutsideRange { .. }
            | PortError::Twice { .. } => PortRefusal::Wish(error),
        }
    }
}

/// What the runtime is to hold.
pub(crate) fn plans(assigned: &[AssignedPort]) -> Vec<PortPlan> {
    let plan = |it: &AssignedPort| {
        let protocol = protocol_of(PortProtocol::from_name(&it.protocol)?);
        Some(PortPlan { protocol, host_port: it.host_port, container_port: it.container_port })
    };
    assigned.iter().filter_map(plan).collect()
}

/// The protocol's name for the runtime.
pub(crate) const fn protocol_of(protocol: PortProtocol) -> shim::PortProtocol {
    match protocol {
        PortProtocol::Tcp => shim::PortProtocol::Tcp,
        PortProtocol::Udp => shim::PortProtocol::Udp,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use async_trait::async_trait;
    use atoll_runtime::RuntimeError;

    use super::*;

    /// A host where other programs have these ports.
    #[derive(Default)]
    struct Host {
        foreign: BTreeSet<u16>,
        held: Mutex<BTreeMap<String, Vec<u16>>>,
    }

    #[async_trait]
    impl SandboxNetwork for Host {
        async fn hold(&self, uid: &str, ports: &[PortPlan]) -> Result<(), HoldError> {
            if let Some(port) = ports.iter().find(|it| self.foreign.contains(&it.host_port)) {
                return Err(HoldError::Taken { host_port: port.host_port, by_sandbox: false });
            }
            let ports = ports.iter().map(|it| it.host_port).collect();
            self.held.lock().unwrap().insert(uid.to_owned(), ports);
            Ok(())
        }
        async fn retain(&self) {}
        async fn publish(&self, _: &str, _: bool) -> Result<(), RuntimeError> {
            Ok(())
        }
        async fn connect(&self, _: &str, _: u16) -> Result<tokio::net::TcpStream, RuntimeError> {
            Err(RuntimeError::Unsupported { class: "test", what: "connections" })
        }
        async fn let_go(&self, _: &str) -> Result<(), RuntimeError> {
            Ok(())
        }
    }

    fn any(published_port: Option<u16>) -> Port {
        Port { protocol: PortProtocol::Tcp, container_port: 80, published_port }
    }

    #[tokio::test]
    async fn ports_of_other_programs_are_stepped_over_and_told_where_they_are_wanted() {
        let host = Host { foreign: [20, 21].into(), ..Host::default() };
        let book = PortBook::new(PortRange::new(20, 22).unwrap(), 20);
        let ports = book.reserve(&host, "a", "alice", &[any(None)]).await.unwrap();
        assert_eq!(ports[0].host_port, 22);
        let taken = book.reserve(&host, "b", "bob", &[any(Some(22))]).await.unwrap_err();
        assert_eq!(taken, PortRefusal::Busy("tcp port 22 is taken by sandbox alice".into()));
        let taken = book.reserve(&host, "b", "bob", &[any(Some(20))]).await.unwrap_err();
        assert_eq!(
            taken.to_string(),
            "port 20 of this host is taken by a program outside of atoll"
        );
        let none = book.reserve(&host, "b", "bob", &[any(None)]).await.unwrap_err();
        assert!(matches!(&none, PortRefusal::Busy(why) if why.contains("no tcp port")), "{none}");
        book.give_back("a");
        let ports = book.reserve(&host, "b", "bob", &[any(None)]).await.unwrap();
        assert_eq!(ports[0].host_port, 22, "what was given back can be had again");
        let outside = book.reserve(&host, "c", "carol", &[any(Some(9))]).await.unwrap_err();
        assert!(matches!(outside, PortRefusal::Wish(PortError::OutsideRange { .. })));
    }

    #[tokio::test]
    async fn what_an_earlier_server_assigned_is_not_given_out_again() {
        let host = Host::default();
        let book = PortBook::new(PortRange::new(20, 21).unwrap(), 20);
        let ports = book.reserve(&host, "a", "alice", &[any(None), any(None)]).await.unwrap();
        let next = PortBook::new(PortRange::new(20, 21).unwrap(), 20);
        next.note("a", "alice", &ports[..1]);
        let other = next.reserve(&host, "b", "bob", &[any(None)]).await.unwrap();
        assert_eq!(other[0].host_port, 21);
    }
}
