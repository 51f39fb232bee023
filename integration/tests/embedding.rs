//! The examples of the library, each in a namespace, with real packets.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers belong to tests, where a panic is a failure"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use integration::example::Example;
use integration::lab::{CLIENT, Lab, POD_GATEWAY, PODS};
use integration::netns::{Namespace, in_sandbox};
use integration::traffic::{Outcome, ProbeOptions, Protocol, Server, probe, probe_many};
use nftproxy_core::driver::Driver;
use nftproxy_core::engine::{Engine, Event, Families, Options};
use nftproxy_core::model::{
    self, DetectLocal, Endpoint, EndpointSlice, InterfaceName, Locality, Node, Service,
    ServiceName, ServicePort, SlicePort, TrafficPolicy, V4,
};

const READY: &str = "in the kernel";

/// The lab with a server on each of the node's pods, named after it.
fn lab_with_servers() -> (Lab, Vec<Server>) {
    let lab = Lab::new().unwrap();
    let servers = lab.pods.iter().zip(1..).map(|(pod, number)| {
        let any: SocketAddr = "[::]:8080".parse().unwrap();
        Server::start(pod, &format!("pod{number}"), Protocol::Tcp, any).unwrap()
    });
    let servers = servers.collect();
    (lab, servers)
}

/// Who answers at an address, over enough connections that nobody is left out.
fn who(from: &Namespace, to: &str) -> Vec<String> {
    let counts = probe_many(from, Protocol::Tcp, to.parse().unwrap(), 40);
    counts.into_keys().collect()
}

/// Who answers a connection, and which source it saw.
fn seen(from: &Namespace, to: &str) -> (String, IpAddr) {
    let to = to.parse().unwrap();
    match probe(from, Protocol::Tcp, to, ProbeOptions::default()) {
        Outcome::Answer {
            server,
            seen_source,
        } => (server, seen_source),
        other => panic!("{to}: {other}"),
    }
}

#[test]
fn a_cni_embeds_the_proxy() {
    in_sandbox(|| {
        let (lab, _servers) = lab_with_servers();
        let services = [
            "10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080",
            "10.96.0.2:80=10.244.1.13:8080",
        ];
        let cni = Example::start(&lab.node, "cni", &services).unwrap();
        cni.wait_for(READY).unwrap();
        for from in [&lab.client, &lab.pods[2], &lab.node] {
            assert_eq!(who(from, "10.96.0.1:80"), ["pod1", "pod2"]);
            assert_eq!(who(from, "10.96.0.2:80"), ["pod3"]);
        }
        drop(cni);
        assert_eq!(who(&lab.client, "10.96.0.2:80"), ["pod3"], "the rules stay");

        // It is shorter than what others copy.
        let source = include_str!("../../nftproxy-core/examples/cni.rs");
        assert!(source.lines().count() < 50);
    });
}

/// Two tables, one with a mark of its own and one without any, do the same for their Services and
/// leave those of the other alone.
#[test]
fn two_instances_live_side_by_side() {
    in_sandbox(|| {
        let (lab, _servers) = lab_with_servers();
        let services = [
            "10.96.0.1:80=10.244.1.11:8080",
            "10.96.0.2:80=10.244.1.12:8080",
        ];
        let example = Example::start(&lab.node, "two_instances", &services).unwrap();
        example.wait_for(READY).unwrap();
        let node: IpAddr = POD_GATEWAY.v4.into();
        let pod3: IpAddr = PODS[2].v4.into();
        for (host, server) in [(1, "pod1"), (2, "pod2")] {
            let (cluster, external) =
                (format!("10.96.0.{host}:80"), format!("203.0.113.{host}:80"));
            let answer = |source| (server.to_owned(), source);
            // Pods reach ClusterIPs as they are; all else is masqueraded.
            assert_eq!(seen(&lab.pods[2], &cluster), answer(pod3));
            assert_eq!(seen(&lab.pods[2], &external), answer(node));
            assert_eq!(seen(&lab.client, &cluster), answer(node));
            assert_eq!(seen(&lab.client, &external), answer(node));
            assert_eq!(seen(&lab.node, &cluster), answer(node));
            assert_eq!(seen(&lab.node, &external), answer(node));
            // An endpoint reaches itself.
            assert_eq!(seen(&lab.pods[host - 1], &cluster), answer(node));
        }
        let list = |table| {
            let command = ["nft", "list", "table", "ip", table];
            lab.node.exec(&command).unwrap()
        };
        let (one, two) = (list("proxy-one"), list("proxy-two"));
        assert!(
            one.contains("meta mark set meta mark | 0x00100000"),
            "{one}"
        );
        assert!(!two.contains("mark"), "{two}");
        for (own, other) in [((&one, "first"), "second"), ((&two, "second"), "first")] {
            let (listing, namespace) = own;
            assert!(
                listing.contains(&format!("\"{namespace}/web\"")),
                "{listing}"
            );
            assert!(!listing.contains(&format!("\"{other}/web\"")), "{listing}");
        }
        let tables = lab.node.exec(&["nft", "list", "tables"]).unwrap();
        assert!(!tables.contains(" nftproxy"), "{tables}");
    });
}

#[test]
fn a_loop_of_ones_own_drives_the_engine() {
    in_sandbox(|| {
        let (lab, _servers) = lab_with_servers();
        let mut example = Example::start(&lab.node, "own_loop", &[]).unwrap();
        example.wait_for("IPv6: 0 elements changed").unwrap();
        example
            .say("10.96.0.1:80 10.244.1.11:8080 10.244.1.12:8080")
            .unwrap();
        // The ClusterIP, the Service, two slots, and two that may reach themselves.
        example.wait_for("IPv4: 6 elements changed").unwrap();
        assert_eq!(who(&lab.client, "10.96.0.1:80"), ["pod1", "pod2"]);
        example.say("10.96.0.1:80 10.244.1.12:8080").unwrap();
        // Pod 2 takes slot 0; there is one fewer that may reach itself, and the verdict changes.
        example.wait_for("IPv4: 6 elements changed").unwrap();
        assert_eq!(who(&lab.client, "10.96.0.1:80"), ["pod2"]);
        example.say("10.96.0.1:80").unwrap();
        example.wait_for("IPv4: 4 elements changed").unwrap();
        let table = ["nft", "list", "table", "ip", "nftproxy"];
        assert!(!lab.node.exec(&table).unwrap().contains("10.96.0.1"));
        example.finish().unwrap();
    });
}

#[test]
fn a_policy_takes_endpoints_away_and_gives_them_back() {
    in_sandbox(|| {
        let (lab, _servers) = lab_with_servers();
        let service = ["10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080"];
        let mut example = Example::start(&lab.node, "filter", &service).unwrap();
        for (toggle, expected) in [
            (None, &["pod1", "pod2"][..]),
            (Some("10.244.1.11"), &["pod2"]),
            (Some("10.244.1.12"), &["refused"]),
            (Some("10.244.1.11"), &["pod1"]),
            (Some("10.244.1.12"), &["pod1", "pod2"]),
        ] {
            if let Some(address) = toggle {
                example.say(address).unwrap();
            }
            example.wait_for(READY).unwrap();
            assert_eq!(who(&lab.client, "10.96.0.1:80"), expected, "{toggle:?}");
        }
        example.finish().unwrap();
    });
}

/// What it prints is what would have to be done, and it is not done.
#[test]
fn a_dry_run_changes_nothing() {
    in_sandbox(|| {
        let node = Namespace::new("node").unwrap();
        let dry_run = |services: &[&str]| {
            let example = Example::start(&node, "dry_run", services).unwrap();
            example.finish().unwrap().join("\n")
        };
        let listing = || node.exec(&["nft", "list", "ruleset"]).unwrap();
        let two = ["10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080"];
        let script = dry_run(&two);
        assert!(script.starts_with("add table ip nftproxy"), "{script}");
        assert_eq!(listing(), "", "nothing was there, and nothing is");

        let cni = Example::start(&node, "cni", &two).unwrap();
        cni.wait_for(READY).unwrap();
        let before = listing();
        assert_eq!(dry_run(&two), "nothing would change");
        let script = dry_run(&["10.96.0.1:80=10.244.1.11:8080,10.244.1.13:8080"]);
        assert_eq!(listing(), before);
        // It would undo what others do.
        drop(cni);
        // The script is what it says: nft makes the same change of it.
        node.exec_with_input(&["nft", "-f", "-"], &script).unwrap();
        let after = listing();
        assert!(
            after.contains("10.244.1.13") && !after.contains("10.244.1.12"),
            "{after}"
        );
    });
}

/// Without a mark, and with pods told by their interface: what is masqueraded is what a mark would
/// have asked for, for each kind of destination and source.
#[test]
fn without_a_mark_the_same_is_masqueraded() {
    in_sandbox(|| {
        let (lab, _servers) = lab_with_servers();
        let options = Options {
            families: Families::V4,
            node: Node {
                detect_local: DetectLocal::InterfaceNamePrefix(InterfaceName::new("pod").unwrap()),
                masquerade_mark: None,
                ..Node::default()
            },
            ..Options::default()
        };
        let number = |number: u16| number.try_into().unwrap();
        let service = |name: &str, host: u8, policy| {
            let name = ServiceName::new("shop", name).unwrap();
            let port = ServicePort {
                node_port: Some(number(30000 + u16::from(host))),
                ..ServicePort::new(model::Protocol::Tcp, number(80))
            };
            let endpoint = Endpoint {
                locality: Locality::Local,
                ..Endpoint::<V4>::ready(PODS[0].v4)
            };
            let target = SlicePort::new(model::Protocol::Tcp, number(8080));
            let slice = EndpointSlice::of(&name, [target], [endpoint].into_iter().collect());
            let mut service = Service::at(name, [10, 96, 0, host].into(), [port]);
            service.load_balancer_ips = [IpAddr::from([203, 0, 113, host])].into();
            service.external_traffic_policy = policy;
            (service, slice)
        };
        let both = [
            service("cluster", 1, TrafficPolicy::Cluster),
            service("local", 2, TrafficPolicy::Local),
        ];
        let (services, slices) = both.into_iter().unzip();
        let engine = lab
            .node
            .run(|| Engine::open(options, Instant::now()))
            .unwrap();
        let driver = Driver::start(engine, |_| {}).unwrap();
        let handle = driver.handle();
        handle.send(Event::Replaced { services, slices }).unwrap();
        handle.wait_until_synced(Duration::from_secs(10)).unwrap();

        let node: IpAddr = POD_GATEWAY.v4.into();
        let (pod3, client) = (IpAddr::from(PODS[2].v4), IpAddr::from(CLIENT.v4));
        let sources = [&lab.pods[2], &lab.node, &lab.client];
        for (to, expected) in [
            ("10.96.0.1:80", [pod3, node, node]),
            ("203.0.113.1:80", [node, node, node]),
            ("192.0.2.10:30001", [node, node, node]),
            ("10.96.0.2:80", [pod3, node, node]),
            // Pods and the node reach policy Local as if it was Cluster, and keep or lose theirs.
            ("203.0.113.2:80", [pod3, node, client]),
            ("192.0.2.10:30002", [pod3, node, client]),
        ] {
            let seen = sources.map(|from| seen(from, to).1);
            assert_eq!(seen, expected, "{to}");
            // The endpoint reaches itself.
            assert_eq!(
                self::seen(&lab.pods[0], to).1,
                node,
                "{to} from its endpoint"
            );
        }
        driver.stop().unwrap();
    });
}
