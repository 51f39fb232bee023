//! What becomes of a new connection, as a table: one row for each rule and state of endpoints, and
//! a cell for each source, destination, family and protocol.
//!
//! One lab and one proxy serve all rows. Each cell is also compared with what `trace` makes of the
//! rules that the kernel holds. Read [`ROWS`] and [`SPECIALS`] first.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use integration::lab::{Dual, NODE, NODE_SECOND, NODE2, POD_GATEWAY};
use integration::manifest::{
    ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port,
    service, service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, patience, probe};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::model::{Family, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::trace::{self, Packet, trace};
use serde_json::json;

use crate::bed::{Bed, HOST_NETWORK, POD1, POD2, REMOTE, SERVERS, Source, placeless, terminating};

/// What endpoints a Service has. Each state has two Services, one with internalTrafficPolicy
/// Cluster and externalTrafficPolicy Local, one the other way round, so that every row also shows
/// that the other kind of policy does not matter.
const STATES: [(&str, &[Endpoint]); 9] = [
    ("both", &[POD1, POD2, REMOTE]),
    ("local", &[POD1, POD2]),
    ("remote", &[REMOTE]),
    ("none", &[]),
    ("host-network", &[HOST_NETWORK]),
    ("fallback", &[terminating(POD1), REMOTE]),
    ("ending", &[terminating(POD1), terminating(REMOTE)]),
    ("ending-remote", &[terminating(REMOTE)]),
    ("placeless", &[placeless(POD1)]),
];

/// Services that are not part of the rows.
const PROXIED_ELSEWHERE: u8 = 101;
const OTHER_PROXY: u8 = 102;
const UNALLOCATED: u8 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    ClusterIp,
    /// External IP, load-balancer IP and NodePort.
    External,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// These servers answer, and see the client's address.
    Kept(&'static [&'static str]),
    /// These servers answer, and see an address of the node.
    Masqueraded(&'static [&'static str]),
    Refused,
    Dropped,
}

use Expect::{Dropped, Kept, Masqueraded, Refused};
use Policy::{Cluster, Local};
use To::{ClusterIp, External};

struct Row {
    rule: &'static str,
    to: To,
    policy: Policy,
    state: &'static str,
    /// For pods, host processes, and everybody else.
    expect: [Expect; 3],
}

const fn row(
    rule: &'static str,
    to: To,
    policy: Policy,
    state: &'static str,
    expect: [Expect; 3],
) -> Row {
    Row {
        rule,
        to,
        policy,
        state,
        expect,
    }
}

const ALL: &[&str] = &["pod1", "pod2", "remote"];
const PODS: &[&str] = &["pod1", "pod2"];
const ONE: &[&str] = &["pod1"];
const FAR: &[&str] = &["remote"];
const ENDING: &[&str] = &["pod1", "remote"];
const OWN: &[&str] = &["node"];

/// Replies to a pod come back through the node by themselves, so that only other sources have to be
/// masqueraded.
const fn masquerade(servers: &'static [&'static str]) -> [Expect; 3] {
    [Kept(servers), Masqueraded(servers), Masqueraded(servers)]
}

const fn masquerade_all(servers: &'static [&'static str]) -> [Expect; 3] {
    [Masqueraded(servers); 3]
}

/// Pods and the host take the short way to all endpoints; the rest gets those on the node.
const fn short_circuit(all: &'static [&'static str], far: Expect) -> [Expect; 3] {
    [Kept(all), Masqueraded(all), far]
}

// A row for each line is easier to compare than the lines of a row.
#[rustfmt::skip]
const ROWS: [Row; 36] = [
    row("S-60", ClusterIp, Cluster, "both", masquerade(ALL)),
    row("S-60", ClusterIp, Cluster, "local", masquerade(PODS)),
    row("S-60", ClusterIp, Cluster, "remote", masquerade(FAR)),
    row("S-60", ClusterIp, Cluster, "host-network", masquerade(OWN)),
    row("S-60", ClusterIp, Cluster, "fallback", masquerade(FAR)),
    row("S-60", ClusterIp, Cluster, "ending", masquerade(ENDING)),
    row("S-60", ClusterIp, Cluster, "ending-remote", masquerade(FAR)),
    row("S-61", ClusterIp, Local, "both", masquerade(PODS)),
    row("S-61", ClusterIp, Local, "local", masquerade(PODS)),
    row("S-61", ClusterIp, Local, "host-network", masquerade(OWN)),
    row("S-61", ClusterIp, Local, "fallback", masquerade(ONE)),
    row("S-61", ClusterIp, Local, "ending", masquerade(ONE)),
    row("S-62", ClusterIp, Local, "remote", [Dropped; 3]),
    row("S-62", ClusterIp, Local, "ending-remote", [Dropped; 3]),
    row("S-63", ClusterIp, Cluster, "none", [Refused; 3]),
    row("S-63", ClusterIp, Local, "none", [Refused; 3]),
    row("S-64", External, Cluster, "both", masquerade_all(ALL)),
    row("S-64", External, Cluster, "local", masquerade_all(PODS)),
    row("S-64", External, Cluster, "remote", masquerade_all(FAR)),
    row("S-64", External, Cluster, "host-network", masquerade_all(OWN)),
    row("S-64", External, Cluster, "fallback", masquerade_all(FAR)),
    row("S-64", External, Cluster, "ending", masquerade_all(ENDING)),
    row("S-64", External, Cluster, "ending-remote", masquerade_all(FAR)),
    row("S-65", External, Local, "both", short_circuit(ALL, Kept(PODS))),
    row("S-65", External, Local, "local", short_circuit(PODS, Kept(PODS))),
    row("S-65", External, Local, "host-network", short_circuit(OWN, Kept(OWN))),
    row("S-66", External, Local, "fallback", short_circuit(FAR, Kept(ONE))),
    row("S-66", External, Local, "ending", short_circuit(ENDING, Kept(ONE))),
    row("S-67", External, Local, "remote", short_circuit(FAR, Dropped)),
    row("S-67", External, Local, "ending-remote", short_circuit(FAR, Dropped)),
    row("S-68", External, Cluster, "none", [Refused; 3]),
    row("S-68", External, Local, "none", [Refused; 3]),
    // An endpoint without a node is not local, and yet reaches itself.
    row("S-91", ClusterIp, Cluster, "placeless", masquerade(ONE)),
    row("S-91", ClusterIp, Local, "placeless", [Dropped; 3]),
    row("S-91", External, Cluster, "placeless", masquerade_all(ONE)),
    row("S-91", External, Local, "placeless", short_circuit(ONE, Dropped)),
];

struct Special {
    rule: &'static str,
    what: &'static str,
    to: Dual,
    port: u16,
    from: &'static [Source],
    expect: Expect,
}

const LOOPBACK: Dual = Dual {
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
};
const ANYBODY: &[Source] = &Source::ALL;
/// Those whose packets to any address but their own network's pass the node.
const BEHIND_NODE: &[Source] = &[Source::Pod1, Source::Pod3, Source::Host, Source::Client];
/// A port no Service has.
const UNDEFINED_PORT: u16 = 81;
/// The number of a Service in the state "both", at whose NodePort processes listen as well.
const SERVED: u8 = 1;
/// The same in the state "none".
const ENDPOINTLESS: u8 = 7;
/// The number of a Service at whose NodePort no process listens.
const UNHEARD: u8 = 3;

const SPECIALS: [Special; 12] = [
    Special {
        rule: "S-70",
        what: "undefined port of a ClusterIP",
        to: cluster_ip(SERVED),
        port: UNDEFINED_PORT,
        from: ANYBODY,
        expect: Refused,
    },
    Special {
        rule: "S-70",
        what: "undefined port of a ClusterIP without endpoints",
        to: cluster_ip(ENDPOINTLESS),
        port: UNDEFINED_PORT,
        from: ANYBODY,
        expect: Refused,
    },
    Special {
        rule: "S-71",
        what: "ClusterIP that no Service has",
        to: cluster_ip(UNALLOCATED),
        port: SERVICE_PORT,
        from: ANYBODY,
        expect: Dropped,
    },
    // The other port of this address, which the rows probe, is captured all the same.
    Special {
        rule: "S-72",
        what: "undefined port of a load-balancer IP that another machine has",
        to: load_balancer_ip(SERVED),
        port: UNDEFINED_PORT,
        from: BEHIND_NODE,
        expect: Kept(&["machine"]),
    },
    Special {
        rule: "S-73",
        what: "load-balancer IP with ipMode Proxy",
        to: load_balancer_ip(PROXIED_ELSEWHERE),
        port: SERVICE_PORT,
        from: BEHIND_NODE,
        expect: Kept(&["machine"]),
    },
    Special {
        rule: "S-56",
        what: "NodePort on the second address, where a process listens",
        to: NODE_SECOND,
        port: node_port(SERVED),
        from: ANYBODY,
        expect: Kept(&["listener"]),
    },
    Special {
        rule: "S-56",
        what: "NodePort on the second address",
        to: NODE_SECOND,
        port: node_port(UNHEARD),
        from: ANYBODY,
        expect: Refused,
    },
    Special {
        rule: "S-56",
        what: "NodePort on loopback, where a process listens",
        to: LOOPBACK,
        port: node_port(SERVED),
        from: &[Source::Host],
        expect: Kept(&["listener"]),
    },
    Special {
        rule: "S-56",
        what: "NodePort on loopback",
        to: LOOPBACK,
        port: node_port(UNHEARD),
        from: &[Source::Host],
        expect: Refused,
    },
    Special {
        rule: "S-75",
        what: "NodePort on another node",
        to: NODE2,
        port: node_port(SERVED),
        from: BEHIND_NODE,
        expect: Kept(&["machine"]),
    },
    Special {
        rule: "S-113",
        what: "ClusterIP of a Service for another proxy",
        to: cluster_ip(OTHER_PROXY),
        port: SERVICE_PORT,
        from: ANYBODY,
        expect: Dropped,
    },
    Special {
        rule: "S-1",
        what: "load-balancer IP of a Service for another proxy",
        to: load_balancer_ip(OTHER_PROXY),
        port: SERVICE_PORT,
        from: BEHIND_NODE,
        expect: Kept(&["machine"]),
    },
];

/// One measurement.
struct Cell {
    text: String,
    source: Source,
    protocol: Protocol,
    to: SocketAddr,
    expected: BTreeSet<String>,
}

impl Cell {
    fn new(
        row: impl fmt::Display,
        source: Source,
        protocol: Protocol,
        to: SocketAddr,
        expect: Expect,
    ) -> Self {
        let answers = |servers: &[&str], masqueraded: bool| {
            let answer = |server: &&str| {
                // What the node delivers to itself leaves by no interface, and so keeps its source.
                let is_delivered = *server == "node" && source != Source::Host;
                let is_hairpin = host_named(server) == Some(source.address());
                answer_text(
                    server,
                    source,
                    to,
                    masqueraded && !is_delivered || is_hairpin,
                )
            };
            servers.iter().map(answer).collect()
        };
        Self {
            text: format!("{row}, {protocol} from {source:?} to {to}"),
            source,
            protocol,
            to,
            expected: match expect {
                Kept(servers) => answers(servers, false),
                Masqueraded(servers) => answers(servers, true),
                Refused => BTreeSet::from(["refused".to_owned()]),
                Dropped => BTreeSet::from(["timeout".to_owned()]),
            },
        }
    }

    /// The outcomes of so many probes that none of up to three equally likely ones is missed, save
    /// by a chance of less than one in a billion. The first outcome out of place ends it.
    fn observe(&self, bed: &Bed) -> BTreeSet<String> {
        let is_drop = self.expected.contains("timeout");
        let n_probes = match self.expected.len() {
            1 if is_drop => 1,
            1 => 8,
            2 => 40,
            _ => 60,
        };
        let options = ProbeOptions {
            from: None,
            timeout: if is_drop {
                Duration::from_millis(200)
            } else {
                patience()
            },
        };
        let namespace = self.source.namespace(&bed.lab);
        let mut observed = BTreeSet::new();
        for _ in 0..n_probes {
            let outcome = probe(namespace, self.protocol, self.to, options);
            let text = match outcome {
                Outcome::Answer {
                    server,
                    seen_source,
                } => seen_text(&server, self.source, seen_source),
                other => other.to_string(),
            };
            let is_expected = self.expected.contains(&text);
            observed.insert(text);
            if !is_expected {
                break;
            }
        }
        observed
    }

    /// Compares with the table and with the trace; what is wrong, if anything is.
    fn check(&self, bed: &Bed, rules: &Rules) -> Option<String> {
        let observed = self.observe(bed);
        if observed != self.expected {
            return Some(format!(
                "{}: expected {:?}, observed {observed:?}",
                self.text, self.expected
            ));
        }
        let predicted = rules.predict(self)?;
        (predicted != observed).then(|| {
            format!(
                "{}: trace says {predicted:?}, observed {observed:?}",
                self.text
            )
        })
    }
}

/// The address of the host with this server, if it is an endpoint's.
fn host_named(server: &str) -> Option<Dual> {
    let (_, address) = SERVERS.iter().find(|(name, _)| *name == server)?;
    Some(*address)
}

/// What an answer looks like; a masqueraded source is the address of the node that is next to the
/// server.
fn answer_text(server: &str, source: Source, to: SocketAddr, is_masqueraded: bool) -> String {
    let family = usize::from(to.is_ipv6());
    let seen = if !is_masqueraded {
        source.address()
    } else if server == "remote" {
        NODE
    } else {
        POD_GATEWAY
    };
    seen_text(server, source, seen.both()[family])
}

fn seen_text(server: &str, source: Source, seen: IpAddr) -> String {
    // From the node to itself any of its addresses will do, as all of them can be answered.
    if source == Source::Host && ["node", "listener"].contains(&server) {
        format!("{server} sees the node")
    } else {
        format!("{server} sees {seen}")
    }
}

/// What the kernel holds.
struct Rules {
    v4: FamilyRuleset<V4>,
    v6: FamilyRuleset<V6>,
}

impl Rules {
    fn list(bed: &Bed) -> Self {
        bed.lab.node.run(|| {
            let mut netlink = Netlink::open().unwrap();
            Self {
                v4: Kernel::<V4>::list(&mut netlink).unwrap().unwrap().ruleset,
                v6: Kernel::<V6>::list(&mut netlink).unwrap().unwrap().ruleset,
            }
        })
    }

    /// What is to be observed by the trace; `None` where the packet just passes.
    fn predict(&self, cell: &Cell) -> Option<BTreeSet<String>> {
        match cell.to {
            SocketAddr::V4(_) => predict(&self.v4, cell),
            SocketAddr::V6(_) => predict(&self.v6, cell),
        }
    }
}

fn predict<F: Family>(rules: &FamilyRuleset<F>, cell: &Cell) -> Option<BTreeSet<String>> {
    let address = |address: Dual| address.both().into_iter().find_map(F::address).unwrap();
    let packet = Packet {
        source: address(cell.source.address()),
        destination: F::address(cell.to.ip()).unwrap(),
        protocol: match cell.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        },
        destination_port: cell.to.port(),
        input_interface: cell.source.input_interface().map(str::to_owned),
        mark: 0,
    };
    let own = [NODE, NODE_SECOND, POD_GATEWAY, LOOPBACK].map(address);
    let outcomes = trace(rules, &packet, &|ip| own.contains(&ip)).unwrap();
    let text = |outcome: &trace::Outcome<F>| match outcome {
        trace::Outcome::Endpoint {
            endpoint,
            masquerade,
        } => {
            assert_eq!(endpoint.port.get(), ENDPOINT_PORT);
            let (server, _) = SERVERS
                .into_iter()
                .find(|(_, host)| address(*host) == endpoint.address)
                .unwrap();
            Some(answer_text(server, cell.source, cell.to, *masquerade))
        }
        trace::Outcome::Refuse { .. } => Some("refused".to_owned()),
        trace::Outcome::Drop => Some("timeout".to_owned()),
        trace::Outcome::Pass { .. } => None,
    };
    outcomes.keys().map(text).collect()
}

/// The number of the Service that is in this state and has this policy at this destination.
fn service_of(state: &str, to: To, policy: Policy) -> u8 {
    let index = STATES.iter().position(|(name, _)| *name == state).unwrap();
    // The first of a state's two Services is the one whose ClusterIP has policy Cluster.
    let is_second = (to == ClusterIp) == (policy == Local);
    u8::try_from(2 * index).unwrap() + 1 + u8::from(is_second)
}

fn write_manifests(bed: &Bed) {
    for (state, endpoints) in STATES {
        for internal in [Cluster, Local] {
            let number = service_of(state, ClusterIp, internal);
            let external = if internal == Cluster { Local } else { Cluster };
            let name = format!("{state}-{number}");
            let mut service = service(&name, number);
            service["spec"]["internalTrafficPolicy"] = json!(format!("{internal:?}"));
            service["spec"]["externalTrafficPolicy"] = json!(format!("{external:?}"));
            let [v4, v6] = slices(&name, endpoints);
            bed.manifests.put(&name, &[service, v4, v6]).unwrap();
        }
    }
    let mut proxied = service("proxied-elsewhere", PROXIED_ELSEWHERE);
    for ingress in proxied["status"]["loadBalancer"]["ingress"]
        .as_array_mut()
        .unwrap()
    {
        ingress["ipMode"] = json!("Proxy");
    }
    let mut other = service("other-proxy", OTHER_PROXY);
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    for service in [proxied, other] {
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        let [v4, v6] = slices(&name, &[POD1]);
        bed.manifests.put(&name, &[service, v4, v6]).unwrap();
    }
    bed.manifests.put("cidr", &[service_cidr()]).unwrap();
}

/// Makes the other node a machine that has some of the load-balancer IPs, and puts listeners where
/// Services are, to tell what passes from what the proxy refuses.
fn add_bystanders(bed: &mut Bed) {
    for number in [SERVED, PROXIED_ELSEWHERE, OTHER_PROXY] {
        for (ip, gateway) in load_balancer_ip(number)
            .both()
            .into_iter()
            .zip(NODE2.both())
        {
            let (ip, gateway) = (ip.to_string(), gateway.to_string());
            let mut add = vec!["ip", "addr", "add", &ip, "dev", "lo"];
            if ip.contains(':') {
                // Without, it is tentative for a moment.
                add.push("nodad");
            }
            bed.lab.node2.exec(&add).unwrap();
            let route = ["ip", "route", "add", &ip, "via", &gateway];
            bed.lab.node.exec(&route).unwrap();
        }
    }
    for (address, port) in [
        (load_balancer_ip(SERVED), SERVICE_PORT),
        (load_balancer_ip(SERVED), UNDEFINED_PORT),
        (load_balancer_ip(PROXIED_ELSEWHERE), SERVICE_PORT),
        (load_balancer_ip(OTHER_PROXY), SERVICE_PORT),
        (NODE2, node_port(SERVED)),
    ] {
        bed.serve(|lab| &lab.node2, "machine", address, port);
    }
    for (address, number) in [
        (NODE, SERVED),
        (NODE, ENDPOINTLESS),
        (NODE_SECOND, SERVED),
        (LOOPBACK, SERVED),
    ] {
        bed.serve(|lab| &lab.node, "listener", address, node_port(number));
    }
}

fn cells(protocol: Protocol, family: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for Row {
        rule,
        to,
        policy,
        state,
        expect: [pod, host, far],
    } in ROWS
    {
        let number = service_of(state, to, policy);
        let destinations = match to {
            ClusterIp => vec![(cluster_ip(number), SERVICE_PORT)],
            External => vec![
                (external_ip(number), SERVICE_PORT),
                (load_balancer_ip(number), SERVICE_PORT),
                (NODE, node_port(number)),
            ],
        };
        for source in Source::ALL {
            let expect = match source {
                // By the cluster CIDR pods of other nodes are pods too.
                Source::Pod1 | Source::Pod3 | Source::RemotePod => pod,
                Source::Host => host,
                Source::Client | Source::Node2 => far,
            };
            // Endpoints of other nodes are not masqueraded on the way back to themselves.
            let is_remote_to_itself = source == Source::RemotePod
                && matches!(expect, Kept(servers) if servers.contains(&"remote"));
            for (address, port) in &destinations {
                // The other node has this address itself, so its packets do not come here.
                let is_elsewhere = *address == load_balancer_ip(SERVED)
                    && [Source::Node2, Source::RemotePod].contains(&source);
                if is_remote_to_itself || is_elsewhere {
                    continue;
                }
                let to = SocketAddr::new(address.both()[family], *port);
                let row = format!("{rule} {policy:?} {state}");
                cells.push(Cell::new(row, source, protocol, to, expect));
            }
        }
    }
    for Special {
        rule,
        what,
        to,
        port,
        from,
        expect,
    } in SPECIALS
    {
        let to = SocketAddr::new(to.both()[family], port);
        let row = format!("{rule} {what}");
        cells.extend(
            from.iter()
                .map(|source| Cell::new(&row, *source, protocol, to, expect)),
        );
    }
    cells
}

/// The rules that [`ROWS`] and [`SPECIALS`] name, and with them S-127 and S-157, S-133, S-134, S-136,
/// S-139 and S-144: an endpoint meets all endpoints, itself included, by every kind of destination;
/// those in the node's own network are like others; and the policies, wherever one comes from.
#[test]
fn every_destination_from_every_source() {
    in_sandbox(|| {
        assert_eq!(service_of("both", ClusterIp, Cluster), SERVED);
        assert_eq!(service_of("none", ClusterIp, Cluster), ENDPOINTLESS);
        let mut bed = Bed::new();
        add_bystanders(&mut bed);
        write_manifests(&bed);
        let daemon = bed.start_proxy();
        let rules = Rules::list(&bed);

        // The families and protocols do not meet, and much of the time is waiting for drops.
        let wrong: Vec<_> = thread::scope(|scope| {
            let (bed, rules) = (&bed, &rules);
            let check_all = |protocol, family| {
                scope.spawn(move || {
                    cells(protocol, family)
                        .iter()
                        .filter_map(|cell| cell.check(bed, rules))
                        .collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = bed
                .protocols
                .iter()
                .flat_map(|protocol| [0, 1].map(|family| check_all(*protocol, family)))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(
            wrong.is_empty(),
            "{} cells are wrong:\n{}\nlog:\n{}",
            wrong.len(),
            wrong.join("\n"),
            daemon.log()
        );
    });
}

/// S-55, where the proxy is told to accept NodePorts at all addresses.
#[test]
fn node_ports_can_be_had_at_all_addresses_but_loopback() {
    in_sandbox(|| {
        let bed = Bed::new();
        let [v4, v6] = slices("web", &[POD1]);
        let objects = [service("web", SERVED), v4, v6];
        bed.manifests.put("web", &objects).unwrap();
        let _daemon = bed.start_proxy_with(&["--nodeport-addresses=0.0.0.0/0,::/0"]);
        let port = node_port(SERVED);
        bed.check(ANYBODY, NODE, port, "pod1");
        bed.check(ANYBODY, NODE_SECOND, port, "pod1");
        bed.check(ANYBODY, POD_GATEWAY, port, "pod1");
        bed.check(&[Source::Host], LOOPBACK, port, "refused");
        bed.check(BEHIND_NODE, NODE2, port, "refused");
    });
}
