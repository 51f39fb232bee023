//! Services and EndpointSlices as manifests, and the folder the proxy reads them from.
//!
//! A Service here is known by a number: all its addresses and its NodePort follow from it. Nothing
//! here knows the network beyond that; that is [`lab`](crate::lab). Entry points: [`service`],
//! [`slices`] and [`Folder`].

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::Dual;

/// The port of every Service made here, for each protocol.
pub const SERVICE_PORT: u16 = 80;
/// The port of every endpoint made here, for each protocol.
pub const ENDPOINT_PORT: u16 = 8080;
/// The ranges [`cluster_ip`] gives addresses of.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/24", "fd00:10:96::/112"];

/// The ClusterIPs of the Service with this number.
pub const fn cluster_ip(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16),
    }
}

/// The external IPs of the Service with this number.
pub const fn external_ip(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(198, 51, 100, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number as u16),
    }
}

/// The load-balancer IPs of the Service with this number.
pub const fn load_balancer_ip(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(203, 0, 113, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, number as u16),
    }
}

/// The NodePort of the Service with this number.
pub const fn node_port(number: u8) -> u16 {
    30000 + number as u16
}

/// A dual-stack Service with every kind of destination and protocol, and policies `Cluster`.
///
/// Change what has to be different in the value.
pub fn service(name: &str, number: u8) -> Value {
    let port = |protocol: &str| {
        json!({
            "name": protocol.to_lowercase(),
            "protocol": protocol,
            "port": SERVICE_PORT,
            "nodePort": node_port(number),
        })
    };
    let ingress = load_balancer_ip(number).both().map(|ip| json!({"ip": ip}));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": cluster_ip(number).v4,
            "clusterIPs": cluster_ip(number).both(),
            "externalIPs": external_ip(number).both(),
            "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster",
            "ports": [port("TCP"), port("UDP"), port("SCTP")],
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// One endpoint of a Service, in both families.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Its addresses.
    pub address: Dual,
    /// The node it is on, if its slice says so.
    pub node: Option<&'static str>,
    /// What it is good for.
    pub conditions: Conditions,
    /// The zone it is meant for, if there is a hint.
    pub for_zone: Option<&'static str>,
    /// The node it is meant for, if there is a hint.
    pub for_node: Option<&'static str>,
}

/// The conditions of an endpoint, as its slice has them.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Whether it is to get traffic.
    pub ready: bool,
    /// Whether it answers.
    pub serving: bool,
    /// Whether it only finishes what it has begun.
    pub terminating: bool,
}

impl Conditions {
    /// As most endpoints are most of the time.
    pub const READY: Self = Self::new(true, true, false);
    /// Not to get traffic, though it answers.
    pub const SERVING: Self = Self::new(false, true, false);
    /// Not up yet, or not well.
    pub const UNREADY: Self = Self::new(false, false, false);
    /// On its way out, and still answering.
    pub const TERMINATING: Self = Self::new(false, true, true);
    /// On its way out, and not answering any more.
    pub const ENDED: Self = Self::new(false, false, true);
    /// On its way out, of a Service with `publishNotReadyAddresses`.
    pub const TERMINATING_YET_READY: Self = Self::new(true, true, true);

    const fn new(ready: bool, serving: bool, terminating: bool) -> Self {
        Self {
            ready,
            serving,
            terminating,
        }
    }
}

/// The EndpointSlices of a Service, one for each family.
pub fn slices(service: &str, endpoints: &[Endpoint]) -> [Value; 2] {
    let port = |protocol: &str| {
        json!({
            "name": protocol.to_lowercase(),
            "protocol": protocol,
            "port": ENDPOINT_PORT,
        })
    };
    [("IPv4", 0), ("IPv6", 1)].map(|(family, index)| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let Conditions {
                    ready,
                    serving,
                    terminating,
                } = endpoint.conditions;
                let hint = |name: Option<&str>| name.map(|name| json!([{"name": name}]));
                json!({
                    "addresses": [endpoint.address.both()[index]],
                    "nodeName": endpoint.node,
                    "conditions": {
                        "ready": ready,
                        "serving": serving,
                        "terminating": terminating,
                    },
                    "hints": {
                        "forZones": hint(endpoint.for_zone),
                        "forNodes": hint(endpoint.for_node),
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family,
            "ports": [port("TCP"), port("UDP"), port("SCTP")],
            "endpoints": endpoints,
        })
    })
}

/// A ServiceCIDR object with [`SERVICE_CIDRS`].
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": SERVICE_CIDRS},
    })
}

/// A Node object, with a zone if there is one.
pub fn node(name: &str, address: Dual, zone: Option<&str>) -> Value {
    let addresses = address
        .both()
        .map(|ip| json!({"type": "InternalIP", "address": ip}));
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"addresses": addresses},
    });
    if let Some(zone) = zone {
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
    }
    node
}

/// A folder of manifests; dropping it removes it.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// An empty folder.
    ///
    /// # Errors
    ///
    /// Fails if there is no place for it.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for manifests")?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes the file of this name hold these objects, at a stroke: nobody reads half of it.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put(&self, name: &str, objects: &[Value]) -> Result<()> {
        // JSON is YAML, and a folder's hidden files are not read.
        let documents: Vec<_> = objects.iter().map(|object| format!("{object:#}")).collect();
        let unfinished = self.path().join(format!(".{name}"));
        fs::write(&unfinished, documents.join("\n---\n"))
            .and_then(|()| fs::rename(&unfinished, self.file(name)))
            .with_context(|| format!("write manifest {name}"))
    }

    /// Removes the file of this name.
    ///
    /// # Errors
    ///
    /// Fails if there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.file(name)).with_context(|| format!("remove manifest {name}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.yaml"))
    }
}
