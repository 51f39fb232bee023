//! Services as a node sees them: destinations, endpoints used and not used, and why.

use std::net::{IpAddr, SocketAddr};

use super::Desired;
use crate::compile::{ClaimKind, Compilation, candidates, usable, weighted};
use crate::model::{
    Balancing, Detector, EndpointAddress, Family, IpFamily, Locality, Node, NodeHint, Service,
    ServiceAddress, ServicePort, ServicePortName, TrafficPolicy,
};
use crate::ruleset::element::Destination;

/// One Service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// `namespace/name:port`, or as much of it as a comment holds.
    pub service_port: String,
    /// The family.
    pub family: IpFamily,
    /// For how long clients keep their endpoint, seconds.
    pub affinity: Option<u32>,
    /// How endpoints are chosen, where it is not at random and alike: `maglev`, `random, weighted`.
    /// A kernel tells no more than `by client`.
    pub balancing: Option<String>,
    /// Where connections are sent to.
    pub destinations: Vec<DestinationRow>,
    /// Its endpoints. From a kernel there are only those in use.
    pub endpoints: Vec<EndpointRow>,
    /// What of it is left out.
    pub notes: Vec<String>,
}

/// A destination of a Service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRow {
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer`, `NodePort`, or `External` if only a kernel says
    /// so.
    pub kind: &'static str,
    /// Where.
    pub address: ServiceAddress,
    /// The traffic policy that counts there; `None` if a kernel does not tell.
    pub policy: Option<TrafficPolicy>,
    /// Whose source is replaced by that of the node: `all`, `none`, `not pods`, `node`.
    pub masquerade: &'static str,
    /// Who may reach it, as ranges; empty for everybody.
    pub sources: Vec<String>,
    /// What becomes of connections: `2 endpoints`, `refuse`, `drop`, `2 endpoints, 1 from outside`.
    pub outcome: String,
    /// How many new ones there were since this was last changed, where that is counted.
    pub connections: Option<u64>,
}

/// An endpoint of a Service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Where it is.
    pub address: SocketAddr,
    /// Where it is, seen from this node; `None` if only a kernel says that there is one.
    pub locality: Option<Locality>,
    /// What it is where all endpoints of the cluster may be used; none if that is nowhere.
    pub cluster: Option<Standing>,
    /// What it is where those of this node may be used only; none if that is nowhere.
    pub local: Option<Standing>,
    /// How many new connections were led to it since it was last made a choice, where that is
    /// counted. Those of remembered clients are not among them.
    pub connections: Option<u64>,
}

/// Whether connections go to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// They do.
    Used,
    /// They do not, for this reason.
    Unused(String),
}

impl EndpointRow {
    /// Whether any connection goes to it.
    pub fn is_used(&self) -> bool {
        [&self.cluster, &self.local].contains(&&Some(Standing::Used))
    }

    /// Why no connection goes to it.
    pub fn reason(&self) -> Option<&str> {
        match self.cluster.as_ref().or(self.local.as_ref()) {
            Some(Standing::Unused(reason)) if !self.is_used() => Some(reason),
            _ => None,
        }
    }

    /// Why those who may use endpoints of this node only do not get it; `None` if they do, or if
    /// there are none such.
    pub fn reason_locally(&self) -> Option<&str> {
        match &self.local {
            Some(Standing::Unused(reason)) => Some(reason),
            _ => None,
        }
    }
}

/// Which Services are shown; `None` stands for all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceFilter {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Of this name, or `namespace/name`, with or without `:port`.
    pub name: Option<String>,
    /// With this address, as a destination or an endpoint.
    pub address: Option<IpAddr>,
    /// With this port, of a destination.
    pub port: Option<u16>,
}

impl ServiceFilter {
    /// Whether a row is shown.
    pub fn shows(&self, row: &ServiceRow) -> bool {
        let Self {
            namespace,
            name,
            address,
            port,
        } = self;
        let (of_namespace, rest) = row
            .service_port
            .split_once('/')
            .unwrap_or(("", &row.service_port));
        let service = rest.split(':').next().unwrap_or_default();
        let is_named = |wanted: &str| {
            [service, rest, row.service_port.as_str()].contains(&wanted)
                || wanted == format!("{of_namespace}/{service}")
        };
        let has_address = |wanted: &IpAddr| {
            row.destinations
                .iter()
                .any(|at| at.address.ip == Some(*wanted))
                || row.endpoints.iter().any(|at| at.address.ip() == *wanted)
        };
        let has_port = |wanted: &u16| {
            row.destinations
                .iter()
                .any(|at| at.address.port.get() == *wanted)
        };
        namespace
            .as_ref()
            .is_none_or(|wanted| wanted == of_namespace)
            && name.as_ref().is_none_or(|wanted| is_named(wanted))
            && address.as_ref().is_none_or(has_address)
            && port.as_ref().is_none_or(has_port)
    }
}

/// The Services of one family as they are desired, in order of name.
pub fn services<F: Family>(desired: Desired<'_>) -> Vec<ServiceRow> {
    let compiled = desired.compile::<F>(None);
    let all = desired.state.services();
    all.flat_map(|service| {
        let ports = service.ports.iter();
        ports.filter_map(|port| row::<F>(desired, &compiled.compilation, service, port))
    })
    .collect()
}

fn row<F: Family>(
    desired: Desired<'_>,
    compilation: &Compilation<F>,
    service: &Service,
    port: &ServicePort,
) -> Option<ServiceRow> {
    service.cluster_ip::<F>()?;
    let name = ServicePortName {
        service: service.name.clone(),
        port: port.name.as_str().into(),
    };
    let slices = desired.state.slices(&service.name);
    let filter = desired.state.filter();
    let zone = desired.node.zone.as_deref();
    let usable = usable::<F>(service, port, slices, zone, filter);
    // Those that get new connections.
    let chosen = |usable: &[EndpointAddress<F>]| match &service.balancing {
        Some(balancing) => {
            let weighted = weighted(balancing, usable).into_iter();
            weighted.map(|(endpoint, _)| endpoint).collect()
        }
        None => usable.to_vec(),
    };
    let (in_cluster, in_local) = (chosen(&usable.cluster), chosen(&usable.local));
    let (n, n_local) = (in_cluster.len(), in_local.len());
    let (mut has_cluster, mut has_local) = (false, false);
    let mut destinations = Vec::new();
    for (destination, kind, policy, is_restricted) in
        crate::compile::destinations::<F>(service, port)
    {
        has_local |= policy == TrafficPolicy::Local;
        has_cluster |= policy == TrafficPolicy::Cluster || kind == ClaimKind::External;
        let owner = compilation.owner(desired.state, &destination);
        let outcome = match owner {
            Some(owner) if owner != name => format!("taken by {owner}"),
            _ => outcome(kind, policy, n, n_local),
        };
        destinations.push(DestinationRow {
            kind: kind_name(service, kind, &destination),
            address: destination.into(),
            policy: Some(policy),
            masquerade: masquerade::<F>(desired.node, kind, policy),
            sources: if is_restricted {
                let ranges = service.source_ranges.iter();
                let of_family = ranges.filter(|range| F::prefix(range).is_some());
                of_family.map(ToString::to_string).collect()
            } else {
                Vec::new()
            },
            outcome,
            connections: None,
        });
    }
    let candidates = candidates::<F>(service, port, slices, filter);
    let is_any_ready = candidates.iter().any(|candidate| candidate.endpoint.ready);
    let endpoints = candidates.iter().map(|candidate| {
        let endpoint = candidate.endpoint;
        let (ready, serving, terminating) =
            (endpoint.ready, endpoint.serving, endpoint.terminating);
        let unready = || match (serving, terminating) {
            (true, true) => "terminating, and others are ready",
            (false, true) => "terminating, and serves no longer",
            (_, false) => "not ready",
        };
        let cluster = if in_cluster.contains(&candidate.at) {
            Standing::Used
        } else if usable.cluster.contains(&candidate.at) {
            Standing::Unused("weight 0".into())
        } else if ready {
            let hints = endpoint.hints.as_deref();
            let zones = hints
                .map(|hints| hints.zones.join(", "))
                .unwrap_or_default();
            let for_nodes = hints.is_some_and(|hints| hints.node == NodeHint::OtherNodes);
            Standing::Unused(match (for_nodes, zones.is_empty()) {
                (_, false) => format!("hinted to zone {zones}"),
                (true, true) => "hinted to other nodes".into(),
                (false, true) => "hinted elsewhere".into(),
            })
        } else {
            Standing::Unused(unready().into())
        };
        let local = has_local.then(|| {
            if in_local.contains(&candidate.at) {
                return Standing::Used;
            }
            if usable.local.contains(&candidate.at) {
                return Standing::Unused("weight 0".into());
            }
            Standing::Unused(match endpoint.locality {
                Locality::Remote => "on another node".into(),
                Locality::Local if !is_any_ready || !ready => unready().to_owned(),
                _ => "its slice names no node".into(),
            })
        });
        EndpointRow {
            address: socket(candidate.at),
            locality: Some(endpoint.locality),
            cluster: has_cluster.then_some(cluster),
            local,
            connections: None,
        }
    });
    let about = compilation
        .notes()
        .filter(|note| note.service_port() == Some(&name));
    Some(ServiceRow {
        service_port: name.to_string(),
        family: F::FAMILY,
        affinity: service.session_affinity.map(|seconds| seconds.get()),
        balancing: service.balancing.as_deref().map(balancing_text),
        destinations,
        endpoints: endpoints.collect(),
        notes: about.map(ToString::to_string).collect(),
    })
}

fn balancing_text(balancing: &Balancing) -> String {
    let weighted = if balancing.weights.is_empty() {
        ""
    } else {
        ", weighted"
    };
    format!("{}{weighted}", balancing.method)
}

pub(super) fn socket<F: Family>(at: EndpointAddress<F>) -> SocketAddr {
    SocketAddr::new(at.address.into(), at.port.get())
}

fn kind_name<F: Family>(
    service: &Service,
    kind: ClaimKind,
    destination: &Destination<F>,
) -> &'static str {
    let Some(address) = destination.address else {
        return "NodePort";
    };
    let ip: IpAddr = address.into();
    match kind {
        ClaimKind::ClusterIp => "ClusterIP",
        ClaimKind::External if service.load_balancer_ips.contains(&ip) => "LoadBalancer",
        ClaimKind::External => "ExternalIP",
    }
}

pub(super) fn endpoints_text(n: usize) -> String {
    format!("{n} endpoint{}", if n == 1 { "" } else { "s" })
}

pub(super) fn outcome(kind: ClaimKind, policy: TrafficPolicy, n: usize, n_local: usize) -> String {
    match (kind, policy) {
        _ if n == 0 => "refuse".into(),
        (_, TrafficPolicy::Cluster) => endpoints_text(n),
        (ClaimKind::ClusterIp, TrafficPolicy::Local) if n_local == 0 => "drop".into(),
        (ClaimKind::ClusterIp, TrafficPolicy::Local) => endpoints_text(n_local),
        (ClaimKind::External, TrafficPolicy::Local) if n_local == 0 => {
            format!("{}, drop from outside", endpoints_text(n))
        }
        (ClaimKind::External, TrafficPolicy::Local) => {
            format!("{}, {n_local} from outside", endpoints_text(n))
        }
    }
}

fn masquerade<F: Family>(node: &Node, kind: ClaimKind, policy: TrafficPolicy) -> &'static str {
    match (kind, policy) {
        (ClaimKind::ClusterIp, _) if node.masquerade_all => "all",
        (ClaimKind::ClusterIp, _) if node.detector::<F>() == Detector::None => "none",
        (ClaimKind::ClusterIp, _) => "not pods",
        (ClaimKind::External, TrafficPolicy::Cluster) => "all",
        (ClaimKind::External, TrafficPolicy::Local) => "node",
    }
}
