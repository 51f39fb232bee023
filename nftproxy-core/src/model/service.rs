//! Services and their ports.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;

use super::balancing::Balancing;
use super::name::{NameError, PortName, check_label};
use super::{Family, IpFamily};

/// `namespace/name` of a Service. Cheap to clone; ordered by its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// Joins namespace and name.
    ///
    /// # Errors
    ///
    /// If one of them is not a DNS label of up to 63 bytes, as the API server has it. Whether a
    /// Service's name has to start with a letter depends on the server's version, so it has not.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_label(namespace)?;
        check_label(name)?;
        Ok(Self(format!("{namespace}/{name}").into()))
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Namespace and name.
    pub fn parts(&self) -> (&str, &str) {
        self.0
            .split_once('/')
            .expect("every name is made with a slash")
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A port of a Service: `namespace/name:port`, or `namespace/name` where the port is unnamed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// `spec.ports[].name`, empty if unnamed.
    pub port: Box<str>,
}

impl ServicePortName {
    /// The Service's namespace.
    pub fn namespace(&self) -> &str {
        self.service.parts().0
    }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if self.port.is_empty() {
            return Ok(());
        }
        write!(f, ":{}", self.port)
    }
}

/// Where connections to Services are sent to, whichever the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAddress {
    /// The address; `None` stands for any that accepts NodePorts.
    pub ip: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, or the nodePort.
    pub port: NonZeroU16,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ip, protocol, port } = self;
        let protocol = protocol.nft_name();
        match ip {
            None => write!(f, "{protocol} nodePort {port}"),
            Some(IpAddr::V4(address)) => write!(f, "{protocol} {address}:{port}"),
            Some(IpAddr::V6(address)) => write!(f, "{protocol} [{address}]:{port}"),
        }
    }
}

/// A transport protocol that Services can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, protocol number 6.
    Tcp = 6,
    /// UDP, protocol number 17.
    Udp = 17,
    /// SCTP, protocol number 132.
    Sctp = 132,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The protocol with this IANA number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }

    /// The protocol of a Kubernetes `protocol` field (`TCP`, `UDP`, `SCTP`).
    pub fn from_kubernetes(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The word nft(8) uses.
    pub fn nft_name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// All usable endpoints of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// A Service's ClusterIPs, at most one per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterIps {
    /// The IPv4 ClusterIP.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 ClusterIP.
    pub v6: Option<Ipv6Addr>,
}

/// What a proxy's work can depend on of a v1 Service that is to be proxied.
///
/// Equality decides whether an update means any work, so nothing else belongs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ServiceName,
    /// `metadata.creationTimestamp` in seconds since 1970, 0 if absent. It decides between two
    /// Services that claim the same address and port.
    pub created: i64,
    /// `spec.clusterIPs`. A family without one gets nothing at all.
    pub cluster_ips: ClusterIps,
    /// `spec.externalIPs`, both families.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose mode is `VIP`, both families.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`, both families.
    pub source_ranges: Box<[IpNet]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, `Cluster` where Kubernetes ignores the field.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its timeout in seconds.
    pub session_affinity: Option<NonZeroU32>,
    /// How endpoints are chosen, where it is not at random and alike.
    pub balancing: Option<Box<Balancing>>,
    /// `spec.healthCheckNodePort`, `None` where Kubernetes ignores the field. It makes no rules: a
    /// listener tells whether this node has ready endpoints.
    pub health_check_node_port: Option<NonZeroU16>,
    /// `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// Labels and annotations that an embedder asked to keep, for its [`Filter`](super::Filter) to
    /// look at; `None` if there are none.
    pub kept: Option<Box<Kept>>,
}

/// Labels and annotations of a Service that are no business of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// `metadata.labels`, those asked for.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// `metadata.annotations`, those asked for.
    pub annotations: BTreeMap<Box<str>, Box<str>>,
}

impl Service {
    /// A Service as Kubernetes would have it by default, with neither addresses nor ports.
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            created: 0,
            cluster_ips: ClusterIps::default(),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: Box::default(),
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: None,
            balancing: None,
            health_check_node_port: None,
            ports: Box::default(),
            kept: None,
        }
    }

    /// A Service with these ports at a ClusterIP, and all else as Kubernetes would have it by
    /// default.
    ///
    /// ```
    /// # use nftproxy_core::model::{Protocol, Service, ServiceName, ServicePort};
    /// let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
    /// let service = Service::at(
    ///     ServiceName::new("shop", "api")?,
    ///     [10, 96, 0, 20].into(),
    ///     [port],
    /// );
    /// # assert_eq!(service.cluster_ips.v4, Some([10, 96, 0, 20].into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn at(name: ServiceName, cluster_ip: IpAddr, ports: impl Into<Box<[ServicePort]>>) -> Self {
        let (v4, v6) = match cluster_ip {
            IpAddr::V4(ip) => (Some(ip), None),
            IpAddr::V6(ip) => (None, Some(ip)),
        };
        Self {
            cluster_ips: ClusterIps { v4, v6 },
            ports: ports.into(),
            ..Self::new(name)
        }
    }

    /// A label that was asked to be kept.
    pub fn label(&self, key: &str) -> Option<&str> {
        Some(self.kept.as_ref()?.labels.get(key)?)
    }

    /// An annotation that was asked to be kept.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.kept.as_ref()?.annotations.get(key)?)
    }

    /// The ClusterIP of a family.
    pub fn cluster_ip<F: Family>(&self) -> Option<F::Address> {
        let ip = match F::FAMILY {
            IpFamily::V4 => self.cluster_ips.v4.map(IpAddr::V4),
            IpFamily::V6 => self.cluster_ips.v6.map(IpAddr::V6),
        };
        ip.and_then(F::address)
    }
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`
    pub name: PortName,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
    /// `nodePort`.
    pub node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// An unnamed port without a nodePort.
    pub fn new(protocol: Protocol, port: NonZeroU16) -> Self {
        Self {
            name: PortName::default(),
            protocol,
            port,
            node_port: None,
        }
    }
}
