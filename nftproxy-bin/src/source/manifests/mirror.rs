//! v1 Endpoints to EndpointSlices, as the cluster's endpointslicemirroring controller does.
//!
//! Pure, and blind to Services: that only Services without a selector are mirrored is decided where
//! all files come together. Unlike the controller it does not stop at 1,000 addresses a subset,
//! which is a limit of what the API server stores. Entry point: [`mirror`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";

const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Some components elect their leader by writing to an Endpoints object that serves nobody.
const LEADER_ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
/// These speak of the Endpoints object itself, not of its slices.
const OWN_ANNOTATIONS: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// An address that the API server would have refused.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("address {0:?} is not an IP address")]
pub(super) struct NotAnAddress(String);

/// One slice for each family and distinct set of ports, in that order, named after the Endpoints.
///
/// A name holds the place of its port set among the sorted ones, so it is the same for the same
/// Endpoints whatever came before. The namespace is taken over as it is.
pub(super) fn mirror(endpoints: &Endpoints) -> Result<Vec<EndpointSlice>, NotAnAddress> {
    let mut groups: BTreeMap<(Family, Vec<Port>), Vec<Endpoint>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, is_ready) in ready.chain(not_ready) {
            let (family, endpoint) = endpoint(address, is_ready)?;
            groups
                .entry((family, ports.clone()))
                .or_default()
                .push(endpoint);
        }
    }
    if !is_mirrored(&endpoints.metadata) {
        return Ok(Vec::new());
    }

    let mut n_slices = BTreeMap::<Family, usize>::new();
    let slices = groups.into_iter().map(|((family, ports), members)| {
        let index = n_slices.entry(family).or_default();
        let name = endpoints.metadata.name.as_deref().unwrap_or_default();
        let slice = EndpointSlice {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{}-{index}", family.suffix())),
                ..slice_metadata(&endpoints.metadata)
            },
            address_type: family.address_type().to_owned(),
            endpoints: Some(members),
            ports: Some(ports.into_iter().map(Port::into_slice_port).collect()),
        };
        *index += 1;
        slice
    });
    Ok(slices.collect())
}

fn is_mirrored(meta: &ObjectMeta) -> bool {
    let label = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP_MIRROR));
    let elects = meta
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(LEADER_ELECTION));
    label.is_none_or(|value| value != "true") && !elects
}

fn slice_metadata(meta: &ObjectMeta) -> ObjectMeta {
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(
        SERVICE_NAME.to_owned(),
        meta.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    let mut annotations = meta.annotations.clone();
    if let Some(annotations) = &mut annotations {
        annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    }
    ObjectMeta {
        namespace: meta.namespace.clone(),
        labels: Some(labels),
        annotations,
        ..ObjectMeta::default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Result<(Family, Endpoint), NotAnAddress> {
    let ip: IpAddr = address
        .ip
        .parse()
        .map_err(|_| NotAnAddress(address.ip.clone()))?;
    // The controller takes ::ffff:192.0.2.1 for the IPv4 address it holds, too.
    let ip = ip.to_canonical();
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address
            .hostname
            .clone()
            .filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Ok((if ip.is_ipv4() { Family::V4 } else { Family::V6 }, endpoint))
}

/// A port of a subset, with an order that lets equal sets meet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: Option<String>,
    port: i32,
    app_protocol: Option<String>,
}

impl Port {
    fn into_slice_port(self) -> EndpointPort {
        EndpointPort {
            // A slice says "no name" with an empty one.
            name: Some(self.name),
            protocol: self.protocol,
            port: Some(self.port),
            app_protocol: self.app_protocol,
        }
    }
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let ports = subset.ports.iter().flatten().cloned();
    let mut ports: Vec<Port> = ports
        .map(|port| Port {
            name: port.name.unwrap_or_default(),
            protocol: port.protocol,
            port: port.port,
            app_protocol: port.app_protocol,
        })
        .collect();
    ports.sort();
    ports
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn endpoints(yaml: &str) -> Endpoints {
        serde_norway::from_str(yaml).unwrap()
    }

    fn addresses(slice: &EndpointSlice) -> Vec<(&str, bool)> {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints
            .map(|endpoint| {
                let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                (endpoint.addresses[0].as_str(), ready)
            })
            .collect()
    }

    fn names(slices: &[EndpointSlice]) -> Vec<&str> {
        slices
            .iter()
            .map(|slice| slice.metadata.name.as_deref().unwrap())
            .collect()
    }

    #[test]
    fn the_slice_carries_what_the_endpoints_said() {
        let slices = mirror(&endpoints(
            "
metadata:
  name: db
  namespace: data
  labels: {app: db, kubernetes.io/service-name: other}
  annotations: {note: keep, kubectl.kubernetes.io/last-applied-configuration: '{}'}
subsets:
- addresses: [{ip: 192.0.2.1, nodeName: n1, hostname: h1, targetRef: {kind: Pod, name: p}}]
  notReadyAddresses: [{ip: 192.0.2.2}]
  ports: [{name: pg, port: 5432, protocol: TCP, appProtocol: x}]
",
        ))
        .unwrap();
        assert_eq!(names(&slices), ["db-ipv4-0"]);
        let slice = &slices[0];
        assert_eq!(slice.metadata.namespace.as_deref(), Some("data"));
        assert_eq!(slice.address_type, "IPv4");
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["app"], "db");
        assert_eq!(labels[SERVICE_NAME], "db");
        assert_eq!(labels[MANAGED_BY], CONTROLLER);
        let annotations = slice.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(
            addresses(slice),
            [("192.0.2.1", true), ("192.0.2.2", false)]
        );
        let first = &slice.endpoints.as_ref().unwrap()[0];
        assert_eq!(first.node_name.as_deref(), Some("n1"));
        assert_eq!(first.hostname.as_deref(), Some("h1"));
        let pod = ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some("p".to_owned()),
            ..ObjectReference::default()
        };
        assert_eq!(first.target_ref, Some(pod));
        let port = EndpointPort {
            app_protocol: Some("x".to_owned()),
            name: Some("pg".to_owned()),
            port: Some(5432),
            protocol: Some("TCP".to_owned()),
        };
        assert_eq!(slice.ports, Some(vec![port]));
    }

    #[test]
    fn families_and_port_sets_are_kept_apart() {
        let slices = mirror(&endpoints(
            "
metadata: {name: db}
subsets:
- addresses: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]
  ports: [{name: b, port: 2}, {name: a, port: 1}]
- addresses: [{ip: '::ffff:192.0.2.9'}]
  ports: [{name: a, port: 1}, {name: b, port: 2}]
- addresses: [{ip: 192.0.2.3}]
  ports: [{name: a, port: 9}]
",
        ))
        .unwrap();
        assert_eq!(names(&slices), ["db-ipv4-0", "db-ipv4-1", "db-ipv6-0"]);
        assert_eq!(
            addresses(&slices[0]),
            [("192.0.2.1", true), ("192.0.2.9", true)]
        );
        assert_eq!(addresses(&slices[1]), [("192.0.2.3", true)]);
        assert_eq!(addresses(&slices[2]), [("2001:db8::1", true)]);
        assert_eq!(slices[2].address_type, "IPv6");
    }

    #[test]
    fn an_unnamed_port_gets_the_empty_name() {
        let slices = mirror(&endpoints(
            "{metadata: {name: db}, subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}]}",
        ))
        .unwrap();
        assert_eq!(
            slices[0].ports.as_ref().unwrap()[0].name.as_deref(),
            Some("")
        );
    }

    #[test]
    fn what_must_not_be_mirrored_is_not() {
        let subsets = "subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}]";
        let n_slices = |meta: &str| {
            let text = format!("{{metadata: {{name: db, {meta}}}, {subsets}}}");
            mirror(&endpoints(&text)).unwrap().len()
        };
        assert_eq!(
            n_slices("labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}"),
            0
        );
        assert_eq!(
            n_slices("labels: {endpointslice.kubernetes.io/skip-mirror: 'false'}"),
            1
        );
        assert_eq!(
            n_slices("annotations: {control-plane.alpha.kubernetes.io/leader: x}"),
            0
        );
        assert_eq!(n_slices("annotations: {}"), 1);
    }

    #[test]
    fn an_address_that_is_none_is_an_error() {
        let bad = endpoints("{metadata: {name: db}, subsets: [{addresses: [{ip: db.example}]}]}");
        assert_eq!(mirror(&bad), Err(NotAnAddress("db.example".to_owned())));
    }
}
