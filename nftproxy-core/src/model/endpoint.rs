//! EndpointSlices and their endpoints.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::name::{NameError, PortName, check_label, check_subdomain};
use super::{Family, Protocol, ServiceName, V4, V6};

/// `namespace/name` of an EndpointSlice. Cheap to clone; ordered by its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName(Arc<str>);

impl SliceName {
    /// Joins namespace and name.
    ///
    /// # Errors
    ///
    /// If the namespace is not a DNS label, or the name not a DNS subdomain of up to 253 bytes.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_label(namespace)?;
        check_subdomain(name)?;
        Ok(Self(format!("{namespace}/{name}").into()))
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// What rules can depend on of a discovery.k8s.io/v1 EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`.
    pub name: SliceName,
    /// The Service named by the label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// `ports`, without those that have no name or no number.
    pub ports: Box<[SlicePort]>,
    /// `endpoints`, of the slice's `addressType`; [`super::State`] keeps them in order of address.
    pub endpoints: SliceEndpoints,
}

impl EndpointSlice {
    /// The only slice of a Service in a family, named after both.
    ///
    /// ```
    /// # use nftproxy_core::model::{Endpoint, EndpointSlice, Protocol, ServiceName, SlicePort, V4};
    /// let endpoints = [[10, 244, 1, 11], [10, 244, 2, 11]];
    /// let slice = EndpointSlice::of(
    ///     &ServiceName::new("shop", "api")?,
    ///     [SlicePort::new(Protocol::Tcp, 8080.try_into()?)],
    ///     endpoints.map(|at| Endpoint::<V4>::ready(at.into())).into_iter().collect(),
    /// );
    /// assert_eq!(slice.name.as_str(), "shop/api-ipv4");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of(
        service: &ServiceName,
        ports: impl Into<Box<[SlicePort]>>,
        endpoints: SliceEndpoints,
    ) -> Self {
        let family = match endpoints {
            SliceEndpoints::V4(_) => "ipv4",
            SliceEndpoints::V6(_) => "ipv6",
        };
        Self {
            // A DNS label with such a suffix is a DNS subdomain, at most too long for a label.
            name: SliceName(format!("{service}-{family}").into()),
            service: service.clone(),
            ports: ports.into(),
            endpoints,
        }
    }
}

/// The endpoints of a slice; a slice has one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SliceEndpoints {
    /// `addressType: IPv4`
    V4(Box<[Endpoint<V4>]>),
    /// `addressType: IPv6`
    V6(Box<[Endpoint<V6>]>),
}

impl FromIterator<Endpoint<V4>> for SliceEndpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint<V4>>>(endpoints: I) -> Self {
        Self::V4(endpoints.into_iter().collect())
    }
}

impl FromIterator<Endpoint<V6>> for SliceEndpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint<V6>>>(endpoints: I) -> Self {
        Self::V6(endpoints.into_iter().collect())
    }
}

impl SliceEndpoints {
    /// Sorts them by address; those with the same one keep their order.
    pub(super) fn sort(&mut self) {
        match self {
            Self::V4(endpoints) => endpoints.sort_by_key(|endpoint| endpoint.address),
            Self::V6(endpoints) => endpoints.sort_by_key(|endpoint| endpoint.address),
        }
    }
}

/// One entry of a slice's `ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// `name`, empty for the port of a Service with one unnamed port.
    pub name: PortName,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
}

impl SlicePort {
    /// A port for the unnamed port of a Service.
    pub fn new(protocol: Protocol, port: NonZeroU16) -> Self {
        Self {
            name: PortName::default(),
            protocol,
            port,
        }
    }
}

/// One entry of a slice's `endpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<F: Family> {
    /// `addresses[0]`.
    pub address: F::Address,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means true.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `nodeName`, as far as rules care.
    pub locality: Locality,
    /// `hints`, shared between endpoints that have the same; `None` without any.
    pub hints: Option<Arc<Hints>>,
}

impl<F: Family> Endpoint<F> {
    /// An endpoint that is ready, and of which nothing else is known.
    pub fn ready(address: F::Address) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            locality: Locality::Unknown,
            hints: None,
        }
    }
}

/// Where an endpoint is, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locality {
    /// `nodeName` is this node.
    Local,
    /// `nodeName` is another node.
    Remote,
    /// There is no `nodeName`: not local for any policy, yet it may be on this node.
    Unknown,
}

/// `hints` of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hints {
    /// Names in `forZones`.
    pub zones: Box<[Box<str>]>,
    /// Names in `forNodes`, as far as rules care.
    pub node: NodeHint,
}

/// `hints.forNodes`, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeHint {
    /// No node is hinted.
    None,
    /// This node is among the hinted ones.
    ThisNode,
    /// Only other nodes are hinted.
    OtherNodes,
}

/// Where a connection is sent: an endpoint's address and port number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointAddress<F: Family> {
    /// The endpoint's address.
    pub address: F::Address,
    /// The slice port's number.
    pub port: NonZeroU16,
}
