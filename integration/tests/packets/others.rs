//! What holds beside software that shares the host: other tables' translations, a DNS cache that
//! has taken a ClusterIP, and clients in a hurry.

use std::net::{Ipv4Addr, SocketAddr};

use integration::lab::{Dual, NODE, NODE_SECOND, PODS};
use integration::manifest::{
    ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, external_ip, node_port, service,
    service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Counts, Protocol, probe_many};
use serde_json::json;

use crate::bed::{Bed, POD1, REMOTE, Source};

const NUMBER: u8 = 1;

impl Bed {
    /// Makes the one Service of these tests have these endpoints.
    fn put_service(&self, internal_policy: &str, endpoints: &[Endpoint]) {
        let mut service = service("web", NUMBER);
        service["spec"]["internalTrafficPolicy"] = json!(internal_policy);
        let [v4, v6] = slices("web", endpoints);
        let objects = [service, v4, v6, service_cidr()];
        self.manifests.put("web", &objects).unwrap();
    }

    fn nft(&self, commands: &str) {
        let node = &self.lab.node;
        node.exec_with_input(&["nft", "-f", "-"], commands).unwrap();
    }
}

/// A pod's hostPort, as a CNI plugin would set it up: on the number of a NodePort.
fn host_port() -> String {
    let rules = |protocol: &str| {
        let (port, pod) = (node_port(NUMBER), PODS[2]);
        format!(
            "ip daddr {} {protocol} dport {port} dnat ip to {}:{ENDPOINT_PORT}
             ip6 daddr {} {protocol} dport {port} dnat ip6 to [{}]:{ENDPOINT_PORT}
             ",
            NODE.v4, pod.v4, NODE.v6, pod.v6
        )
    };
    let rules = ["tcp", "udp", "sctp"].map(rules).concat();
    format!(
        "table inet hostport {{
             chain prerouting {{
                 type nat hook prerouting priority -100
                 {rules}
             }}
             chain output {{
                 type nat hook output priority -100
                 {rules}
             }}
         }}"
    )
}

/// S-83 (iii): a hostPort on the number of a NodePort that leads nowhere.
#[test]
fn other_tables_translations_win_over_a_node_port_without_endpoints() {
    in_sandbox(|| {
        // Hooks of the same priority run in an order that depends on who came first.
        for is_ours_first in [false, true] {
            let bed = Bed::new();
            bed.put_service("Cluster", &[]);
            let _daemon = if is_ours_first {
                let daemon = bed.start_proxy();
                bed.nft(&host_port());
                daemon
            } else {
                bed.nft(&host_port());
                bed.start_proxy()
            };
            let sources = [Source::Client, Source::Pod1, Source::Host];
            bed.check(&sources, NODE, node_port(NUMBER), "pod3");
            bed.nft("delete table inet hostport");
            bed.check(&sources, NODE, node_port(NUMBER), "refused");
        }
    });
}

/// S-156: pods with the same hostPort at different addresses and protocols, loopback among them, get
/// what is theirs, beside a NodePort of another number and one of the same.
#[test]
fn host_ports_are_left_alone() {
    in_sandbox(|| {
        const HOST_PORT: u16 = 31323;
        let to_pod = |address: Dual, protocol: &str, pod: Dual| {
            format!(
                "ip daddr {} {protocol} dport {HOST_PORT} dnat ip to {}:{ENDPOINT_PORT}
                 ip6 daddr {} {protocol} dport {HOST_PORT} dnat ip6 to [{}]:{ENDPOINT_PORT}
                 ",
                address.v4, pod.v4, address.v6, pod.v6
            )
        };
        let rules = to_pod(NODE, "tcp", PODS[0])
            + &to_pod(NODE, "udp", PODS[1])
            + &to_pod(NODE_SECOND, "tcp", PODS[2]);
        // As loopback goes, what leaves it needs another source, and there is no such way in IPv6.
        let pod = PODS[0].v4;
        let loopback =
            format!("ip daddr 127.0.0.1 tcp dport {HOST_PORT} dnat ip to {pod}:{ENDPOINT_PORT}");
        let table = format!(
            "table inet hostport {{
                 chain prerouting {{
                     type nat hook prerouting priority -100
                     {rules}
                 }}
                 chain output {{
                     type nat hook output priority -100
                     {rules}
                     {loopback}
                 }}
                 chain postrouting {{
                     type nat hook postrouting priority 100
                     ip saddr 127.0.0.0/8 oifname != lo masquerade
                 }}
             }}"
        );
        let bed = Bed::new();
        bed.lab
            .node
            .sysctl("net.ipv4.conf.all.route_localnet", "1")
            .unwrap();
        bed.nft(&table);
        bed.put_service("Cluster", &[POD1]);
        let check = || {
            for (address, protocol, server) in [
                (NODE, Protocol::Tcp, "pod1"),
                (NODE, Protocol::Udp, "pod2"),
                (NODE_SECOND, Protocol::Tcp, "pod3"),
            ] {
                for source in [Source::Client, Source::RemotePod, Source::Host] {
                    for ip in address.both() {
                        bed.check_one(source, protocol, (ip, HOST_PORT).into(), server);
                    }
                }
            }
            let loopback = (Ipv4Addr::LOCALHOST, HOST_PORT).into();
            bed.check_one(Source::Host, Protocol::Tcp, loopback, "pod1");
        };
        check();
        let _daemon = bed.start_proxy();
        check();
        bed.check(&[Source::Client], NODE, node_port(NUMBER), "pod1");
        // The idle NodePort of another Service is on the same number.
        bed.put("idle", NUMBER + 1, &[], |service| {
            for port in service["spec"]["ports"].as_array_mut().unwrap() {
                port["nodePort"] = json!(HOST_PORT);
            }
        });
        bed.check(
            &[Source::Client],
            cluster_ip(NUMBER + 1),
            SERVICE_PORT,
            "refused",
        );
        check();
    });
}

/// As NodeLocal DNSCache does it.
fn untrack(address: Dual) -> String {
    let rules = |field: &str, port: &str| {
        ["tcp", "udp", "sctp"]
            .map(|protocol| {
                format!(
                    "ip {field} {} {protocol} {port} {SERVICE_PORT} notrack
                     ip6 {field} {} {protocol} {port} {SERVICE_PORT} notrack
                     ",
                    address.v4, address.v6
                )
            })
            .concat()
    };
    let (requests, answers) = (rules("daddr", "dport"), rules("saddr", "sport"));
    format!(
        "table inet cache {{
             chain prerouting {{
                 type filter hook prerouting priority raw
                 {requests}
             }}
             chain output {{
                 type filter hook output priority raw
                 {requests}
                 {answers}
             }}
         }}"
    )
}

/// S-84: neither translated nor refused is what connection tracking is not to see.
#[test]
fn a_node_local_cache_on_a_cluster_ip_keeps_its_packets() {
    in_sandbox(|| {
        const UNDEFINED_PORT: u16 = 81;
        let mut bed = Bed::new();
        let address = cluster_ip(NUMBER);
        for ip in address.both() {
            let address = ip.to_string();
            let mut add = vec!["ip", "addr", "add", &address, "dev", "lo"];
            if ip.is_ipv6() {
                // Without, it is tentative for a moment.
                add.push("nodad");
            }
            bed.lab.node.exec(&add).unwrap();
        }
        for port in [SERVICE_PORT, UNDEFINED_PORT] {
            bed.serve(|lab| &lab.node, "cache", address, port);
        }
        bed.put_service("Cluster", &[POD1]);
        let _daemon = bed.start_proxy();

        let sources = [Source::Pod1, Source::Pod3, Source::Host];
        bed.check(&sources, address, SERVICE_PORT, "pod1");
        bed.nft(&untrack(address));
        // The NodePort shows that each state is in force.
        for (policy, endpoints, at_node_port) in [
            ("Cluster", &[POD1][..], "pod1"),
            ("Cluster", &[], "refused"),
            ("Local", &[REMOTE], "remote"),
        ] {
            bed.put_service(policy, endpoints);
            bed.check(&[Source::Client], NODE, node_port(NUMBER), at_node_port);
            bed.check(&sources, address, SERVICE_PORT, "cache");
            bed.check(&sources, address, UNDEFINED_PORT, "cache");
        }
    });
}

/// S-79, under the kernel's own limits.
#[test]
fn many_quick_tcp_connections_are_all_refused() {
    in_sandbox(|| {
        const N_PROBES: usize = 50;
        let bed = Bed::new();
        // The kernel's own limits, which the lab lifts: they hold for ICMP errors.
        for (key, default) in [
            ("net.ipv4.icmp_ratemask", "6168"),
            ("net.ipv6.icmp.ratemask", "0-1,3-127"),
        ] {
            bed.lab.node.sysctl(key, default).unwrap();
        }
        bed.put_service("Cluster", &[]);
        let _daemon = bed.start_proxy();
        for (address, port) in [
            (cluster_ip(NUMBER), SERVICE_PORT),
            (external_ip(NUMBER), SERVICE_PORT),
            (NODE, node_port(NUMBER)),
        ] {
            for ip in address.both() {
                let to = SocketAddr::new(ip, port);
                for source in [&bed.lab.client, &bed.lab.pods[0]] {
                    let counts = probe_many(source, Protocol::Tcp, to, N_PROBES);
                    let all_refused = Counts::from([("refused".to_owned(), N_PROBES)]);
                    assert_eq!(counts, all_refused, "{to} from {}", source.label());
                }
            }
        }
    });
}
