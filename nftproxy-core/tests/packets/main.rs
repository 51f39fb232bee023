//! What becomes of packets: the table of the behaviour contract, section 4C, row by row, and what
//! goes with it of masquerading (section 5). Each case holds in both families.
//!
//! A case says who sends what where, and *all* that may become of it. How the ruleset does it is
//! of no concern here.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod chains;
#[path = "../common/mod.rs"]
mod common;
mod destinations;
mod sources;

use std::collections::BTreeSet;

use common::{
    NODE_IP, OTHER_NODE_IP, SECOND_NODE_IP, Twin, apply_slices, both, both_ranges, is_local,
    mk_node, mk_service, only, port, protocol_of,
};
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::model::{
    DetectLocal, EndpointAddress, InterfaceName, Node, Service, State, TrafficPolicy, V4, V6,
};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::trace::{Outcome, Packet, possible, trace};

/// The endpoint on this node, the sender of what "pod" sends.
const HERE: &str = "10.244.1.5";
/// An endpoint on another node.
const THERE: &str = "10.244.2.5";

/// The file and line it stands in, the rules it shows, who sends, what is sent where, what may become of it.
///
/// Who: `pod`, `host`, `far`, or an address with an interface, or without one for this host.
/// What: `tcp CLUSTER-IP:80` and the like; names of addresses are those of [`address`].
/// Outcomes: `drop`, `reset`, `unreachable`, `pass`, `pass masq` or endpoints, `keep` or `masq`:
/// `here there masq`.
type Case = (
    (&'static str, u32),
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

macro_rules! cases {
    ($($rule:literal: $from:literal -> $to:literal => $outcome:literal,)*) => {
        &[$(((file!(), line!()), $rule, $from, $to, $outcome),)*]
    };
}
use cases;

/// Traces the cases in both families.
fn check(state: &State, node: &Node, cases: &[Case]) {
    let Compiled { v4, v6, .. } = compile(state, node);
    let mut failures = check_family::<V4>(&v4, cases);
    failures.extend(check_family::<V6>(&v6, cases));
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn check_family<F: Twin>(ruleset: &FamilyRuleset<F>, cases: &[Case]) -> Vec<String> {
    let mut failures = Vec::new();
    for ((file, line), rule, from, to, expected) in cases {
        let packet = packet::<F>(from, to);
        let actual = trace(ruleset, &packet, &is_local::<F>).unwrap();
        let wanted = outcomes::<F>(expected);
        if possible(&actual) != wanted {
            let actual: Vec<_> = actual
                .iter()
                .map(|(outcome, steps)| {
                    let steps: Vec<_> = steps
                        .iter()
                        .map(|step| format!("\n        {step}"))
                        .collect();
                    format!("\n    {outcome}{}", steps.concat())
                })
                .collect();
            failures.push(format!(
                "{file}:{line} {rule} {}: {from} -> {to}: expected {expected}, got{}",
                F::FAMILY,
                actual.concat()
            ));
        }
    }
    failures
}

fn packet<F: Twin>(from: &str, to: &str) -> Packet<F> {
    let (source, interface) = match from {
        "pod" => (HERE, Some("veth1")),
        "host" => (NODE_IP, None),
        "far" => ("192.0.2.1", Some("eth0")),
        other => match other.split_once(' ') {
            Some((source, interface)) => (source, Some(interface)),
            None => (other, None),
        },
    };
    let (protocol, destination) = to.split_once(' ').unwrap();
    let (address, number) = destination.split_once(':').unwrap_or((destination, "0"));
    Packet {
        source: F::parse(source),
        destination: F::parse(address_of(address)),
        protocol: match protocol {
            "icmp" => 1,
            transport => protocol_of(transport).number(),
        },
        destination_port: number.parse().unwrap(),
        input_interface: interface.map(Into::into),
        mark: 0,
    }
}

/// The addresses that cases use by name.
fn address_of(name: &str) -> &str {
    match name {
        "CLUSTER-IP" => "10.96.0.10",
        "EXTERNAL-IP" => "198.51.100.1",
        "LB-IP" => "203.0.113.1",
        "NODE" => NODE_IP,
        "NODE-2" => SECOND_NODE_IP,
        "OTHER-NODE" => OTHER_NODE_IP,
        "LOOPBACK" => "127.0.0.1",
        literal => literal,
    }
}

fn outcomes<F: Twin>(text: &str) -> BTreeSet<Outcome<F>> {
    match text {
        "drop" => return [Outcome::Drop].into(),
        "reset" => return [Outcome::Refuse { reset: true }].into(),
        "unreachable" => return [Outcome::Refuse { reset: false }].into(),
        "pass" => return [Outcome::Pass { masquerade: false }].into(),
        "pass masq" => return [Outcome::Pass { masquerade: true }].into(),
        _ => {}
    }
    // Each `keep` or `masq` is about the endpoints before it.
    let mut outcomes = BTreeSet::new();
    let mut endpoints = Vec::new();
    for word in text.split(' ') {
        let masquerade = match word {
            "keep" => false,
            "masq" => true,
            name => {
                let address = match name {
                    "here" => HERE,
                    "there" => THERE,
                    literal => literal,
                };
                endpoints.push(EndpointAddress {
                    address: F::parse(address),
                    port: port(8080),
                });
                continue;
            }
        };
        outcomes.extend(endpoints.drain(..).map(|endpoint| Outcome::Endpoint {
            endpoint,
            masquerade,
        }));
    }
    assert!(
        endpoints.is_empty(),
        "{text:?} ends in neither keep nor masq"
    );
    outcomes
}

/// A Service with every kind of address, port 80 and nodePort 30080, and these endpoints.
fn every_address(internal: TrafficPolicy, external: TrafficPolicy, endpoints: &[&str]) -> State {
    let mut state = State::default();
    state.apply_service_cidr("kubernetes", both_ranges("10.96.0.0/16"));
    state.apply_service(Service {
        external_ips: both(address_of("EXTERNAL-IP")).into(),
        load_balancer_ips: both(address_of("LB-IP")).into(),
        internal_traffic_policy: internal,
        external_traffic_policy: external,
        ..mk_service("web", address_of("CLUSTER-IP"), &["http 80/tcp 30080"])
    });
    apply_slices(&mut state, "web", "web", &["http 8080/tcp"], endpoints);
    state
}

use TrafficPolicy::{Cluster, Local};

/// S-54, S-60, S-64, S-88
#[test]
fn policy_cluster_uses_all_endpoints() {
    let state = every_address(Cluster, Cluster, &[HERE, THERE]);
    let cases = cases! {
        "S-60 S-90": "pod" -> "tcp CLUSTER-IP:80" => "here masq there keep",
        "S-60": "10.244.1.9 veth9" -> "tcp CLUSTER-IP:80" => "here there keep",
        "S-60": "host" -> "tcp CLUSTER-IP:80" => "here there masq",
        "S-60": "far" -> "tcp CLUSTER-IP:80" => "here there masq",
        "S-54": "192.0.2.1 veth7" -> "tcp CLUSTER-IP:80" => "here there masq",
        "S-64": "pod" -> "tcp EXTERNAL-IP:80" => "here there masq",
        "S-64": "host" -> "tcp EXTERNAL-IP:80" => "here there masq",
        "S-64": "far" -> "tcp EXTERNAL-IP:80" => "here there masq",
        "S-64": "pod" -> "tcp LB-IP:80" => "here there masq",
        "S-64": "host" -> "tcp LB-IP:80" => "here there masq",
        "S-64": "far" -> "tcp LB-IP:80" => "here there masq",
        "S-64": "pod" -> "tcp NODE:30080" => "here there masq",
        "S-64": "host" -> "tcp NODE:30080" => "here there masq",
        "S-64": "far" -> "tcp NODE:30080" => "here there masq",
        "S-64": "far" -> "tcp NODE-2:30080" => "here there masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-53, S-61, S-65, S-75, S-88, S-167
#[test]
fn policy_local_with_an_endpoint_here() {
    let state = every_address(Local, Local, &[HERE, THERE]);
    let cases = cases! {
        "S-61 S-90": "pod" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-61": "10.244.1.9 veth9" -> "tcp CLUSTER-IP:80" => "here keep",
        "S-61": "host" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-61": "far" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-65 S-90": "pod" -> "tcp EXTERNAL-IP:80" => "here masq there keep",
        "S-65": "10.244.1.9 veth9" -> "tcp EXTERNAL-IP:80" => "here there keep",
        "S-65": "host" -> "tcp EXTERNAL-IP:80" => "here there masq",
        "S-65": "far" -> "tcp EXTERNAL-IP:80" => "here keep",
        "S-65": "10.244.1.9 veth9" -> "tcp LB-IP:80" => "here there keep",
        "S-65": "host" -> "tcp LB-IP:80" => "here there masq",
        "S-65": "far" -> "tcp LB-IP:80" => "here keep",
        "S-65": "10.244.1.9 veth9" -> "tcp NODE:30080" => "here there keep",
        "S-65": "host" -> "tcp NODE:30080" => "here there masq",
        "S-65": "far" -> "tcp NODE:30080" => "here keep",
        "S-53": "10.244.2.9 eth0" -> "tcp NODE:30080" => "here there keep",
        "S-75": "192.168.0.11 eth0" -> "tcp NODE:30080" => "here keep",
    };
    check(&state, &mk_node(), cases);
}

/// S-42, S-44, S-66
#[test]
fn policy_local_falls_back_to_what_terminates_here() {
    let state = every_address(Local, Local, &["10.244.1.5 terminating", THERE]);
    let cases = cases! {
        "S-42 S-61": "far" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-66": "10.244.1.9 veth9" -> "tcp LB-IP:80" => "there keep",
        "S-66": "host" -> "tcp LB-IP:80" => "there masq",
        "S-66": "far" -> "tcp LB-IP:80" => "here keep",
        "S-66": "10.244.1.9 veth9" -> "tcp NODE:30080" => "there keep",
        "S-66": "host" -> "tcp NODE:30080" => "there masq",
        "S-66": "far" -> "tcp NODE:30080" => "here keep",
    };
    check(&state, &mk_node(), cases);
}

/// S-62, S-67, S-165: a drop, not a refusal.
#[test]
fn policy_local_without_an_endpoint_here() {
    let state = every_address(Local, Local, &[THERE]);
    let cases = cases! {
        "S-62": "pod" -> "tcp CLUSTER-IP:80" => "drop",
        "S-62": "host" -> "tcp CLUSTER-IP:80" => "drop",
        "S-62": "far" -> "tcp CLUSTER-IP:80" => "drop",
        "S-67": "pod" -> "tcp EXTERNAL-IP:80" => "there keep",
        "S-67": "host" -> "tcp EXTERNAL-IP:80" => "there masq",
        "S-67": "far" -> "tcp EXTERNAL-IP:80" => "drop",
        "S-67": "pod" -> "tcp LB-IP:80" => "there keep",
        "S-67": "host" -> "tcp LB-IP:80" => "there masq",
        "S-67": "far" -> "tcp LB-IP:80" => "drop",
        "S-67": "pod" -> "tcp NODE:30080" => "there keep",
        "S-67": "host" -> "tcp NODE:30080" => "there masq",
        "S-67": "far" -> "tcp NODE:30080" => "drop",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn the_policies_do_not_touch_one_another() {
    // S-43
    let internal = every_address(Local, Cluster, &[THERE]);
    let cases = cases! {
        "S-62": "far" -> "tcp CLUSTER-IP:80" => "drop",
        "S-64": "far" -> "tcp LB-IP:80" => "there masq",
        "S-64": "far" -> "tcp NODE:30080" => "there masq",
    };
    check(&internal, &mk_node(), cases);
    let external = every_address(Cluster, Local, &[THERE]);
    let cases = cases! {
        "S-60": "far" -> "tcp CLUSTER-IP:80" => "there masq",
        "S-67": "far" -> "tcp LB-IP:80" => "drop",
        "S-67": "far" -> "tcp NODE:30080" => "drop",
    };
    check(&external, &mk_node(), cases);
}

/// S-63, S-68
#[test]
fn without_endpoints_all_are_refused() {
    let cases = cases! {
        "S-63": "pod" -> "tcp CLUSTER-IP:80" => "reset",
        "S-63": "host" -> "tcp CLUSTER-IP:80" => "reset",
        "S-63": "far" -> "tcp CLUSTER-IP:80" => "reset",
        "S-68": "pod" -> "tcp EXTERNAL-IP:80" => "reset",
        "S-68": "host" -> "tcp LB-IP:80" => "reset",
        "S-68": "far" -> "tcp LB-IP:80" => "reset",
        "S-68": "pod" -> "tcp NODE:30080" => "reset",
        "S-68": "host" -> "tcp NODE:30080" => "reset",
        "S-68": "far" -> "tcp NODE:30080" => "reset",
    };
    for policy in [Cluster, Local] {
        for unusable in [
            &[][..],
            &["10.244.1.5 unready", "10.244.2.5 unready-but-serving"],
        ] {
            check(&every_address(policy, policy, unusable), &mk_node(), cases);
        }
    }
}

/// S-79: a reset for TCP, so that S-80 does not arise there, and port unreachable for all else.
#[test]
fn refusals_suit_the_protocol() {
    let mut state = State::default();
    let ports = ["tcp 53/tcp", "udp 53/udp", "sctp 53/sctp"];
    state.apply_service(mk_service("dns", "10.96.0.10", &ports));
    let cases = cases! {
        "S-79": "far" -> "tcp CLUSTER-IP:53" => "reset",
        "S-79": "far" -> "udp CLUSTER-IP:53" => "unreachable",
        "S-79": "far" -> "sctp CLUSTER-IP:53" => "unreachable",
    };
    check(&state, &mk_node(), cases);
}

/// S-70 to S-73, S-94, S-112, S-113, S-116
#[test]
fn addresses_and_ports_that_nobody_serves() {
    let state = every_address(Cluster, Cluster, &[THERE]);
    let cases = cases! {
        "S-70": "pod" -> "tcp CLUSTER-IP:81" => "reset",
        "S-70": "host" -> "udp CLUSTER-IP:80" => "unreachable",
        "S-112": "far" -> "icmp CLUSTER-IP" => "unreachable",
        "S-70": "far" -> "tcp CLUSTER-IP:30080" => "reset",
        "S-71": "pod" -> "tcp 10.96.0.99:80" => "drop",
        "S-71": "host" -> "udp 10.96.0.99:80" => "drop",
        "S-113": "far" -> "icmp 10.96.255.255" => "drop",
        "S-72": "far" -> "tcp EXTERNAL-IP:81" => "pass",
        "S-72": "far" -> "udp LB-IP:80" => "pass",
        "S-72": "pod" -> "icmp LB-IP" => "pass",
        "S-73": "far" -> "tcp 203.0.113.9:80" => "pass",
        "S-94": "far" -> "tcp 10.244.2.5:8080" => "pass",
        "S-94 S-90": "pod" -> "tcp 10.244.1.5:8080" => "pass",
        "S-94": "pod" -> "tcp 192.0.2.1:80" => "pass",
        "S-94": "host" -> "tcp OTHER-NODE:22" => "pass",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn a_port_of_another_protocol_is_another_port() {
    let mut state = State::default();
    state.apply_service(mk_service(
        "dns",
        "10.96.0.10",
        &["t 53/tcp 30053", "u 53/udp"],
    ));
    apply_slices(&mut state, "dns-t", "dns", &["t 8080/tcp"], &[HERE]);
    apply_slices(&mut state, "dns-u", "dns", &["u 8080/udp"], &[THERE]);
    let cases = cases! {
        "S-10": "far" -> "tcp CLUSTER-IP:53" => "here masq",
        "S-10": "far" -> "udp CLUSTER-IP:53" => "there masq",
        "S-10": "far" -> "sctp CLUSTER-IP:53" => "unreachable",
        "S-10 S-55": "far" -> "tcp NODE:30053" => "here masq",
        "S-10 S-55": "far" -> "udp NODE:30053" => "pass",
    };
    check(&state, &mk_node(), cases);
}

/// S-55, S-56, S-75, S-164
#[test]
fn node_ports_on_all_addresses_but_loopback() {
    let state = every_address(Cluster, Cluster, &[THERE]);
    let cases = cases! {
        "S-55": "far" -> "tcp NODE:30080" => "there masq",
        "S-55": "host" -> "tcp NODE-2:30080" => "there masq",
        "S-56": "127.0.0.1" -> "tcp LOOPBACK:30080" => "pass",
        "S-56 S-75": "host" -> "tcp OTHER-NODE:30080" => "pass",
        "S-56 S-75": "pod" -> "tcp OTHER-NODE:30080" => "pass",
        "S-56": "far" -> "udp NODE:30080" => "pass",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn node_ports_on_chosen_addresses() {
    let (v4, v6) = only(&[NODE_IP, "127.0.0.1"]);
    let node = Node {
        node_port_addresses_v4: v4,
        node_port_addresses_v6: v6,
        ..mk_node()
    };
    let cases = cases! {
        "S-55": "far" -> "tcp NODE:30080" => "there masq",
        "S-56": "far" -> "tcp NODE-2:30080" => "pass",
        "S-56": "127.0.0.1" -> "tcp LOOPBACK:30080" => "pass",
    };
    check(&every_address(Cluster, Cluster, &[THERE]), &node, cases);
    let cases = cases! {
        "S-68": "far" -> "tcp NODE:30080" => "reset",
        "S-56": "far" -> "tcp NODE-2:30080" => "pass",
    };
    check(&every_address(Cluster, Cluster, &[]), &node, cases);

    let (node_port_addresses_v4, node_port_addresses_v6) = only(&[]);
    let nowhere = Node {
        node_port_addresses_v4,
        node_port_addresses_v6,
        ..mk_node()
    };
    let cases = cases! {
        "S-55": "far" -> "tcp NODE:30080" => "pass",
        "S-54": "far" -> "tcp LB-IP:80" => "there masq",
    };
    check(&every_address(Cluster, Cluster, &[THERE]), &nowhere, cases);
}

/// S-52, S-74, S-177
#[test]
fn without_a_detector_nobody_is_a_pod() {
    let node = Node {
        detect_local: DetectLocal::Cidrs(Vec::new()),
        ..mk_node()
    };
    let cases = cases! {
        "S-74 S-90": "pod" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-74": "host" -> "tcp CLUSTER-IP:80" => "here keep",
        "S-74": "far" -> "tcp CLUSTER-IP:80" => "here keep",
        "S-52": "10.244.1.9 veth9" -> "tcp LB-IP:80" => "here keep",
        "S-52": "host" -> "tcp LB-IP:80" => "here there masq",
    };
    check(&every_address(Local, Local, &[HERE, THERE]), &node, cases);
    let cases = cases! {
        "S-52": "pod" -> "tcp LB-IP:80" => "drop",
        "S-52": "host" -> "tcp LB-IP:80" => "there masq",
    };
    check(&every_address(Local, Local, &[THERE]), &node, cases);

    let masquerade_all = Node {
        masquerade_all: true,
        ..node
    };
    let cases = cases! {
        "S-74 S-87": "far" -> "tcp CLUSTER-IP:80" => "there masq",
    };
    check(
        &every_address(Cluster, Cluster, &[THERE]),
        &masquerade_all,
        cases,
    );
}

#[test]
fn interfaces_tell_pods_as_well() {
    let by_prefix = DetectLocal::InterfaceNamePrefix(InterfaceName::new("veth").unwrap());
    let by_bridge = DetectLocal::BridgeInterface(InterfaceName::new("veth1").unwrap());
    let state = every_address(Cluster, Local, &[THERE]);
    for detect_local in [by_prefix, by_bridge] {
        let node = Node {
            detect_local,
            ..mk_node()
        };
        let cases = cases! {
            "S-85": "192.0.2.1 veth1" -> "tcp CLUSTER-IP:80" => "there keep",
            "S-85": "10.244.1.9 eth0" -> "tcp CLUSTER-IP:80" => "there masq",
            "S-86": "host" -> "tcp CLUSTER-IP:80" => "there masq",
            "S-85 S-67": "192.0.2.1 veth1" -> "tcp LB-IP:80" => "there keep",
            "S-85 S-67": "10.244.1.9 eth0" -> "tcp LB-IP:80" => "drop",
            "S-67": "host" -> "tcp LB-IP:80" => "there masq",
        };
        check(&state, &node, cases);
    }
    let bridge = Node {
        detect_local: DetectLocal::BridgeInterface(InterfaceName::new("veth").unwrap()),
        ..mk_node()
    };
    let cases = cases! {
        "S-85": "10.244.1.9 veth1" -> "tcp CLUSTER-IP:80" => "there masq",
    };
    check(&state, &bridge, cases);
}

#[test]
fn the_detector_comes_before_the_host() {
    let node = Node {
        detect_local: DetectLocal::Cidrs(both_ranges("192.168.0.0/16").into()),
        ..mk_node()
    };
    let cases = cases! {
        "S-51": "host" -> "tcp LB-IP:80" => "there keep",
        "S-51": "host" -> "tcp CLUSTER-IP:80" => "there keep",
    };
    check(&every_address(Cluster, Local, &[THERE]), &node, cases);
}

/// O-40
#[test]
fn masquerade_all_touches_cluster_ips_only() {
    let node = Node {
        masquerade_all: true,
        ..mk_node()
    };
    let cases = cases! {
        "S-60 S-87": "pod" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-61 S-87": "10.244.1.9 veth9" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-89": "10.244.1.9 veth9" -> "tcp LB-IP:80" => "here there keep",
        "S-89": "far" -> "tcp NODE:30080" => "here keep",
    };
    check(&every_address(Local, Local, &[HERE, THERE]), &node, cases);
}

#[test]
fn endpoints_reach_themselves() {
    // The endpoint that terminates is in the local set, and the one without a node may be here.
    let endpoints = ["10.244.1.5 terminating", "10.244.1.6 no-node", THERE];
    let state = every_address(Cluster, Local, &endpoints);
    let cases = cases! {
        "S-90": "pod" -> "tcp CLUSTER-IP:80" => "10.244.1.6 there keep",
        "S-91": "10.244.1.6 veth6" -> "tcp CLUSTER-IP:80" => "10.244.1.6 masq there keep",
        "S-91": "10.244.1.6 veth6" -> "tcp LB-IP:80" => "10.244.1.6 masq there keep",
        "S-91": "10.244.1.6 veth6" -> "tcp NODE:30080" => "10.244.1.6 masq there keep",
    };
    check(&state, &mk_node(), cases);
    let no_detector = Node {
        detect_local: DetectLocal::Cidrs(Vec::new()),
        ..mk_node()
    };
    let cases = cases! {
        "S-90": "pod" -> "tcp LB-IP:80" => "here masq",
    };
    check(&state, &no_detector, cases);
}

#[test]
fn an_endpoint_may_be_the_node_itself() {
    let state = every_address(Cluster, Local, &["192.168.0.10"]);
    let cases = cases! {
        // What is delivered here meets no postrouting hook, so its source stays.
        "S-76": "far" -> "tcp CLUSTER-IP:80" => "192.168.0.10 keep",
        "S-76": "far" -> "tcp LB-IP:80" => "192.168.0.10 keep",
        "S-76": "far" -> "tcp NODE:30080" => "192.168.0.10 keep",
        "S-76": "pod" -> "tcp CLUSTER-IP:80" => "192.168.0.10 keep",
        "S-76": "host" -> "tcp CLUSTER-IP:80" => "192.168.0.10 masq",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn addresses_may_be_on_the_node() {
    // A ClusterIP that NodeLocal DNSCache has put on the node, and a load balancer's that is there.
    let mut state = every_address(Cluster, Cluster, &[]);
    state.apply_service(Service {
        load_balancer_ips: both(SECOND_NODE_IP).into(),
        ..mk_service("dns", NODE_IP, &["dns 53/udp"])
    });
    apply_slices(&mut state, "dns", "dns", &["dns 8080/udp"], &[THERE]);
    let cases = cases! {
        "S-54": "pod" -> "udp NODE:53" => "there keep",
        "S-54": "far" -> "udp NODE-2:53" => "there masq",
        "S-111": "pod" -> "tcp NODE:53" => "pass",
        "S-111": "pod" -> "icmp NODE" => "pass",
        "S-72": "far" -> "tcp NODE-2:22" => "pass",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn one_address_on_several_ports() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    state.apply_service(Service {
        load_balancer_ips: both("203.0.113.1").into(),
        external_traffic_policy: Local,
        ..mk_service("mail", "10.96.0.11", &["25/tcp"])
    });
    apply_slices(&mut state, "mail", "mail", &["8080/tcp"], &[THERE]);
    let cases = cases! {
        "S-16": "far" -> "tcp LB-IP:80" => "here masq",
        "S-16": "far" -> "tcp LB-IP:25" => "drop",
        "S-16": "10.244.1.9 veth9" -> "tcp LB-IP:25" => "there keep",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn of_two_claims_one_wins_whole() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    // It is younger, so it has none of what it shares but its own ClusterIP.
    state.apply_service(Service {
        created: 1,
        external_ips: both("198.51.100.1").into(),
        load_balancer_ips: both("10.96.0.10").into(),
        ..mk_service("late", "10.96.0.11", &["80/tcp 30080"])
    });
    // It is older, yet a ClusterIP belongs to the Service that has it as such.
    state.apply_service(Service {
        created: -1,
        external_ips: both("10.96.0.10").into(),
        ..mk_service("early", "10.96.0.12", &["80/tcp"])
    });
    apply_slices(&mut state, "late", "late", &["8080/tcp"], &[THERE]);
    apply_slices(&mut state, "early", "early", &["8080/tcp"], &[THERE]);
    let cases = cases! {
        "S-15": "far" -> "tcp EXTERNAL-IP:80" => "here masq",
        "S-15": "far" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-15": "far" -> "tcp NODE:30080" => "here masq",
        "S-15": "far" -> "tcp 10.96.0.11:80" => "there masq",
    };
    check(&state, &mk_node(), cases);
    // With the winner gone its heirs have it.
    state.delete_service(&common::service_name("web"));
    let cases = cases! {
        "S-15": "far" -> "tcp EXTERNAL-IP:80" => "there masq",
        "S-15": "far" -> "tcp CLUSTER-IP:80" => "there masq",
        "S-15": "far" -> "tcp NODE:30080" => "there masq",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn a_deleted_service_leaves_nothing() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    state.delete_service(&common::service_name("web"));
    let cases = cases! {
        "S-73": "far" -> "tcp EXTERNAL-IP:80" => "pass",
        "S-73": "far" -> "tcp LB-IP:80" => "pass",
        "S-73": "far" -> "tcp NODE:30080" => "pass",
        "S-113": "far" -> "tcp CLUSTER-IP:80" => "drop",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn cluster_ips_need_no_service_cidr() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    state.delete_service_cidr("kubernetes");
    let cases = cases! {
        "S-114": "far" -> "tcp CLUSTER-IP:80" => "here masq",
        "S-114 S-112": "far" -> "tcp CLUSTER-IP:81" => "reset",
        "S-114": "far" -> "tcp 10.96.0.99:80" => "pass",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn a_service_without_ports_has_no_active_address() {
    let mut state = State::default();
    state.apply_service_cidr("kubernetes", both_ranges("10.96.0.0/16"));
    state.apply_service(mk_service("portless", "10.96.0.10", &[]));
    let cases = cases! {
        "S-9 S-113": "far" -> "tcp CLUSTER-IP:80" => "drop",
    };
    check(&state, &mk_node(), cases);
}

#[test]
fn a_family_without_cluster_ip_gets_nothing() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    let mut service = state.service(&common::service_name("web")).unwrap().clone();
    service.cluster_ips.v6 = None;
    state.apply_service(service);
    let Compiled { v4, v6, .. } = compile(&state, &mk_node());
    let cases = cases! {
        "S-5": "far" -> "tcp LB-IP:80" => "here masq",
        "S-5": "far" -> "tcp NODE:30080" => "here masq",
    };
    assert_eq!(check_family::<V4>(&v4, cases), [""; 0]);
    let cases = cases! {
        "S-5": "far" -> "tcp EXTERNAL-IP:80" => "pass",
        "S-5": "far" -> "tcp LB-IP:80" => "pass",
        "S-5": "far" -> "tcp NODE:30080" => "pass",
    };
    assert_eq!(check_family::<V6>(&v6, cases), [""; 0]);
}

/// What is used of these endpoints for a ClusterIP, and by far clients under policy Local.
#[track_caller]
fn check_selection(endpoints: &[&str], cluster: &'static str, local: &'static str) {
    let caller = std::panic::Location::caller();
    let line = (caller.file(), caller.line());
    let node = mk_node();
    let cases = [(
        line,
        "S-41",
        "10.244.1.99 veth9",
        "tcp CLUSTER-IP:80",
        cluster,
    )];
    check(&every_address(Cluster, Local, endpoints), &node, &cases);
    let cases = [(line, "S-42", "far", "tcp LB-IP:80", local)];
    check(&every_address(Cluster, Local, endpoints), &node, &cases);
}

/// S-33, S-40 to S-49. S-48: nothing else than hints tells that they count, and they do for external
/// destinations as well.
#[test]
fn endpoints_are_selected() {
    check_selection(&["10.244.2.5 unready-but-serving"], "reset", "reset");
    check_selection(&["10.244.2.5 terminating"], "there keep", "drop");
    check_selection(
        &["10.244.1.5 terminating", THERE],
        "there keep",
        "here keep",
    );
    check_selection(
        &["10.244.1.5 terminating-but-ready", THERE],
        "here there keep",
        "here keep",
    );
    check_selection(
        &["10.244.1.5 terminating", "10.244.1.6"],
        "10.244.1.6 keep",
        "10.244.1.6 keep",
    );
    // Hints for the zone.
    check_selection(
        &[
            "10.244.1.5 zone-a",
            "10.244.2.5 zone-a",
            "10.244.1.6 zone-b",
        ],
        "here there keep",
        "here 10.244.1.6 keep",
    );
    check_selection(
        &["10.244.1.5 zone-a", THERE],
        "here there keep",
        "here keep",
    );
    check_selection(
        &["10.244.1.5 zone-b", "10.244.2.5 zone-b zone-a"],
        "there keep",
        "here keep",
    );
    check_selection(
        &["10.244.1.5 zone-b", "10.244.2.5 zone-c"],
        "here there keep",
        "here keep",
    );
    check_selection(
        &[
            "10.244.1.5 zone-a",
            "10.244.2.5 zone-b",
            "10.244.2.6 unready",
        ],
        "here keep",
        "here keep",
    );
    check_selection(
        &[
            "10.244.1.5 zone-a terminating",
            "10.244.2.5 zone-b terminating",
        ],
        "here there keep",
        "here keep",
    );
    // Hints for the node come first, and fall back to those for the zone.
    check_selection(
        &[
            "10.244.1.5 zone-a for-this-node",
            "10.244.2.5 zone-a for-another-node",
        ],
        "here keep",
        "here keep",
    );
    check_selection(
        &[
            "10.244.2.5 zone-a for-another-node",
            "10.244.2.6 zone-b for-another-node",
        ],
        "there keep",
        "drop",
    );
    check_selection(
        &["10.244.1.5 zone-b for-this-node", "10.244.2.5 zone-a"],
        "there keep",
        "here keep",
    );
}

/// S-46, S-47
#[test]
fn a_node_without_zone_uses_no_zone_hints() {
    for zone in [None, Some(String::new())] {
        let node = Node { zone, ..mk_node() };
        let endpoints = ["10.244.1.5 zone-a", "10.244.2.5 zone-b"];
        let cases = cases! {
            "S-46": "far" -> "tcp CLUSTER-IP:80" => "here there masq",
        };
        check(&every_address(Cluster, Cluster, &endpoints), &node, cases);
    }
}

/// S-25, S-29, S-30. S-169: which of several copies is the newest cannot be told, and is not asked.
#[test]
fn slices_are_merged() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    apply_slices(
        &mut state,
        "again",
        "web",
        &["http 8080/tcp"],
        &["10.244.1.5 terminating"],
    );
    apply_slices(&mut state, "more", "web", &["http 8080/tcp"], &[THERE]);
    apply_slices(
        &mut state,
        "other",
        "web",
        &["https 8080/tcp"],
        &["10.244.2.9"],
    );
    apply_slices(
        &mut state,
        "udp",
        "web",
        &["http 8080/udp"],
        &["10.244.2.9"],
    );
    let cases = cases! {
        "S-30": "far" -> "tcp CLUSTER-IP:80" => "here there masq",
    };
    check(&state, &mk_node(), cases);
    // A copy that does not terminate is better, even if it is not ready.
    apply_slices(
        &mut state,
        "web",
        "web",
        &["http 8080/tcp"],
        &["10.244.1.5 unready"],
    );
    let cases = cases! {
        "S-30": "far" -> "tcp CLUSTER-IP:80" => "there masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-92: foreign bits of a packet's mark do not ask for masquerading.
#[test]
fn other_bits_of_the_mark_mean_nothing() {
    let state = every_address(Cluster, Cluster, &[THERE]);
    let Compiled { v4, .. } = compile(&state, &mk_node());
    for mark in [0, 0x8000, !0x4000] {
        let packet = Packet {
            mark,
            ..packet::<V4>("pod", "tcp CLUSTER-IP:80")
        };
        let actual = trace(&v4, &packet, &is_local::<V4>).unwrap();
        assert_eq!(
            possible(&actual),
            outcomes::<V4>("there keep"),
            "mark {mark:#x}"
        );
    }
}
