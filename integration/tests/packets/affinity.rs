//! Session affinity by client address: clients keep their endpoint while it is there.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::manifest::{Endpoint, SERVICE_PORT, cluster_ip};
use integration::netns::in_sandbox;
use integration::traffic::{Counts, Flow, Protocol, probe_many};
use serde_json::json;

use crate::bed::{
    Bed, HOST_NETWORK, POD1, POD2, POD3, Source, destination_addresses, destinations, terminating,
};

const NUMBER: u8 = 1;
/// Among three endpoints, that many connections without affinity meet one alone with a chance of
/// less than 1e-9.
const N_PROBES: usize = 20;

impl Bed {
    fn put_sticky(&self, timeout: Option<u32>, endpoints: &[Endpoint]) {
        self.put("sticky", NUMBER, endpoints, |service| {
            if let Some(seconds) = timeout {
                service["spec"]["sessionAffinity"] = json!("ClientIP");
                service["spec"]["sessionAffinityConfig"] =
                    json!({"clientIP": {"timeoutSeconds": seconds}});
            }
        });
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
            for (address, port) in destinations(NUMBER) {
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
        let daemon = bed.start_proxy();
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
            assert!(
                Instant::now() < deadline,
                "pod1 is still asked\n{}",
                daemon.log()
            );
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

/// S-97, S-130: after its timeout without a new connection a client is forgotten. S-100, S-129:
/// switching affinity off spreads connections, and on again makes them stick.
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
        let each = |wait: &dyn Fn(Protocol, SocketAddr)| {
            for to in destination_addresses(NUMBER) {
                bed.protocols
                    .iter()
                    .for_each(|protocol| wait(*protocol, to));
            }
        };
        each(&|protocol, to| {
            while bed.ask(Source::Pod3, protocol, to, N_PROBES).len() < 2 {
                assert!(Instant::now() < deadline, "{protocol} to {to} still sticks");
            }
        });
        bed.put_sticky(Some(600), &[POD1, POD2, POD3]);
        each(&|protocol, to| {
            while bed.ask(Source::Pod3, protocol, to, N_PROBES).len() > 1 {
                assert!(Instant::now() < deadline, "{protocol} to {to} never sticks");
            }
        });
    });
}

/// S-96: it is new connections that keep a memory alive, not what goes on inside an old one.
#[test]
fn only_new_connections_refresh_the_memory() {
    in_sandbox(|| {
        const TIMEOUT: Duration = Duration::from_secs(2);
        let bed = Bed::new();
        bed.put_sticky(Some(2), &[POD1, POD2, POD3]);
        let _daemon = bed.start_proxy();
        let to = (cluster_ip(NUMBER).v4, SERVICE_PORT).into();
        let start = Instant::now();
        let mut last = start;
        let mut seen = Counts::new();
        while start.elapsed() < TIMEOUT * 2 {
            seen.extend(bed.ask(Source::Client, Protocol::Tcp, to, 1));
            // A machine that was busy elsewhere has let the memory run out.
            if last.elapsed() > TIMEOUT / 2 {
                seen.clear();
            }
            last = Instant::now();
            assert!(seen.len() < 2, "forgotten too early: {seen:?}");
            sleep(Duration::from_millis(100));
        }

        // Each client has a memory of its own, so that few rounds show that some choices vary.
        const SOURCES: [Source; 4] = [
            Source::Client,
            Source::Pod3,
            Source::RemotePod,
            Source::Node2,
        ];
        for _ in 0..8 {
            let mut flows =
                SOURCES.map(|source| Flow::open(source.namespace(&bed.lab), to).unwrap());
            let servers = flows.each_mut().map(|flow| flow.ping().unwrap());
            let start = Instant::now();
            while start.elapsed() < TIMEOUT + Duration::from_millis(300) {
                assert_eq!(flows.each_mut().map(|flow| flow.ping().unwrap()), servers);
                sleep(Duration::from_millis(50));
            }
            let now = SOURCES.map(|source| {
                let answers = bed.ask(source, Protocol::Tcp, to, 1);
                answers.into_keys().next().unwrap()
            });
            if now != servers {
                return;
            }
        }
        panic!("traffic inside connections keeps the memory");
    });
}

/// S-96: an endpoint that does not answer is remembered like any other.
#[test]
fn an_endpoint_that_refuses_is_remembered() {
    in_sandbox(|| {
        let mut bed = Bed::new();
        bed.stop_servers("pod1");
        bed.put_sticky(Some(600), &[POD1, POD2]);
        let _daemon = bed.start_proxy();
        let mut met = Counts::new();
        for to in destination_addresses(NUMBER) {
            for source in [Source::Client, Source::Pod3, Source::RemotePod] {
                let outcome = bed.the_one(source, Protocol::Tcp, to);
                *met.entry(outcome).or_default() += 1;
            }
        }
        // With 24 choices, one of them is missed by a chance of less than one in 10^7.
        assert!(met.keys().eq(["pod2", "refused"]), "{met:?}");
    });
}

/// S-99: endpoints that terminate and serve on, as there are no others, keep their clients.
#[test]
fn fallback_endpoints_keep_their_clients() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_sticky(Some(600), &[POD1, POD2]);
        let _daemon = bed.start_proxy();
        let mut kept = Vec::new();
        for to in destination_addresses(NUMBER) {
            for source in [Source::Client, Source::Pod3, Source::Host] {
                kept.push((source, to, bed.the_one(source, Protocol::Tcp, to)));
            }
        }
        bed.put_sticky(Some(600), &[terminating(POD1), terminating(POD2)]);
        // A Service without affinity shows that the change is in force.
        let other = NUMBER + 1;
        bed.put("other", other, &[POD3], |_| {});
        bed.check(&[Source::Client], cluster_ip(other), SERVICE_PORT, "pod3");
        for (source, to, server) in kept {
            let now = bed.the_one(source, Protocol::Tcp, to);
            assert_eq!(now, server, "{source:?} to {to}");
        }
    });
}
