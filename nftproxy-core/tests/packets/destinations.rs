//! Which addresses and ports are a Service's, and which are nobody's: sections 1, 2 and 4B of the
//! contract where they show in what becomes of packets.

use std::num::NonZeroU16;

use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::model::TrafficPolicy::{Cluster, Local};
use nftproxy_core::model::{DetectLocal, Node, Service, ServicePort, State};

use crate::common::{
    SECOND_NODE_IP, apply_slices, both, both_ranges, mk_node, mk_service, service_name,
};
use crate::{HERE, THERE, cases, check, every_address};

/// S-58: load-balancer addresses need no nodePort; S-166: with neither, nothing else is a
/// destination, whatever the policy.
#[test]
fn s58_s166_a_load_balancer_without_node_port() {
    let mut state = every_address(Cluster, Local, &[HERE]);
    let service = state.service(&service_name("web")).unwrap().clone();
    let port = ServicePort {
        node_port: None,
        ..service.ports[0].clone()
    };
    state.apply_service(Service {
        ports: [port].into(),
        ..service.clone()
    });
    let cases = cases! {
        "S-58": "far" -> "tcp LB-IP:80" => "here keep",
        "S-58": "far" -> "tcp NODE:30080" => "pass",
    };
    check(&state, &mk_node(), cases);

    // ipMode Proxy: there is no load-balancer address.
    state.apply_service(Service {
        load_balancer_ips: [].into(),
        ..service
    });
    let cases = cases! {
        "S-166 S-73": "far" -> "tcp LB-IP:80" => "pass",
        "S-166 S-65": "far" -> "tcp NODE:30080" => "here keep",
    };
    check(&state, &mk_node(), cases);
}

/// S-54: an address, protocol and port that a Service has is never taken for a NodePort, though the
/// address is the node's.
#[test]
fn s54_an_address_comes_before_a_node_port() {
    let own = Service {
        external_ips: both(SECOND_NODE_IP).into(),
        ..mk_service("own", "10.96.0.11", &["30080/tcp"])
    };
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    state.apply_service(own);
    apply_slices(&mut state, "own", "own", &["8080/tcp"], &[THERE]);
    let cases = cases! {
        "S-54": "far" -> "tcp NODE-2:30080" => "there masq",
        "S-54": "far" -> "tcp NODE:30080" => "here masq",
    };
    check(&state, &mk_node(), cases);
    // Without endpoints either.
    apply_slices(&mut state, "own", "own", &["8080/tcp"], &[]);
    let cases = cases! {
        "S-54 S-68": "far" -> "tcp NODE-2:30080" => "reset",
        "S-54": "far" -> "tcp NODE:30080" => "here masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-26: a slice port serves the Service port of equal name and protocol, and the unnamed one the
/// unnamed.
#[test]
fn s26_slice_ports_serve_by_name_and_protocol() {
    let mut state = State::default();
    state.apply_service(mk_service("web", "10.96.0.10", &["80/tcp", "x 81/tcp"]));
    apply_slices(&mut state, "unnamed", "web", &["8080/tcp"], &[HERE]);
    apply_slices(&mut state, "x", "web", &["x 8080/tcp"], &[THERE]);
    apply_slices(&mut state, "udp", "web", &["x 8080/udp"], &["10.244.2.9"]);
    let cases = cases! {
        "S-26": "far" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-26": "far" -> "tcp CLUSTER-IP:81" => "there masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-36: the order in which endpoints are told makes no difference.
#[test]
fn s36_the_order_of_endpoints_means_nothing() {
    let compiled =
        |endpoints: &[&str]| compile(&every_address(Cluster, Local, endpoints), &mk_node());
    let Compiled { v4, v6, .. } = compiled(&["10.244.1.10", "10.244.1.1", THERE]);
    let other = compiled(&[THERE, "10.244.1.1", "10.244.1.10"]);
    assert_eq!((v4, v6), (other.v4, other.v6));
}

/// S-176: all pod ranges of a family count.
#[test]
fn s176_several_pod_ranges() {
    let ranges = ["10.244.1.0/24", "10.245.0.0/16"];
    let node = Node {
        detect_local: DetectLocal::Cidrs(
            ranges.iter().flat_map(|range| both_ranges(range)).collect(),
        ),
        ..mk_node()
    };
    let state = every_address(Cluster, Local, &[THERE]);
    let cases = cases! {
        "S-176": "10.244.1.9 veth9" -> "tcp CLUSTER-IP:80" => "there keep",
        "S-176": "10.245.0.9 veth9" -> "tcp CLUSTER-IP:80" => "there keep",
        "S-176": "10.246.0.9 veth9" -> "tcp CLUSTER-IP:80" => "there masq",
        "S-176": "10.245.0.9 veth9" -> "tcp LB-IP:80" => "there keep",
        "S-176": "10.246.0.9 veth9" -> "tcp LB-IP:80" => "drop",
    };
    check(&state, &node, cases);
}

/// S-116: no hygiene for external IPs, load-balancer IPs and NodePorts: what of them no Service
/// port has is passed on, though a ServiceCIDR is known.
#[test]
fn s116_no_hygiene_for_external_destinations() {
    let mut state = every_address(Cluster, Cluster, &[]);
    let mut service = state.service(&service_name("web")).unwrap().clone();
    service.ports[0].port = NonZeroU16::new(8443).unwrap();
    state.apply_service(service);
    let cases = cases! {
        "S-116": "far" -> "tcp EXTERNAL-IP:80" => "pass",
        "S-116": "far" -> "icmp EXTERNAL-IP" => "pass",
        "S-116": "far" -> "tcp LB-IP:80" => "pass",
        "S-116": "far" -> "udp NODE:30080" => "pass",
        "S-116": "far" -> "tcp NODE:30081" => "pass",
    };
    check(&state, &mk_node(), cases);
}
