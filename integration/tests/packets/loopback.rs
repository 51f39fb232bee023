//! NodePorts on loopback, which the program relays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use integration::lab::NODE;
use integration::manifest::node_port;
use integration::netns::in_sandbox;
use integration::traffic::{Flow, Protocol};

use crate::bed::{Bed, POD1, POD2, REMOTE, Source};

const NUMBER: u8 = 1;
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// O-48, O-176: with the word `localhost` processes of the node reach NodePorts on loopback, in both
/// families, by TCP and UDP, wherever the endpoint is; and nobody else gets anything by it.
#[test]
fn node_ports_are_served_on_loopback_if_asked_for() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("web", NUMBER, &[POD1], |_| {});
        let port = node_port(NUMBER);
        let everybody = [Source::Client, Source::Pod3, Source::Host];
        for (words, elsewhere) in [
            ("primary", "pod1"),
            ("localhost", "refused"),
            ("primary,localhost", "pod1"),
            ("all", "pod1"),
        ] {
            bed.put("web", NUMBER, &[POD1], |_| {});
            let flag = format!("--nodeport-addresses={words}");
            let daemon = bed.start_proxy_with(&[&flag]);
            let is_relayed = words != "primary";
            for ip in LOOPBACK {
                for protocol in PROTOCOLS {
                    let to = SocketAddr::new(ip, port);
                    let wanted = if is_relayed { "pod1" } else { "refused" };
                    bed.check_one(Source::Host, protocol, to, wanted);
                }
            }
            for source in everybody {
                for ip in NODE.both() {
                    bed.check_one(source, Protocol::Tcp, (ip, port).into(), elsewhere);
                }
            }
            if is_relayed {
                follow_changes(&bed, port);
            }
            daemon.stop().unwrap();
        }
    });
}

/// New connections follow the endpoints, those that exist stay, and the port goes with the Service.
fn follow_changes(bed: &Bed, port: u16) {
    let mut flows: Vec<_> = LOOPBACK
        .into_iter()
        .map(|ip| Flow::open(&bed.lab.node, (ip, port).into()).unwrap())
        .collect();
    for (endpoint, server) in [(POD2, "pod2"), (REMOTE, "remote")] {
        bed.put("web", NUMBER, &[endpoint], |_| {});
        for ip in LOOPBACK {
            for protocol in PROTOCOLS {
                bed.check_one(Source::Host, protocol, (ip, port).into(), server);
            }
        }
    }
    for flow in &mut flows {
        assert_eq!(flow.ping().unwrap(), "pod1");
    }
    bed.manifests.remove("web").unwrap();
    for ip in LOOPBACK {
        for protocol in PROTOCOLS {
            bed.check_one(Source::Host, protocol, (ip, port).into(), "refused");
        }
    }
}
