//! Services and slices as a cluster may have them, at random.
//!
//! Numbers up to [`STABLE`] are taken; see [`stable`](crate::stable). Entry points: [`service`] and
//! [`slice()`].

use fastrand::Rng;
use integration::lab::Dual;
use integration::manifest::{cluster_ip, external_ip, load_balancer_ip};
use serde_json::{Value, json};

/// Service numbers, and last parts of addresses, from here on may be used.
const STABLE: u8 = 10;
/// Service numbers end here.
const N_SERVICES: u8 = 200;
const NAMESPACES: [&str; 3] = ["default", "shop", "ops"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const PORT_NAMES: [&str; 3] = ["web", "dns", "other"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// One of these.
pub(crate) fn one_of<T: Clone>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())].clone()
}

/// True one time in so many.
pub(crate) fn one_in(rng: &mut Rng, n: usize) -> bool {
    rng.usize(..n) == 0
}

/// A namespace that objects are in.
pub(crate) fn namespace(rng: &mut Rng) -> &'static str {
    one_of(rng, &NAMESPACES)
}

/// A Service, new or another version of one that was there. Numbers stand for name and ClusterIP;
/// several Services may claim the same of everything else.
pub(crate) fn service(rng: &mut Rng) -> Value {
    let number = rng.u8(STABLE..N_SERVICES);
    let kind = one_of(
        rng,
        &[
            "ClusterIP",
            "ClusterIP",
            "NodePort",
            "LoadBalancer",
            "LoadBalancer",
        ],
    );
    let families: &[usize] = one_of(rng, &[&[0, 1][..], &[0, 1], &[1, 0], &[0], &[1]]);
    let addresses = |of: Dual| -> Vec<_> { families.iter().map(|i| of.both()[*i]).collect() };
    let cluster_ips = addresses(cluster_ip(number));
    let n_ports = rng.usize(1..=PORT_NAMES.len());
    let ports: Vec<_> = (0..n_ports).map(|i| port(rng, i, kind)).collect();
    let mut spec = json!({
        "type": kind,
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ipFamilies": families.iter().map(|i| FAMILIES[*i]).collect::<Vec<_>>(),
        "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
        "internalTrafficPolicy": one_of(rng, &["Cluster", "Cluster", "Local"]),
        "ports": ports,
    });
    if one_in(rng, 4) {
        spec["sessionAffinity"] = "ClientIP".into();
        let timeout = one_of(rng, &[1, 60, 10_800]);
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
    }
    if one_in(rng, 3) {
        spec["externalIPs"] = json!(addresses(external_ip(rng.u8(STABLE..60))));
    }
    if kind != "ClusterIP" {
        spec["externalTrafficPolicy"] = one_of(rng, &["Cluster", "Local"]).into();
    }
    if one_in(rng, 5) {
        spec["trafficDistribution"] = one_of(rng, &["PreferSameZone", "PreferSameNode"]).into();
    }
    let mut status = json!({"loadBalancer": {}});
    if kind == "LoadBalancer" {
        if spec["externalTrafficPolicy"] == "Local" {
            spec["healthCheckNodePort"] = (31_000 + u32::from(number)).into();
        }
        if one_in(rng, 3) {
            spec["loadBalancerSourceRanges"] = json!(source_ranges(rng));
        }
        if !one_in(rng, 4) {
            let mode = one_of(rng, &["VIP", "VIP", "Proxy"]);
            let ips = addresses(load_balancer_ip(rng.u8(STABLE..60)));
            let ingress = ips.iter().map(|ip| json!({"ip": ip, "ipMode": mode}));
            status["loadBalancer"]["ingress"] = ingress.collect();
        }
    }
    let mut metadata = json!({
        "name": format!("churn-{number}"),
        // One namespace for each number: of a ClusterIP there is one owner.
        "namespace": NAMESPACES[usize::from(number) % NAMESPACES.len()],
        "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", rng.u8(..60)),
    });
    match rng.u8(..30) {
        0 => {
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = json!(["None"]);
        }
        1 => spec = json!({"type": "ExternalName", "externalName": "example.org"}),
        2 => {
            metadata["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
        }
        _ => {}
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}

fn port(rng: &mut Rng, index: usize, kind: &str) -> Value {
    let mut port = json!({
        "name": PORT_NAMES[index],
        "protocol": one_of(rng, &PROTOCOLS),
        "port": 80 + index,
    });
    if kind != "ClusterIP" && !one_in(rng, 5) {
        port["nodePort"] = (30_000 + u32::from(rng.u8(STABLE..))).into();
    }
    port
}

fn source_ranges(rng: &mut Rng) -> Vec<&'static str> {
    let ranges = [
        "192.0.2.0/24",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "2001:db8::/32",
        "0.0.0.0/0",
        "::/0",
        " 198.51.100.7/32",
    ];
    let n = rng.usize(1..4);
    (0..n).map(|_| one_of(rng, &ranges)).collect()
}

/// A slice of one of these Services, or of one that is not there.
pub(crate) fn slice(rng: &mut Rng) -> Value {
    let number = rng.u8(STABLE..N_SERVICES);
    let family = rng.usize(..FAMILIES.len());
    let part = rng.u8(..2);
    let n_endpoints = one_of(rng, &[0, 1, 1, 2, 3, 5, 8, 40]);
    let endpoints: Vec<_> = (0..n_endpoints).map(|_| endpoint(rng, family)).collect();
    let mut ports: Vec<_> = PORT_NAMES
        .iter()
        .flat_map(|name| {
            PROTOCOLS.map(|protocol| json!({"name": name, "protocol": protocol, "port": 8080}))
        })
        .collect();
    for port in &mut ports {
        match rng.u8(..12) {
            0 => port["port"] = Value::Null,
            1 => port["port"] = 9090.into(),
            2 => port["name"] = "".into(),
            _ => {}
        }
    }
    // A slice can move to another Service, though no controller does that.
    let of = if one_in(rng, 20) {
        number / 2 + STABLE
    } else {
        number
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("churn-{number}-{}-{part}", FAMILIES[family].to_lowercase()),
            "namespace": NAMESPACES[usize::from(number) % NAMESPACES.len()],
            "labels": {"kubernetes.io/service-name": format!("churn-{of}")},
        },
        "addressType": FAMILIES[family],
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn endpoint(rng: &mut Rng, family: usize) -> Value {
    let (node, host) = (rng.u8(1..=2), rng.u8(20..));
    let address = match family {
        0 => format!("10.244.{node}.{host}"),
        _ => format!("fd00:10:244:{node}::{host:x}"),
    };
    let mut endpoint = json!({"addresses": [address]});
    if !one_in(rng, 8) {
        endpoint["nodeName"] = if node == 1 { "node" } else { "node2" }.into();
    }
    if !one_in(rng, 8) {
        let is_terminating = one_in(rng, 5);
        endpoint["conditions"] = json!({
            "ready": !is_terminating && !one_in(rng, 5),
            "serving": !one_in(rng, 5),
            "terminating": is_terminating,
        });
    }
    if one_in(rng, 3) {
        endpoint["zone"] = one_of(rng, &["a", "b"]).into();
        endpoint["hints"] = json!({"forZones": [{"name": one_of(rng, &["a", "b"])}]});
    }
    endpoint
}
