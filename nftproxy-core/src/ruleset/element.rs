//! Elements of sets and maps.
//!
//! The constructors are the only way to make one, so its key and data always fit its set.

use std::num::{NonZeroU16, NonZeroU32};

use super::comment::Comment;
use super::expr::Verdict;
use super::name::{ChainName, SetName, SlotMap};
use super::schema::{DataType, Field, schema};
use crate::model::{EndpointAddress, Family, Protocol, ServiceAddress};

/// Where connections are sent to: an address, a protocol and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination<F: Family> {
    /// The address; `None` stands for any that accepts NodePorts.
    pub address: Option<F::Address>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, or the nodePort.
    pub port: NonZeroU16,
}

impl<F: Family> std::fmt::Display for Destination<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        ServiceAddress::from(*self).fmt(f)
    }
}

impl<F: Family> From<Destination<F>> for ServiceAddress {
    fn from(destination: Destination<F>) -> Self {
        let Destination {
            address,
            protocol,
            port,
        } = destination;
        Self {
            ip: address.map(Into::into),
            protocol,
            port,
        }
    }
}

/// An element of a set or map; ordered by set, then key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element<F: Family> {
    set: SetName,
    key: Key<F>,
    data: Data<F>,
    comment: Option<Comment>,
}

/// The key of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key<F: Family> {
    /// An address.
    Address(F::Address),
    /// An endpoint that reaches itself: this as source and as destination.
    Hairpin(F::Address),
    /// A virtual address or NodePort.
    Destination(Destination<F>),
    /// The slot of an endpoint, counted from 0.
    Slot(Destination<F>, u32),
    /// A client, and where it connected to.
    Client(F::Address, Destination<F>),
    /// A range of sources that may reach a virtual address: its first address and prefix length.
    Source(Destination<F>, F::Address, u8),
}

/// The data of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data<F: Family> {
    /// It is in a set.
    None,
    /// It is in a verdict map.
    Verdict(Verdict),
    /// It is in a map of slots.
    Endpoint(EndpointAddress<F>),
}

impl<F: Family> Key<F> {
    /// As nft(8) writes it.
    pub fn nft(&self) -> String {
        match self {
            Key::Address(address) => address.to_string(),
            Key::Hairpin(address) => format!("{address} . {address}"),
            Key::Destination(destination) => nft_destination(destination),
            Key::Slot(destination, slot) => format!("{} . {slot}", nft_destination(destination)),
            Key::Client(client, destination) => {
                format!("{client} . {}", nft_destination(destination))
            }
            Key::Source(destination, first, len) => {
                format!("{} . {first}/{len}", nft_destination(destination))
            }
        }
    }

    /// Reads the key of an element of a set as the kernel has it. `None` if it is none that we would
    /// write.
    pub fn read(set: SetName, key: &[u8], key_end: Option<&[u8]>) -> Option<Self> {
        let schema = schema(set);
        if key.len() != schema.key_len::<F>() {
            return None;
        }
        let mut fields = FieldReader { rest: key };
        Some(match schema.key {
            [Field::Daddr] => Key::Address(fields.address::<F>()?),
            [Field::Saddr, Field::Daddr] => {
                let address = fields.address::<F>()?;
                (fields.address::<F>()? == address).then_some(Key::Hairpin(address))?
            }
            [Field::Saddr, Field::Daddr, _, ..] => {
                let client = fields.address::<F>()?;
                Key::Client(client, fields.destination(&schema.key[1..])?)
            }
            [.., Field::SaddrRange] => {
                let destination = fields.destination(schema.key)?;
                let first = fields.address::<F>()?;
                Key::Source(
                    destination,
                    first,
                    prefix_len::<F>(first, key, key_end.unwrap_or(key))?,
                )
            }
            [.., Field::Slot] => Key::Slot(fields.destination(schema.key)?, fields.u32()?),
            _ => Key::Destination(fields.destination(schema.key)?),
        })
    }

    /// Appends the key as the kernel has it: the fields of the set's schema, each padded.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Key::Address(address) => F::write_address(*address, out),
            Key::Hairpin(address) => {
                F::write_address(*address, out);
                F::write_address(*address, out);
            }
            Key::Destination(destination) => write_destination(destination, out),
            Key::Slot(destination, slot) => {
                write_destination(destination, out);
                out.extend_from_slice(&slot.to_ne_bytes());
            }
            Key::Client(client, destination) => {
                F::write_address(*client, out);
                write_destination(destination, out);
            }
            Key::Source(destination, first, _) => {
                write_destination(destination, out);
                F::write_address(*first, out);
            }
        }
    }
}

impl<F: Family> Element<F> {
    /// An element of `cluster-ips`.
    pub fn cluster_ip(address: F::Address) -> Self {
        Self::new(SetName::ClusterIps, Key::Address(address), Data::None)
    }

    /// An element of `node-port-ips`.
    pub fn node_port_ip(address: F::Address) -> Self {
        Self::new(SetName::NodePortIps, Key::Address(address), Data::None)
    }

    /// An element of `hairpin`.
    pub fn hairpin(address: F::Address) -> Self {
        Self::new(SetName::Hairpin, Key::Hairpin(address), Data::None)
    }

    /// An element of `restricted`.
    pub fn restricted(destination: Destination<F>) -> Self {
        Self::new(
            SetName::Restricted,
            Key::Destination(destination),
            Data::None,
        )
    }

    /// An element of `allowed-sources`.
    pub fn allowed_source(destination: Destination<F>, prefix: (F::Address, u8)) -> Self {
        let key = Key::Source(destination, prefix.0, prefix.1);
        Self::new(SetName::AllowedSources, key, Data::None)
    }

    /// An element of `node-ports`.
    ///
    /// # Panics
    ///
    /// If the destination has an address.
    pub fn node_port(destination: Destination<F>) -> Self {
        assert!(
            destination.address.is_none(),
            "{destination} is no NodePort"
        );
        let key = Key::Destination(destination);
        Self::new(SetName::NodePorts, key, Data::None)
    }

    /// An element of `external-local` or `external-local-node-ports`.
    pub fn external_local(destination: Destination<F>) -> Self {
        let set = match destination.address {
            Some(_) => SetName::ExternalLocal,
            None => SetName::ExternalLocalNodePorts,
        };
        Self::new(set, Key::Destination(destination), Data::None)
    }

    /// An element of the verdict map that `role` plays for the kind of destination.
    ///
    /// # Panics
    ///
    /// If it is [`Role::Service`] and the destination is a NodePort.
    pub fn verdict(role: Role, destination: Destination<F>, verdict: Verdict) -> Self {
        let set = role.set(destination.address.is_none());
        assert_eq!(
            schema(set).key.contains(&Field::Daddr),
            destination.address.is_some(),
            "{set} does not hold {destination}"
        );
        Self::new(set, Key::Destination(destination), Data::Verdict(verdict))
    }

    /// An element of a map of slots.
    ///
    /// # Panics
    ///
    /// If the map is for NodePorts and the destination is not, or the other way round.
    pub fn slot(
        map: SlotMap,
        destination: Destination<F>,
        slot: u32,
        endpoint: EndpointAddress<F>,
    ) -> Self {
        let set = map.set();
        assert_eq!(
            schema(set).key.contains(&Field::Daddr),
            destination.address.is_some(),
            "{set} does not hold {destination}"
        );
        Self::new(set, Key::Slot(destination, slot), Data::Endpoint(endpoint))
    }

    /// An element of `affinity`: the endpoint that a client got at a destination.
    ///
    /// # Panics
    ///
    /// If the destination has no address: a NodePort has that of the node.
    pub fn remembered(
        client: F::Address,
        destination: Destination<F>,
        endpoint: EndpointAddress<F>,
    ) -> Self {
        assert!(
            destination.address.is_some(),
            "{destination} is at some address"
        );
        Self::new(
            SetName::Affinity,
            Key::Client(client, destination),
            Data::Endpoint(endpoint),
        )
    }

    /// An element of `sticky` or `sticky-node-ports`: how long clients are remembered there.
    pub fn sticky(destination: Destination<F>, seconds: NonZeroU32) -> Self {
        let set = match destination.address {
            Some(_) => SetName::Sticky,
            None => SetName::StickyNodePorts,
        };
        let verdict = Verdict::Goto(ChainName::RememberFor(seconds));
        Self::new(set, Key::Destination(destination), Data::Verdict(verdict))
    }

    /// An element of `sticky`: clients are not remembered there, whatever `sticky-node-ports` says
    /// of the port.
    pub fn not_sticky(destination: Destination<F>) -> Self {
        let data = Data::Verdict(Verdict::Return);
        Self::new(SetName::Sticky, Key::Destination(destination), data)
    }

    /// An element of `masqueraded` or `masqueraded-node-ports`: whose connections are masqueraded.
    pub fn masqueraded(destination: Destination<F>, chain: ChainName) -> Self {
        let set = match destination.address {
            Some(_) => SetName::Masqueraded,
            None => SetName::MasqueradedNodePorts,
        };
        let verdict = Verdict::Goto(chain);
        Self::new(set, Key::Destination(destination), Data::Verdict(verdict))
    }

    /// The same element with a comment.
    pub fn with_comment(mut self, comment: Comment) -> Self {
        self.comment = Some(comment);
        self
    }

    fn new(set: SetName, key: Key<F>, data: Data<F>) -> Self {
        Self {
            set,
            key,
            data,
            comment: None,
        }
    }

    /// An element of parts that fit, which the caller sees to.
    pub(crate) fn of_parts(
        set: SetName,
        key: Key<F>,
        data: Data<F>,
        comment: Option<Comment>,
    ) -> Self {
        Self {
            comment,
            ..Self::new(set, key, data)
        }
    }

    /// The set or map it is in.
    pub fn set(&self) -> SetName {
        self.set
    }

    /// Its key.
    pub fn key(&self) -> &Key<F> {
        &self.key
    }

    /// Its data.
    pub fn data(&self) -> &Data<F> {
        &self.data
    }

    /// Its comment: the Service port it belongs to.
    pub fn comment(&self) -> Option<&Comment> {
        self.comment.as_ref()
    }

    /// Set and key: what tells it from other elements.
    pub fn identity(&self) -> (SetName, Key<F>) {
        (self.set, self.key)
    }

    /// As nft(8) writes it.
    pub fn nft(&self) -> String {
        let mut text = self.key.nft();
        if let Some(comment) = &self.comment {
            text.push_str(&format!(" comment \"{comment}\""));
        }
        match &self.data {
            Data::None => {}
            Data::Verdict(verdict) => text.push_str(&format!(" : {}", verdict.nft())),
            Data::Endpoint(EndpointAddress { address, port }) => {
                text.push_str(&format!(" : {address} . {port}"));
            }
        }
        text
    }

    /// Appends the key as the kernel has it.
    pub fn write_key(&self, out: &mut Vec<u8>) {
        self.key.write(out);
    }

    /// Appends the last key of a range, in sets that have ranges. Returns whether it did.
    pub fn write_key_end(&self, out: &mut Vec<u8>) -> bool {
        let Key::Source(destination, first, len) = &self.key else {
            return false;
        };
        write_destination(destination, out);
        F::write_address(F::last_of_prefix(*first, *len), out);
        true
    }

    /// Reads an element as the kernel has it. `None` if it is none that we would write.
    pub fn read(
        set: SetName,
        key: &[u8],
        key_end: Option<&[u8]>,
        data: RawData<'_>,
        comment: Option<&str>,
    ) -> Option<Self> {
        let key = Key::read(set, key, key_end)?;
        let data = match (schema(set).data, data) {
            (DataType::None, RawData::None) => Data::None,
            (DataType::Verdict, RawData::Verdict(verdict)) => Data::Verdict(verdict),
            (DataType::Endpoint, RawData::Value(value)) if value.len() == F::ADDRESS_LEN + 4 => {
                let mut fields = FieldReader { rest: value };
                Data::Endpoint(EndpointAddress {
                    address: fields.address::<F>()?,
                    port: fields.port()?,
                })
            }
            _ => return None,
        };
        Some(Self {
            set,
            key,
            data,
            comment: comment.map(Comment::new),
        })
    }
}

/// Data of an element as the kernel has it.
#[derive(Debug, Clone, Copy)]
pub enum RawData<'a> {
    /// No data.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// A value, padded.
    Value(&'a [u8]),
}

/// The length of the prefix that starts at `first` and covers all from `key` to `key_end`; `None`
/// if there is no such.
fn prefix_len<F: Family>(first: F::Address, key: &[u8], key_end: &[u8]) -> Option<u8> {
    (0..=F::ADDRESS_LEN as u8 * 8).rev().find(|len| {
        let mut end = key[..key.len() - F::ADDRESS_LEN].to_vec();
        F::write_address(F::last_of_prefix(first, *len), &mut end);
        end == key_end
    })
}

/// Which of the verdict maps: all but one exist once for addresses and once for NodePorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `services`, which has no counterpart
    Service,
    /// `external`, `external-node-ports`
    External,
    /// `local`, `local-node-ports`
    Local,
    /// `unavailable`, `unavailable-node-ports`
    Unavailable,
}

impl Role {
    /// The map's name.
    pub fn set(self, node_port: bool) -> SetName {
        match (self, node_port) {
            (Self::Service, _) => SetName::Services,
            (Self::External, false) => SetName::External,
            (Self::External, true) => SetName::ExternalNodePorts,
            (Self::Local, false) => SetName::Local,
            (Self::Local, true) => SetName::LocalNodePorts,
            (Self::Unavailable, false) => SetName::Unavailable,
            (Self::Unavailable, true) => SetName::UnavailableNodePorts,
        }
    }
}

fn nft_destination<F: Family>(destination: &Destination<F>) -> String {
    let Destination {
        address,
        protocol,
        port,
    } = destination;
    let rest = format!("{} . {port}", protocol.nft_name());
    match address {
        Some(address) => format!("{address} . {rest}"),
        None => rest,
    }
}

fn write_destination<F: Family>(destination: &Destination<F>, out: &mut Vec<u8>) {
    let Destination {
        address,
        protocol,
        port,
    } = destination;
    if let Some(address) = address {
        F::write_address(*address, out);
    }
    out.extend_from_slice(&[protocol.number(), 0, 0, 0]);
    write_port(*port, out);
}

/// Appends a port in network byte order, padded to a register.
pub(crate) fn write_port(port: NonZeroU16, out: &mut Vec<u8>) {
    out.extend_from_slice(&port.get().to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

/// Reads padded fields one after the other.
struct FieldReader<'a> {
    rest: &'a [u8],
}

impl FieldReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*value)
    }

    fn address<F: Family>(&mut self) -> Option<F::Address> {
        let (value, rest) = self.rest.split_at_checked(F::ADDRESS_LEN)?;
        self.rest = rest;
        F::read_address(value)
    }

    fn port(&mut self) -> Option<NonZeroU16> {
        let [high, low, _, _] = self.take()?;
        NonZeroU16::new(u16::from_be_bytes([high, low]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn destination<F: Family>(&mut self, key: &[Field]) -> Option<Destination<F>> {
        let address = match key.first() {
            Some(Field::Daddr) => Some(self.address::<F>()?),
            _ => None,
        };
        let [protocol, _, _, _] = self.take()?;
        Some(Destination {
            address,
            protocol: Protocol::from_number(protocol)?,
            port: self.port()?,
        })
    }
}
