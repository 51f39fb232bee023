//! `loadBalancerSourceRanges`: who may reach a load-balancer address, and what else is not filtered.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use integration::lab::{CLIENT, Dual, NODE};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{ProbeOptions, Protocol, probe};
use serde_json::json;

use crate::bed::{Bed, POD2, POD3, Source};

const NUMBER: u8 = 1;
const BRIEFLY: ProbeOptions = ProbeOptions {
    from: None,
    timeout: Duration::from_millis(150),
};

impl Bed {
    fn put_restricted(&self, ranges: &[String], endpoints: &[Endpoint]) {
        let mut service = service("restricted", NUMBER);
        service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        let [v4, v6] = slices("restricted", endpoints);
        self.manifests
            .put("restricted", &[service, v4, v6])
            .unwrap();
    }

    /// Waits until connections of all protocols to the load-balancer address end so.
    #[track_caller]
    fn expect(&self, source: Source, ip: IpAddr, wanted: &str) {
        self.expect_at(source, (ip, SERVICE_PORT).into(), wanted);
    }

    #[track_caller]
    fn expect_at(&self, source: Source, to: SocketAddr, wanted: &str) {
        for protocol in &self.protocols {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let found = probe(source.namespace(&self.lab), *protocol, to, BRIEFLY).to_string();
                if found == wanted {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "{protocol} from {source:?} to {to}: waited for {wanted}, last was {found}"
                );
            }
        }
    }
}

fn only(address: Dual) -> Vec<String> {
    vec![format!("{}/32", address.v4), format!("{}/128", address.v6)]
}

/// S-69, S-103, S-104, S-108: only the ranges get through to the load-balancer address, whoever it
/// is and whether there are endpoints or not; other destinations are not filtered.
#[test]
fn s69_source_ranges_guard_load_balancer_addresses() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_restricted(&only(CLIENT), &[POD2]);
        let _daemon = bed.start_proxy();
        let others = [Source::Pod3, Source::Host, Source::RemotePod, Source::Node2];
        for ip in load_balancer_ip(NUMBER).both() {
            bed.expect(Source::Client, ip, "pod2");
            for source in others {
                bed.expect(source, ip, "timeout");
            }
        }
        for source in others {
            for (address, port) in [
                (cluster_ip(NUMBER), SERVICE_PORT),
                (external_ip(NUMBER), SERVICE_PORT),
                (NODE, node_port(NUMBER)),
            ] {
                for ip in address.both() {
                    bed.expect_at(source, (ip, port).into(), "pod2");
                }
            }
        }
        // Without endpoints it is still a drop for others, and a refusal for those within.
        bed.put_restricted(&only(CLIENT), &[]);
        for ip in load_balancer_ip(NUMBER).both() {
            bed.expect(Source::Client, ip, "refused");
            bed.expect(Source::Pod3, ip, "timeout");
        }
        // Changed ranges act on the next connection.
        bed.put_restricted(&only(Source::Pod3.address()), &[POD2]);
        for ip in load_balancer_ip(NUMBER).both() {
            bed.expect(Source::Pod3, ip, "pod2");
            bed.expect(Source::Client, ip, "timeout");
        }
        bed.put_restricted(&[], &[POD2]);
        for ip in load_balancer_ip(NUMBER).both() {
            bed.expect(Source::Client, ip, "pod2");
        }
    });
}

/// S-106, S-107, S-109: ranges may overlap, repeat and touch, in any order; together they may hold
/// everything; and those of one family say nothing about the other.
#[test]
fn s109_ranges_may_be_written_in_any_way() {
    in_sandbox(|| {
        let bed = Bed::new();
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let tangled = texts(&[
            "192.0.2.0/24",
            " 192.0.2.96/27 ",
            "192.0.2.100/32",
            "192.0.2.100/32",
            "192.0.0.0/16",
            "198.51.100.0/25",
            "198.51.100.128/25",
            "nonsense",
            "",
        ]);
        bed.put_restricted(&tangled, &[POD2]);
        let _daemon = bed.start_proxy();
        let Dual { v4, v6 } = load_balancer_ip(NUMBER);
        bed.expect(Source::Client, v4.into(), "pod2");
        bed.expect(Source::Pod3, v4.into(), "timeout");
        // There is no IPv6 range, so nothing is filtered.
        bed.expect(Source::Pod3, v6.into(), "pod2");

        bed.put_restricted(
            &texts(&["0.0.0.0/1", "128.0.0.0/1", "2001:db8::/32"]),
            &[POD2],
        );
        bed.expect(Source::Pod3, v4.into(), "pod2");
        bed.expect(Source::Pod3, v6.into(), "timeout");
        bed.expect(Source::Client, v6.into(), "pod2");
    });
}

/// S-82, S-124: a one-way UDP flow, which is new to kube-proxy with every packet, does not outlive
/// ranges that shut it out; one that was answered is a connection and stays.
#[test]
fn s124_one_way_flows_do_not_outlive_tightened_ranges() {
    in_sandbox(|| {
        let bed = Bed::new();
        // What it gets, nobody hears of.
        let deaf = "add table inet deaf
add chain inet deaf input { type filter hook input priority 0; }
add rule inet deaf input udp dport 8080 drop
";
        bed.lab.pods[2]
            .exec_with_input(&["nft", "-f", "-"], deaf)
            .unwrap();
        bed.put_restricted(&[], &[POD3]);
        let _daemon = bed.start_proxy();
        let ip = load_balancer_ip(NUMBER).v4;
        let entries = || {
            let list = [
                "conntrack",
                "-L",
                "-p",
                "udp",
                "--orig-dst",
                &ip.to_string(),
            ];
            let list = bed.lab.node.exec(&list).unwrap();
            list.lines()
                .filter(|line| line.contains("dport=80 "))
                .count()
        };
        let to = (ip, SERVICE_PORT).into();
        let send = || probe(&bed.lab.client, Protocol::Udp, to, BRIEFLY).to_string();
        assert_eq!((send().as_str(), entries()), ("timeout", 1));
        bed.put_restricted(&only(Source::Pod3.address()), &[POD3]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while entries() > 0 {
            assert!(Instant::now() < deadline, "the flow is still there");
        }

        bed.put_restricted(&[], &[POD2]);
        bed.expect(Source::Client, ip.into(), "pod2");
        let before = entries();
        assert!(before > 0);
        bed.put_restricted(&only(Source::Pod3.address()), &[POD2]);
        bed.expect(Source::Client, ip.into(), "timeout");
        assert!(entries() >= before, "an answered flow is gone");
    });
}
