//! Endpoints that the client's address decides: who meets whom is known beforehand, and is the same
//! on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{CLIENT, Dual, NODE, NODE2};
use integration::manifest::{Endpoint, SERVICE_PORT, cluster_ip, node_port, service, slices};
use integration::netns::in_sandbox;
use integration::traffic::{ProbeOptions, Protocol, probe};
use nftproxy_core::compile::compile;
use nftproxy_core::k8s;
use nftproxy_core::model::{DetectLocal, Node, State, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::trace::{Outcome, Packet, possible, trace};
use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, POD3, REMOTE, SERVERS};
use crate::common::{Twin, is_local};
use crate::oracle;

const N_CLIENTS: u8 = 200;
const CASES: [(&str, u8, &str, &str); 4] = [
    ("by-source", 1, "source-hash", ""),
    (
        "by-source-weighted",
        2,
        "source-hash",
        "10.244.1.11=3, fd00:10:244:1::12=4, 10.244.1.13=0",
    ),
    ("maglev", 3, "maglev", ""),
    (
        "maglev-weighted",
        4,
        "maglev",
        "10.244.1.11=3, fd00:10:244:1::12=4",
    ),
];

/// Addresses of clients that the outside host has beside its own.
fn clients() -> impl Iterator<Item = Dual> {
    (1..=N_CLIENTS).map(|number| Dual {
        v4: Ipv4Addr::new(198, 18, 0, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, number.into()),
    })
}

fn service_of((name, number, method, weights): (&str, u8, &str, &str)) -> Value {
    let mut service = service(name, number);
    service["metadata"]["annotations"] =
        json!({"nftproxy.io/balancing": method, "nftproxy.io/weights": weights});
    // Each destination of each port has a table of its own, which takes its time to look through.
    let spec = &mut service["spec"];
    spec["ports"].as_array_mut().unwrap().truncate(1);
    spec["externalIPs"] = json!([]);
    service["status"] = json!({});
    service
}

fn state_of(endpoints: &[Endpoint]) -> State {
    let (mut state, mut problems) = (State::default(), Vec::new());
    for case in CASES {
        let object = serde_json::from_value(service_of(case)).unwrap();
        state.apply_service(k8s::service(&object, &mut problems).unwrap());
        for slice in slices(case.0, endpoints) {
            let object = serde_json::from_value(slice).unwrap();
            state.apply_slice(k8s::endpoint_slice(&object, "node", &mut problems).unwrap());
        }
    }
    assert_eq!(problems, []);
    state
}

/// The server that a client must meet at a Service's ClusterIP.
fn predict<F: Twin>(
    state: &State,
    node: &Node,
    ruleset: &FamilyRuleset<F>,
    client: Dual,
    number: u8,
) -> &'static str {
    let packet = Packet::<F> {
        source: F::of(client),
        destination: F::of(cluster_ip(number)),
        protocol: 6,
        destination_port: SERVICE_PORT,
        input_interface: Some("eth0".into()),
        mark: 0,
    };
    let by_rules = possible(&trace(ruleset, &packet, &is_local::<F>).unwrap());
    assert_eq!(
        by_rules,
        oracle::outcomes(state, node, &packet),
        "{packet:?}"
    );
    let [Outcome::Endpoint { endpoint, .. }] = by_rules.into_iter().collect::<Vec<_>>()[..] else {
        panic!("not one endpoint for {packet:?}")
    };
    let mut servers = SERVERS.into_iter();
    let server = servers.find(|(_, address)| F::of(*address) == endpoint.address);
    server.unwrap().0
}

/// The server of each client, by Service number and address.
fn predictions(endpoints: &[Endpoint]) -> BTreeMap<(u8, SocketAddr), &'static str> {
    let node = Node {
        detect_local: DetectLocal::Cidrs(vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/48".parse().unwrap(),
        ]),
        ..Node::default()
    };
    let state = state_of(endpoints);
    let compiled = compile(&state, &node);
    assert!(compiled.notes.is_empty());
    let mut all = BTreeMap::new();
    for (_, number, ..) in CASES {
        for client in clients() {
            let v4 = predict::<V4>(&state, &node, &compiled.v4, client, number);
            let v6 = predict::<V6>(&state, &node, &compiled.v6, client, number);
            for (ip, server) in client.both().into_iter().zip([v4, v6]) {
                all.insert((number, SocketAddr::new(ip, 0)), server);
            }
        }
    }
    all
}

impl Bed {
    fn add_clients(&self) {
        let addresses: String = clients()
            .map(|Dual { v4, v6 }| {
                format!("addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n")
            })
            .collect();
        let batch = ["ip", "-batch", "-"];
        self.lab.client.exec_with_input(&batch, &addresses).unwrap();
        let via = CLIENT.v4.to_string();
        for node in [&self.lab.node, &self.lab.node2] {
            let route = ["ip", "route", "add", "198.18.0.0/24", "via", &via];
            node.exec(&route).unwrap();
        }
    }

    fn put_all(&self, endpoints: &[Endpoint]) {
        for case in CASES {
            let [v4, v6] = slices(case.0, endpoints);
            self.manifests
                .put(case.0, &[service_of(case), v4, v6])
                .unwrap();
        }
    }

    /// Who meets another server than the one predicted, at any node and kind of destination.
    fn surprises(&self, predicted: &BTreeMap<(u8, SocketAddr), &'static str>) -> Vec<String> {
        let mut surprises = Vec::new();
        for ((number, client), server) in predicted {
            let destinations = [
                (cluster_ip(*number), SERVICE_PORT),
                (NODE, node_port(*number)),
                (NODE2, node_port(*number)),
            ];
            for (address, port) in destinations {
                let ip = address.both()[usize::from(client.is_ipv6())];
                let options = ProbeOptions {
                    from: Some(*client),
                    ..ProbeOptions::default()
                };
                let to = SocketAddr::new(ip, port);
                let met = probe(&self.lab.client, Protocol::Tcp, to, options).to_string();
                if met != *server {
                    surprises.push(format!("{client} to {to}: {met}, not {server}"));
                }
            }
        }
        surprises
    }

    #[track_caller]
    fn check_predicted(&self, predicted: &BTreeMap<(u8, SocketAddr), &'static str>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let surprises = self.surprises(predicted);
            if surprises.is_empty() {
                return;
            }
            let (n, first) = (surprises.len(), &surprises[0]);
            assert!(Instant::now() < deadline, "{n} surprises, such as {first}");
            sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn clients_meet_who_their_address_says_on_every_node() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.add_clients();
        let four = [POD1, POD2, POD3, REMOTE];
        bed.put_all(&four);
        let _daemons = [
            bed.start_proxy(),
            bed.start_proxy_on(&bed.lab.node2, "node2", &[]),
        ];
        let before = predictions(&four);
        bed.check_predicted(&before);
        for (name, number, _, weights) in CASES {
            let of_v4 = before
                .iter()
                .filter(|((of, client), _)| *of == number && client.is_ipv4());
            let met: BTreeSet<_> = of_v4.map(|(_, server)| *server).collect();
            let expected: BTreeSet<_> = SERVERS
                .into_iter()
                .map(|(server, _)| server)
                .filter(|server| *server != "node")
                .filter(|server| *server != "pod3" || !weights.contains("=0"))
                .collect();
            assert_eq!(met, expected, "{name}");
        }

        let three = [POD1, POD3, REMOTE];
        bed.put_all(&three);
        let after = predictions(&three);
        bed.check_predicted(&after);
        let maglev = before
            .iter()
            .filter(|((number, _), server)| *number == 3 && **server != "pod2");
        let moved = maglev
            .clone()
            .filter(|(client, server)| after[*client] != **server);
        let (n, moved) = (maglev.count(), moved.count());
        assert!(
            moved * 100 <= n * 3,
            "{moved} of {n} clients of others moved"
        );
    });
}
