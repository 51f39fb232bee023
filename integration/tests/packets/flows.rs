//! UDP flows: what a client with a fixed source port experiences, which never opens a connection
//! anew, and what is left in connection tracking.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{CLIENT, NODE, NODE2};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service, slices,
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
