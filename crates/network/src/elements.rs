//! Changes of elements of sets and maps, all or none of them in one batch: the only thing about the rules that a sandbox changes.
//!
//! Owns the wire form of keys and values. A key is a row of fields, each padded to four bytes, in network order but for interface indices,
//! which are in the host's. SOURCE: what `nft --debug=netlink add element` sends for the same types.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::error::NetworkError;
use crate::route::InterfaceIndex;

/// The subsystem that a batch is for. SOURCE: NFNL_SUBSYS_NFTABLES in linux/netfilter/nfnetlink.h.
const SUBSYSTEM: u16 = 10;
/// SOURCE: NFTA_DATA_VALUE in linux/netfilter/nf_tables.h.
const DATA_VALUE: u16 = 1;

/// One part of a key or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Interface(InterfaceIndex),
    Address(IpAddr),
    /// A transport protocol by its number.
    Protocol(u8),
    Port(u16),
}

/// A key or a value, field by field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Row(Vec<Field>);

impl Row {
    pub(crate) fn interface(self, index: InterfaceIndex) -> Self {
        self.with(Field::Interface(index))
    }

    pub(crate) fn address(self, address: IpAddr) -> Self {
        self.with(Field::Address(address))
    }

    pub(crate) fn protocol(self, number: u8) -> Self {
        self.with(Field::Protocol(number))
    }

    pub(crate) fn port(self, port: u16) -> Self {
        self.with(Field::Port(port))
    }

    fn with(mut self, field: Field) -> Self {
        self.0.push(field);
        self
    }

    /// As the kernel has it.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 * self.0.len());
        for field in &self.0 {
            match field {
                Field::Interface(index) => bytes.extend_from_slice(&index.0.to_ne_bytes()),
                Field::Address(IpAddr::V4(address)) => bytes.extend_from_slice(&address.octets()),
                Field::Address(IpAddr::V6(address)) => bytes.extend_from_slice(&address.octets()),
                Field::Protocol(number) => bytes.push(*number),
                Field::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
            }
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index) => write!(f, "{}", index.0),
            Self::Address(address) => write!(f, "{address}"),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

/// As `nft` has it.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" . ")?;
            }
            write!(f, "{field}")?;
        }
        Ok(())
    }
}

/// What a key of a map stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing: of a set.
    None,
    /// A place to go to.
    Row(Row),
    /// A chain to go on in.
    Chain(&'static str),
}

/// An element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// Of which set or map.
    pub(crate) set: &'static str,
    pub(crate) key: Row,
    /// Of an interval: the last key.
    pub(crate) last: Option<Row>,
    pub(crate) value: Value,
}

impl Element {
    /// Of a set.
    pub(crate) fn of(set: &'static str, key: Row) -> Self {
        Self { set, key, last: None, value: Value::None }
    }

    /// Of a map.
    pub(crate) fn to(set: &'static str, key: Row, value: Value) -> Self {
        Self { set, key, last: None, value }
    }

    /// As `nft` has it, of a set without intervals or with.
    pub(crate) fn text(&self) -> String {
        let key = match &self.last {
            None => self.key.to_string(),
            Some(last) => {
                let fields = self.key.0.iter().zip(&last.0);
                let one = |(first, last): (&Field, &Field)| {
                    if first == last { first.to_string() } else { format!("{first}-{last}") }
                };
                fields.map(one).collect::<Vec<_>>().join(" . ")
            }
        };
        match &self.value {
            Value::None => key,
            Value::Row(row) => format!("{key} : {row}"),
            Value::Chain(chain) => format!("{key} : goto {chain}"),
        }
    }

    fn attributes(self, deleting: bool) -> Vec<SetElementAttribute> {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(self.key.bytes()))];
        if let Some(last) = self.last {
            let last = DefaultNla::new(DATA_VALUE, last.bytes());
            attributes.push(SetElementAttribute::KeyEnd(vec![last]));
        }
        match self.value {
            // A key says enough of what goes.
            _ if deleting => {}
            Value::None => {}
            Value::Row(row) => {
                attributes.push(SetElementAttribute::Data(DataAttribute::Value(row.bytes())));
            }
            Value::Chain(chain) => {
                attributes.push(SetElementAttribute::Data(DataAttribute::Verdict(vec![
                    VerdictAttribute::Code(Verdict::Goto),
                    VerdictAttribute::Chain(chain.to_owned()),
                ])));
            }
        }
        attributes
    }
}

/// Adds or removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The element is there afterwards; one with the same key and another value is an error.
    Add(Element),
    /// It is not; an error when it was not before.
    Remove(Element),
}

/// A socket to the rules of the namespace in which it was opened.
pub(crate) struct RuleSocket {
    socket: Socket,
    sequence: u32,
}

impl RuleSocket {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let failed = || NetworkError::kernel("open a netfilter netlink socket");
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed())?;
        socket.bind_auto().map_err(failed())?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes all changes, or none when one of them cannot be made.
    pub(crate) fn apply(&mut self, table: &str, changes: Vec<Change>) -> Result<(), NetworkError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.transact(table, changes)
            .map_err(NetworkError::kernel(format!("change elements of the table {table}")))
    }

    /// Whether there is such a table. What cannot be asked is taken as there.
    pub(crate) fn has_table(&mut self, table: &str) -> bool {
        let attributes = vec![TableAttribute::Name(table.to_owned())];
        let message = NfTablesMessage::GetTable(TableMessage { attributes });
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let mut bytes = Vec::new();
        self.append(&mut bytes, NLM_F_ACK, NetfilterMessage::new(header, message));
        let asked = self.sequence;
        if self.socket.send(&bytes, 0).is_err() {
            return true;
        }
        while let Ok((datagram, _)) = self.socket.recv_from_full() {
            let Ok(answer) = NetlinkMessage::<NetfilterMessage>::deserialize(&datagram) else {
                continue;
            };
            if let NetlinkPayload::Error(error) = answer.payload
                && answer.header.sequence_number == asked
            {
                let absent = rustix::io::Errno::NOENT.raw_os_error();
                return error.raw_code().abs() != absent;
            }
        }
        true
    }

    fn transact(&mut self, table: &str, changes: Vec<Change>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        let count = changes.len();
        self.append(&mut bytes, 0, control(ControlMessage::BatchBegin, SUBSYSTEM));
        let first = self.sequence.wrapping_add(1);
        for change in changes {
            let (flags, message) = message_of(table, change);
            self.append(&mut bytes, NLM_F_ACK | flags, message);
        }
        self.append(&mut bytes, 0, control(ControlMessage::BatchEnd, SUBSYSTEM));
        self.socket.send(&bytes, 0)?;
        let mut failed = None;
        let mut answered = 0;
        // One answer for each change; a batch that is refused as a whole has one error more, before them.
        while answered < count {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(std::io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                let NetlinkPayload::Error(error) = answer.payload else { continue };
                let of = answer.header.sequence_number.wrapping_sub(first) as usize;
                if error.code.is_some() {
                    failed.get_or_insert_with(|| error.to_io());
                }
                if of < count {
                    answered += 1;
                } else if error.code.is_some() {
                    // The batch itself was refused: nothing more comes.
                    answered = count;
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, flags: u16, message: NetfilterMessage) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let at = bytes.len();
        bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
        let end = at + message.buffer_len();
        message.serialize(&mut bytes[at..end]);
    }
}

fn control(message: ControlMessage, subsystem: u16) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem), message)
}

fn message_of(table: &str, change: Change) -> (u16, NetfilterMessage) {
    let (adding, element) = match change {
        Change::Add(element) => (true, element),
        Change::Remove(element) => (false, element),
    };
    let attributes = vec![
        SetElementList::Table(table.to_owned()),
        SetElementList::Set(element.set.to_owned()),
        SetElementList::Elements(vec![ListAttribute::Element(element.attributes(!adding))]),
    ];
    let message = SetElementMessage { attributes };
    let (flags, message) = if adding {
        (NLM_F_CREATE, NfTablesMessage::NewSetElement(message))
    } else {
        (0, NfTablesMessage::DeleteSetElement(message))
    };
    (flags, NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message))
}

/// Whether a removal failed only because there was nothing to remove.
pub(crate) fn was_absent(error: &NetworkError) -> bool {
    matches!(error, NetworkError::Kernel { source, .. }
        if Errno::from_io_error(source) == Some(Errno::NOENT))
}
