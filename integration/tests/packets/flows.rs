//! UDP flows: what a client with a fixed source port experiences, which never opens a connection
//! anew, and what is left in connection tracking.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{CLIENT, Dual, NODE, NODE2};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service,
    service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, Server, probe};

use crate::bed::{Bed, POD1, POD2, POD3};

const NUMBER: u8 = 1;
const CLIENT_PORT: u16 = 40000;

impl Bed {
    fn put_udp(&self, endpoints: &[Endpoint]) {
        let [v4, v6] = slices("udp", endpoints);
        self.manifests
            .put("udp", &[service("udp", NUMBER), v4, v6])
            .unwrap();
    }

    /// Sends one datagram of the client's one flow to a destination.
    fn send(&self, to: SocketAddr) -> Outcome {
        let address = if to.is_ipv4() {
            CLIENT.v4.into()
        } else {
            IpAddr::from(CLIENT.v6)
        };
        let options = ProbeOptions {
            from: Some((address, CLIENT_PORT).into()),
            timeout: Duration::from_millis(300),
        };
        probe(&self.lab.client, Protocol::Udp, to, options)
    }

    /// Waits until the flow is answered by somebody.
    #[track_caller]
    fn wait_for_answer(&self, to: SocketAddr, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = self.send(to).to_string();
            if found == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{to}: waited for {wanted}, last was {found}"
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// The entries of the node that hold this text.
    pub(crate) fn entries(&self, family: &str, text: &str) -> Vec<String> {
        let listing = self
            .lab
            .node
            .exec(&["conntrack", "-L", "-p", "udp", "-f", family])
            .unwrap();
        listing
            .lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

fn destinations() -> impl Iterator<Item = SocketAddr> {
    let kinds = [
        (cluster_ip(NUMBER), SERVICE_PORT),
        (external_ip(NUMBER), SERVICE_PORT),
        (load_balancer_ip(NUMBER), SERVICE_PORT),
        (NODE, node_port(NUMBER)),
    ];
    kinds
        .into_iter()
        .flat_map(|(address, port)| address.both().map(|ip| (ip, port).into()))
}

/// S-118 to S-122, S-147: a flow moves on when its endpoint goes, waits for the first one to come,
/// and stays where it is while its endpoint serves.
#[test]
fn flows_follow_the_endpoints() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_udp(&[]);
        let daemon = bed.start_proxy();
        for to in destinations() {
            bed.wait_for_answer(to, "refused");
        }
        bed.put_udp(&[POD1]);
        for to in destinations() {
            bed.wait_for_answer(to, "pod1");
        }
        // Others come: each flow stays (by chance, one in four would).
        bed.put_udp(&[POD1, POD2, POD3]);
        sleep(Duration::from_millis(300));
        for to in destinations() {
            assert_eq!(bed.send(to).to_string(), "pod1", "{to}\n{}", daemon.log());
        }
        // Its endpoint goes.
        bed.put_udp(&[POD2]);
        for to in destinations() {
            bed.wait_for_answer(to, "pod2");
        }
        // All go, so that there is nobody to move to.
        bed.put_udp(&[]);
        for to in destinations() {
            bed.wait_for_answer(to, "refused");
        }
        bed.put_udp(&[POD3]);
        for to in destinations() {
            bed.wait_for_answer(to, "pod3");
        }
        // The Service goes, and with it what leads to its endpoints.
        bed.manifests.remove("udp").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        for (family, address) in [("ipv4", "10.244.1.13"), ("ipv6", "fd00:10:244:1::13")] {
            while !bed.entries(family, address).is_empty() {
                let left = bed.entries(family, address);
                assert!(Instant::now() < deadline, "{left:?}");
                sleep(Duration::from_millis(20));
            }
        }
    });
}

/// S-123: a flow to another host whose port is the number of a NodePort is nobody's business.
#[test]
fn flows_of_others_are_left_alone() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_udp(&[POD1]);
        let _daemon = bed.start_proxy();
        // It passes through the node, from a pod to another node.
        let to: SocketAddr = (NODE2.v4, node_port(NUMBER)).into();
        let _server = Server::start(&bed.lab.node2, "node2", Protocol::Udp, to).unwrap();
        let outcome = probe(&bed.lab.pods[2], Protocol::Udp, to, ProbeOptions::default());
        assert_eq!(outcome.to_string(), "node2");
        let through: SocketAddr = (NODE.v4, node_port(NUMBER)).into();
        bed.wait_for_answer(through, "pod1");
        let foreign = format!("dst={}", NODE2.v4);
        let before = bed.entries("ipv4", &foreign).len();
        assert_eq!(before, 1);
        bed.put_udp(&[POD2]);
        bed.wait_for_answer(through, "pod2");
        assert_eq!(bed.entries("ipv4", &foreign).len(), before);
    });
}

/// S-82, S-124: a flow that started before anybody stopped it is forgotten once it is known to lead
/// into a ServiceCIDR; one to elsewhere goes on.
#[test]
fn one_way_flows_into_a_service_cidr_are_forgotten_at_start() {
    in_sandbox(|| {
        let bed = Bed::new();
        // Without any rule that asks for it, the kernel tracks nothing.
        let track = "table inet track {
            chain c {
                type filter hook forward priority 0
                ct state new accept
            }
        }";
        bed.lab
            .node
            .exec_with_input(&["nft", "-f", "-"], track)
            .unwrap();
        let unallocated = cluster_ip(99);
        let elsewhere = Dual {
            v4: [203, 0, 113, 9].into(),
            v6: "2001:db8:99::9".parse().unwrap(),
        };
        let n_entries = |to: Dual| {
            let [v4, v6] = to.both().map(|ip| format!("dst={ip}"));
            (
                bed.entries("ipv4", &v4).len(),
                bed.entries("ipv6", &v6).len(),
            )
        };
        for ip in [unallocated.both(), elsewhere.both()].concat() {
            assert_eq!(bed.send((ip, SERVICE_PORT).into()).to_string(), "timeout");
        }
        assert_eq!(n_entries(unallocated), (1, 1));
        assert_eq!(n_entries(elsewhere), (1, 1));
        bed.manifests.put("cidrs", &[service_cidr()]).unwrap();
        let _daemon = bed.start_proxy();
        let deadline = Instant::now() + Duration::from_secs(10);
        while n_entries(unallocated) != (0, 0) {
            assert!(Instant::now() < deadline, "{:?}", n_entries(unallocated));
            sleep(Duration::from_millis(20));
        }
        assert_eq!(n_entries(elsewhere), (1, 1));
    });
}
