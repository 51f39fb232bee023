//! Session affinity by client address: clients keep their endpoint while it is there.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{Dual, NODE};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Counts, Protocol, probe_many};
use serde_json::json;

use crate::bed::{Bed, HOST_NETWORK, POD1, POD2, POD3, Source};

const NUMBER: u8 = 1;
/// Among three endpoints, that many connections without affinity meet one alone with a chance of
/// less than 1e-9.
const N_PROBES: usize = 20;

impl Bed {
    fn put_sticky(&self, timeout: Option<u32>, endpoints: &[Endpoint]) {
        let mut service = service("sticky", NUMBER);
        if let Some(seconds) = timeout {
            service["spec"]["sessionAffinity"] = json!("ClientIP");
            service["spec"]["sessionAffinityConfig"] =
                json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        let [v4, v6] = slices("sticky", endpoints);
        self.manifests.put("sticky", &[service, v4, v6]).unwrap();
    }

    fn ask(&self, source: Source, protocol: Protocol, to: SocketAddr, n: usize) -> Counts {
        probe_many(source.namespace(&self.lab), protocol, to, n)
    }

    /// The one endpoint that answers all connections.
    #[track_caller]
    fn the_one(&self, source: Source, protocol: Protocol, to: SocketAddr) -> String {
        let counts = self.ask(source, protocol, to, N_PROBES);
        assert_eq!(
            counts.len(),
            1,
            "{protocol} from {source:?} to {to}: {counts:?}"
        );
        counts.into_keys().next().unwrap()
    }
}

fn destinations() -> [(Dual, u16); 4] {
    [
        (cluster_ip(NUMBER), SERVICE_PORT),
        (external_ip(NUMBER), SERVICE_PORT),
        (load_balancer_ip(NUMBER), SERVICE_PORT),
        (NODE, node_port(NUMBER)),
    ]
}

/// S-95, S-98, S-100: every source at every kind of destination, in both families and protocols,
/// keeps its endpoint; over changes of others and a restart of the proxy; until it goes.
#[test]
fn clients_keep_their_endpoint_while_it_is_there() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_sticky(Some(600), &[POD1, POD2, HOST_NETWORK]);
        let daemon = bed.start_proxy();
        let mut kept = Vec::new();
        for source in [
            Source::Client,
            Source::Pod3,
            Source::Host,
            Source::RemotePod,
        ] {
            for (address, port) in destinations() {
                for ip in address.both() {
                    for protocol in &bed.protocols {
                        let to = SocketAddr::new(ip, port);
                        kept.push((source, *protocol, to, bed.the_one(source, *protocol, to)));
                    }
                }
            }
        }
        // An endpoint more, and another proxy process, change nothing.
        bed.put_sticky(Some(600), &[POD1, POD2, POD3, HOST_NETWORK]);
        sleep(Duration::from_millis(300));
        daemon.stop().unwrap();
        let _daemon = bed.start_proxy();
        for (source, protocol, to, server) in &kept {
            assert_eq!(
                bed.the_one(*source, *protocol, *to),
                *server,
                "{protocol} from {source:?} to {to}"
            );
        }
        // Those of an endpoint that goes are spread anew, and keep what they get; others stay.
        bed.put_sticky(Some(600), &[POD2, POD3, HOST_NETWORK]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while kept.iter().any(|(source, protocol, to, server)| {
            server == "pod1" && bed.ask(*source, *protocol, *to, 1).contains_key("pod1")
        }) {
            assert!(Instant::now() < deadline, "pod1 is still asked");
        }
        // A datagram from a port that was used before belongs to the flow of that time, if pod1's
        // are not forgotten yet.
        let [v4, v6] = POD1.address.both().map(|ip| ip.to_string());
        while !bed.entries("ipv4", &v4).is_empty() || !bed.entries("ipv6", &v6).is_empty() {
            assert!(Instant::now() < deadline, "flows to pod1 are still there");
            sleep(Duration::from_millis(20));
        }
        for (source, protocol, to, server) in &kept {
            let now = bed.the_one(*source, *protocol, *to);
            assert_ne!(now, "pod1");
            if server != "pod1" {
                assert_eq!(now, *server, "{protocol} from {source:?} to {to}");
            }
        }
    });
}

/// S-97, S-130: after its timeout without a new connection a client is forgotten. S-100: switching
/// affinity off spreads connections, and on again makes them stick.
#[test]
fn memory_ends_with_its_timeout_and_with_affinity() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_sticky(Some(1), &[POD1, POD2, POD3]);
        let _daemon = bed.start_proxy();
        let to = [cluster_ip(NUMBER).v4.into(), cluster_ip(NUMBER).v6.into()]
            .map(|ip| SocketAddr::new(ip, SERVICE_PORT));
        for to in to {
            bed.the_one(Source::Client, Protocol::Tcp, to);
            let mut seen = Counts::new();
            for _ in 0..12 {
                sleep(Duration::from_millis(1200));
                seen.extend(bed.ask(Source::Client, Protocol::Tcp, to, 1));
                if seen.len() > 1 {
                    break;
                }
            }
            assert!(
                seen.len() > 1,
                "the choice after the timeout never varies: {seen:?}"
            );
        }
        bed.put_sticky(None, &[POD1, POD2, POD3]);
        let deadline = Instant::now() + Duration::from_secs(10);
        for to in to {
            while bed.ask(Source::Client, Protocol::Tcp, to, N_PROBES).len() < 2 {
                assert!(Instant::now() < deadline, "connections to {to} still stick");
            }
        }
        bed.put_sticky(Some(600), &[POD1, POD2, POD3]);
        for to in to {
            while bed.ask(Source::Client, Protocol::Tcp, to, N_PROBES).len() > 1 {
                assert!(Instant::now() < deadline, "connections to {to} never stick");
            }
        }
    });
}
