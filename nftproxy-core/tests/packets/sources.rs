//! `loadBalancerSourceRanges`, section 7 of the contract: who may reach a load-balancer address.

use ipnet::IpNet;
use nftproxy_core::compile::compile;
use nftproxy_core::model::TrafficPolicy::{Cluster, Local};
use nftproxy_core::model::{Node, Service, State, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::element::Element;
use nftproxy_core::ruleset::name::{ChainName, SetName};

use crate::common::{
    NODE_IP, Twin, apply_slices, both, both_ranges, mk_node, mk_service, service_name,
};
use crate::{HERE, THERE, cases, check, check_family, every_address};

/// Gives the Service of [`every_address`] source ranges.
fn restrict(state: &mut State, ranges: &[&str]) {
    let service = state.service(&service_name("web")).unwrap().clone();
    state.apply_service(Service {
        source_ranges: ranges.iter().flat_map(|range| both_ranges(range)).collect(),
        ..service
    });
}

/// S-69, S-103, S-104, S-163: only load-balancer addresses are filtered.
#[test]
fn source_ranges_guard_load_balancer_addresses() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    let mut service = state.service(&service_name("web")).unwrap().clone();
    service.source_ranges = both_ranges("192.0.2.0/25").into();
    state.apply_service(service);
    let cases = cases! {
        "S-103": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "here masq",
        "S-69": "192.0.2.200 eth0" -> "tcp LB-IP:80" => "drop",
        "S-69": "pod" -> "tcp LB-IP:80" => "drop",
        "S-69": "host" -> "tcp LB-IP:80" => "drop",
        "S-104": "192.0.2.200 eth0" -> "tcp EXTERNAL-IP:80" => "here masq",
        "S-104": "192.0.2.200 eth0" -> "tcp NODE:30080" => "here masq",
        "S-104": "192.0.2.200 eth0" -> "tcp CLUSTER-IP:80" => "here masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-103: the ranges come before a refusal for want of endpoints, and before policy Local.
#[test]
fn s103_source_ranges_come_first() {
    let ranges = ["192.0.2.0/25"];
    let mut idle = every_address(Cluster, Cluster, &[]);
    restrict(&mut idle, &ranges);
    let cases = cases! {
        "S-103": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "reset",
        "S-103": "192.0.2.200 eth0" -> "tcp LB-IP:80" => "drop",
    };
    check(&idle, &mk_node(), cases);

    let mut local = every_address(Local, Local, &[THERE]);
    restrict(&mut local, &ranges);
    let cases = cases! {
        "S-103": "pod" -> "tcp LB-IP:80" => "drop",
        "S-103": "host" -> "tcp LB-IP:80" => "drop",
        "S-103 S-67": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "drop",
        "S-104": "pod" -> "tcp EXTERNAL-IP:80" => "there keep",
    };
    check(&local, &mk_node(), cases);
}

/// S-17: an address that is external IP and load-balancer IP of one Service is one destination, and
/// has its source ranges; S-16: another Service's port there is another destination.
#[test]
fn s17_an_address_given_twice_is_filtered() {
    let mut state = every_address(Cluster, Cluster, &[HERE]);
    let service = state.service(&service_name("web")).unwrap().clone();
    state.apply_service(Service {
        external_ips: service.load_balancer_ips.clone(),
        ..service
    });
    restrict(&mut state, &["192.0.2.0/25"]);
    state.apply_service(Service {
        external_ips: both("203.0.113.1").into(),
        ..mk_service("mail", "10.96.0.11", &["25/tcp"])
    });
    apply_slices(&mut state, "mail", "mail", &["8080/tcp"], &[THERE]);
    let cases = cases! {
        "S-17": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "here masq",
        "S-17": "192.0.2.200 eth0" -> "tcp LB-IP:80" => "drop",
        "S-16": "192.0.2.200 eth0" -> "tcp LB-IP:25" => "there masq",
    };
    check(&state, &mk_node(), cases);
}

/// S-105: if the ranges hold this node's address, the load-balancer address itself passes as a
/// source, and nobody else.
#[test]
fn s105_the_node_may_have_the_address_itself() {
    let mut state = every_address(Cluster, Cluster, &[THERE]);
    restrict(&mut state, &["192.168.0.0/28"]);
    let node = Node {
        ips: both(NODE_IP).into(),
        ..mk_node()
    };
    let cases = cases! {
        "S-105": "203.0.113.1" -> "tcp LB-IP:80" => "there masq",
        "S-105": "203.0.113.2 eth0" -> "tcp LB-IP:80" => "drop",
        "S-105": "pod" -> "tcp LB-IP:80" => "drop",
    };
    check(&state, &node, cases);
    let cases = cases! {
        "S-105": "203.0.113.1" -> "tcp LB-IP:80" => "drop",
    };
    check(&state, &mk_node(), cases);
}

/// S-106: everything, at once or by halves, is no filter; S-107: ranges of one family say nothing
/// about the other.
#[test]
fn s106_s107_ranges_that_let_everybody_in() {
    let compiled = |ranges: &[&str]| {
        let mut state = every_address(Cluster, Cluster, &[THERE]);
        let service = state.service(&service_name("web")).unwrap().clone();
        let ranges = ranges.iter().map(|range| range.parse::<IpNet>().unwrap());
        state.apply_service(Service {
            source_ranges: ranges.collect(),
            ..service
        });
        compile(&state, &mk_node())
    };
    let open = cases! {
        "S-106 S-107": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "there masq",
        "S-106 S-107": "pod" -> "tcp LB-IP:80" => "there masq",
    };
    let closed = cases! {
        "S-103": "192.0.2.1 eth0" -> "tcp LB-IP:80" => "drop",
    };
    for all in [
        &["0.0.0.0/0", "10.0.0.0/8"][..],
        &["128.0.0.0/1", "0.0.0.0/1"],
    ] {
        assert_eq!(check_family::<V4>(&compiled(all).v4, open), [""; 0]);
    }
    for all in [&["::/0"][..], &["8000::/1", "::/1"]] {
        assert_eq!(check_family::<V6>(&compiled(all).v6, open), [""; 0]);
    }
    let v4_only = compiled(&["10.0.0.0/8"]);
    assert_eq!(check_family::<V4>(&v4_only.v4, closed), [""; 0]);
    assert_eq!(check_family::<V6>(&v4_only.v6, open), [""; 0]);
}

/// S-109: whatever the order and however they overlap, what the kernel gets is disjoint.
#[test]
fn s109_ranges_are_written_disjoint() {
    let ranges = [
        "192.0.2.0/24",
        "192.0.2.1/32",
        "10.0.0.0/9",
        "192.0.2.0/24",
        "10.128.0.0/9",
    ];
    let allowed = |ranges: &[&str]| {
        let mut state = every_address(Cluster, Cluster, &[THERE]);
        restrict(&mut state, ranges);
        allowed_sources(&compile(&state, &mk_node()).v4)
    };
    let expected =
        ["10.0.0.0/8", "192.0.2.0/24"].map(|range| format!("203.0.113.1 . tcp . 80 . {range}"));
    assert_eq!(allowed(&ranges), expected);
    let reversed: Vec<_> = ranges.into_iter().rev().collect();
    assert_eq!(allowed(&reversed), expected);
}

fn allowed_sources<F: Twin>(ruleset: &FamilyRuleset<F>) -> Vec<String> {
    let is_allowed = |element: &&Element<F>| element.set() == SetName::AllowedSources;
    ruleset
        .elements
        .iter()
        .filter(is_allowed)
        .map(Element::nft)
        .collect()
}

/// S-105: if the ranges hold this node's address, the load-balancer addresses themselves pass as
/// sources; S-106: a range of everything is no filter.
#[test]
fn s105_s106_source_ranges_with_the_node_or_everything() {
    let compiled = |ranges: &[&str], node_ip: &str| {
        let mut state = State::default();
        let mut service = mk_service("web", "10.96.0.10", &["http 80/tcp"]);
        service.load_balancer_ips = ["203.0.113.10".parse().unwrap()].into();
        service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        state.apply_service(service);
        let node = Node {
            ips: vec![node_ip.parse().unwrap()],
            ..mk_node()
        };
        compile(&state, &node).v4
    };
    let of = |range: &str| format!("203.0.113.10 . tcp . 80 . {range}");
    let ranges = ["192.168.0.0/24"];
    assert_eq!(
        allowed_sources(&compiled(&ranges, "192.168.0.10")),
        [of("192.168.0.0/24"), of("203.0.113.10/32")]
    );
    assert_eq!(
        allowed_sources(&compiled(&ranges, "10.0.0.1")),
        [of("192.168.0.0/24")]
    );
    let open = compiled(&["0.0.0.0/0", "192.168.0.0/24"], "10.0.0.1");
    assert!(
        !open
            .elements
            .iter()
            .any(|element| element.set() == SetName::Restricted)
    );
    assert!(
        !open
            .skeleton
            .chains
            .contains_key(&ChainName::PreroutingSourceRanges)
    );
}
