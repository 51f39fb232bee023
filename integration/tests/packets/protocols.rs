//! What is particular to protocols: how each is refused, ICMP, fragments, and translated ports.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use integration::lab::{Dual, NODE, NODE_SECOND, POD_GATEWAY};
use integration::manifest::{cluster_ip, node_port, service_cidr};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, ping, probe, probe_datagram};

use crate::bed::{Bed, HOST_NETWORK, POD1, REMOTE, Source, destination_addresses, destinations};

const NUMBER: u8 = 1;
const ENDPOINTLESS: u8 = 2;

impl Bed {
    /// How many port-unreachable errors the node has sent so far.
    fn n_icmp_errors(&self) -> u64 {
        let read = |path: &str| self.lab.node.exec(&["cat", path]).unwrap();
        let v6 = read("/proc/net/snmp6");
        let v6 = v6.lines().find_map(|line| {
            let value = line.strip_prefix("Icmp6OutDestUnreachs")?;
            value.trim().parse::<u64>().ok()
        });
        let v4 = read("/proc/net/snmp");
        let mut v4 = v4.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = (v4.next().unwrap(), v4.next().unwrap());
        let column = names.split(' ').position(|name| name == "OutDestUnreachs");
        let value = values.split(' ').nth(column.unwrap()).unwrap();
        value.parse::<u64>().unwrap() + v6.unwrap()
    }
}

/// S-79, S-80, S-133, S-63, S-68: without endpoints every client hears of it at once, with TCP by a
/// reset and otherwise by an ICMP error.
#[test]
fn refusals_come_at_once_and_in_kind() {
    in_sandbox(|| {
        const N_PROBES: usize = 14;
        // A TCP client that hears nothing sends again after a second.
        const AT_ONCE: Duration = Duration::from_millis(900);
        let bed = Bed::new();
        bed.put("none", ENDPOINTLESS, &[], |_| {});
        // At all addresses, so that the one dialled need not be the one the error comes from.
        let _daemon = bed.start_proxy_with(&["--nodeport-addresses=0.0.0.0/0,::/0"]);
        let second = NODE_SECOND.both();
        let second = second.map(|ip| SocketAddr::new(ip, node_port(ENDPOINTLESS)));
        for protocol in &bed.protocols {
            let before = bed.n_icmp_errors();
            let mut n_probes = 0;
            for to in destination_addresses(ENDPOINTLESS).chain(second) {
                for source in Source::ALL {
                    let namespace = source.namespace(&bed.lab);
                    let mut fastest = Duration::MAX;
                    for _ in 0..N_PROBES {
                        let start = Instant::now();
                        let outcome = probe(namespace, *protocol, to, ProbeOptions::default());
                        assert!(
                            matches!(outcome, Outcome::Refused),
                            "{protocol} from {source:?} to {to}: {outcome}"
                        );
                        fastest = fastest.min(start.elapsed());
                        n_probes += 1;
                    }
                    assert!(fastest < AT_ONCE, "{protocol} from {source:?} to {to}");
                }
            }
            let n_errors = bed.n_icmp_errors() - before;
            match protocol {
                Protocol::Tcp => assert_eq!(n_errors, 0),
                Protocol::Udp | Protocol::Sctp => assert!(n_errors >= n_probes, "{n_errors}"),
            }
        }
    });
}

/// S-112, S-113, S-71: a ping to a ClusterIP is refused, with endpoints or without; one to an address
/// that could be one is dropped.
#[test]
fn cluster_ips_cannot_be_pinged() {
    in_sandbox(|| {
        const UNALLOCATED: u8 = 200;
        let bed = Bed::new();
        bed.put("web", NUMBER, &[POD1], |_| {});
        bed.put("none", ENDPOINTLESS, &[], |_| {});
        bed.manifests.put("cidr", &[service_cidr()]).unwrap();
        let _daemon = bed.start_proxy();
        for source in Source::ALL {
            let check = |address: Dual, timeout, wanted: &str| {
                for ip in address.both() {
                    let outcome = ping(source.namespace(&bed.lab), ip, timeout);
                    assert_eq!(outcome.to_string(), wanted, "from {source:?} to {ip}");
                }
            };
            let patiently = Duration::from_secs(1);
            check(cluster_ip(NUMBER), patiently, "refused");
            check(cluster_ip(ENDPOINTLESS), patiently, "refused");
            check(
                cluster_ip(UNALLOCATED),
                Duration::from_millis(200),
                "timeout",
            );
            check(NODE, patiently, "echo");
            check(POD1.address, patiently, "echo");
        }
    });
}

/// S-158: datagrams longer than the network's packets get there, and so do answers of that length.
#[test]
fn long_datagrams_travel_in_fragments() {
    in_sandbox(|| {
        const LENGTH: usize = 2000;
        let bed = Bed::new();
        for (name, number, endpoint) in [
            ("local", 1, POD1),
            ("remote", 2, REMOTE),
            ("host", 3, HOST_NETWORK),
        ] {
            bed.put(name, number, &[endpoint], |_| {});
        }
        let _daemon = bed.start_proxy();
        for (number, server) in [(1, "pod1"), (2, "remote"), (3, "node")] {
            for source in Source::ALL {
                // As in `table`: its own node's proxy, which there is none, would masquerade it.
                if (source, server) == (Source::RemotePod, "remote") {
                    continue;
                }
                for to in destination_addresses(number) {
                    let outcome = probe_datagram(source.namespace(&bed.lab), to, LENGTH);
                    assert_eq!(outcome.to_string(), server, "from {source:?} to {to}");
                }
            }
        }
    });
}

/// S-93: a masqueraded connection has the address of the interface it leaves by, and a source port
/// of its own.
#[test]
fn masqueraded_connections_get_another_port() {
    in_sandbox(|| {
        const PORTS: [u16; 4] = [41001, 41002, 41003, 41004];
        let bed = Bed::new();
        bed.put("web", NUMBER, &[POD1], |_| {});
        let _daemon = bed.start_proxy();
        let client = Source::Client.address().both();
        for (address, port) in destinations(NUMBER) {
            for ((ip, client), node) in address
                .both()
                .into_iter()
                .zip(client)
                .zip(POD_GATEWAY.both())
            {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let mut kept = Vec::new();
                    for from in PORTS {
                        let options = ProbeOptions {
                            from: Some((client, from).into()),
                            ..ProbeOptions::default()
                        };
                        let outcome = probe(&bed.lab.client, protocol, (ip, port).into(), options);
                        match outcome {
                            Outcome::Answer { seen_source, .. } => assert_eq!(seen_source, node),
                            other => panic!("{protocol} to {ip}:{port}: {other}"),
                        }
                        // The reply's direction is the second of each kind in a line.
                        let entry = bed.entry(protocol, ip, from);
                        let ports: Vec<_> = entry
                            .split_whitespace()
                            .filter_map(|word| word.strip_prefix("dport="))
                            .collect();
                        let [_, translated] = ports[..] else {
                            panic!("{entry}");
                        };
                        if translated == from.to_string() {
                            kept.push(entry);
                        }
                    }
                    // By chance one in 65,000 is.
                    assert!(kept.len() < 2, "{kept:?}");
                }
            }
        }
    });
}

impl Bed {
    /// The node's entry of the connection from this port to this address.
    fn entry(&self, protocol: Protocol, to: IpAddr, from: u16) -> String {
        let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
        let (protocol, to, from) = (protocol.to_string(), to.to_string(), from.to_string());
        let list = [
            "conntrack",
            "-L",
            "-f",
            family,
            "-p",
            &protocol,
            "--orig-dst",
            &to,
            "--sport",
            &from,
        ];
        self.lab.node.exec(&list).unwrap()
    }
}

/// S-150: a Service with SCTP ports makes the proxy open no socket of that kind, which would have
/// the kernel load its module.
#[test]
fn sctp_services_need_no_sctp_socket() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("web", NUMBER, &[POD1], |_| {});
        let daemon = bed.start_proxy();
        let process = format!("/proc/{}", daemon.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let known: String = ["netlink", "unix", "tcp", "tcp6", "udp", "udp6"]
                .iter()
                .map(|kind| fs::read_to_string(format!("{process}/net/{kind}")).unwrap())
                .collect();
            let known: Vec<_> = known.split_whitespace().collect();
            let sockets = fs::read_dir(format!("{process}/fd"))
                .unwrap()
                .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
                .filter_map(|target| {
                    let target = target.to_str()?.strip_prefix("socket:[")?;
                    Some(target.strip_suffix(']')?.to_owned())
                });
            let (found, strange): (Vec<_>, Vec<_>) =
                sockets.partition(|inode| known.contains(&inode.as_str()));
            if !found.is_empty() && strange.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "other sockets: {strange:?}");
        }
    });
}
