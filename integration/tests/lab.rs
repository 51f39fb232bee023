//! The lab alone, without any proxy: what it promises to the packet tests has to hold first.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers belong to tests, where a panic is a failure"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{
    CLIENT, Dual, Lab, NODE, NODE_SECOND, NODE2, POD_GATEWAY, PODS, REMOTE_POD,
};
use integration::netns::{Namespace, in_sandbox, unsupported};
use integration::traffic::{
    Counts, Flow, Outcome, ProbeOptions, Protocol, Server, Stream, probe, probe_many,
};

const PORT: u16 = 8080;

/// A wait short enough for tests that expect no answer.
const BRIEFLY: ProbeOptions = ProbeOptions {
    from: None,
    timeout: Duration::from_millis(200),
};

/// Serves both families on [`PORT`].
fn serve(namespace: &Namespace, name: &str, protocol: Protocol) -> Server {
    Server::start(
        namespace,
        name,
        protocol,
        (Ipv6Addr::UNSPECIFIED, PORT).into(),
    )
    .unwrap()
}

fn load(namespace: &Namespace, ruleset: &str) {
    namespace
        .exec_with_input(&["nft", "-f", "-"], ruleset)
        .unwrap();
}

#[track_caller]
fn check_answer(outcome: Outcome, expected_server: &str, expected_source: IpAddr) {
    match outcome {
        Outcome::Answer {
            server,
            seen_source,
        } => {
            assert_eq!(
                (server.as_str(), seen_source),
                (expected_server, expected_source)
            );
        }
        other => panic!("expected an answer of {expected_server}, got {other:?}"),
    }
}

#[test]
fn everyone_reaches_everyone_and_keeps_its_address() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let _servers = [
                serve(&lab.node, "node", protocol),
                serve(&lab.client, "client", protocol),
                serve(&lab.pods[0], "pod1", protocol),
                serve(&lab.pods[1], "pod2", protocol),
                serve(&lab.pods[2], "pod3", protocol),
                serve(&lab.remote_pod, "remote", protocol),
            ];
            let paths: [(&Namespace, Dual, &str, Dual); 11] = [
                (&lab.client, CLIENT, "node", NODE),
                (&lab.client, CLIENT, "pod1", PODS[0]),
                (&lab.client, CLIENT, "remote", REMOTE_POD),
                (&lab.pods[0], PODS[0], "pod2", PODS[1]),
                (&lab.pods[1], PODS[1], "pod3", PODS[2]),
                (&lab.pods[0], PODS[0], "remote", REMOTE_POD),
                (&lab.pods[0], PODS[0], "client", CLIENT),
                (&lab.remote_pod, REMOTE_POD, "pod1", PODS[0]),
                (&lab.node, POD_GATEWAY, "pod3", PODS[2]),
                (&lab.node, NODE, "client", CLIENT),
                (&lab.node2, NODE2, "node", NODE),
            ];
            for (from, source, server, to) in paths {
                for (source, to) in source.both().into_iter().zip(to.both()) {
                    let to = SocketAddr::new(to, PORT);
                    let outcome = probe(from, protocol, to, ProbeOptions::default());
                    check_answer(outcome, server, source);
                }
            }
        }
    });
}

#[test]
fn servers_and_probes_use_the_address_they_are_given() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        for (second, client) in NODE_SECOND.both().into_iter().zip(CLIENT.both()) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let server =
                    Server::start(&lab.node, "second", protocol, (second, 0).into()).unwrap();
                let from = SocketAddr::new(client, 4321);
                let options = ProbeOptions {
                    from: Some(from),
                    ..BRIEFLY
                };
                // The answer to a connected UDP socket only arrives if it is from this address.
                let outcome = probe(&lab.client, protocol, server.address(), options);
                check_answer(outcome, "second", client);
            }
        }
    });
}

#[test]
fn refused_and_timeout_are_told_apart() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for address in PODS[0].both() {
                let outcome = probe(&lab.client, protocol, (address, PORT).into(), BRIEFLY);
                assert!(
                    matches!(outcome, Outcome::Refused),
                    "{protocol} {address}: {outcome:?}"
                );
            }
            // Unknown addresses end at the client, which drops what is not for it.
            for address in ["10.96.0.1", "fd00:10:96::1"] {
                let to = SocketAddr::new(address.parse().unwrap(), PORT);
                let outcome = probe(&lab.pods[0], protocol, to, BRIEFLY);
                assert!(
                    matches!(outcome, Outcome::Timeout),
                    "{protocol} {to}: {outcome:?}"
                );
            }
        }
    });
}

#[test]
fn drop_and_reject_are_told_apart_on_the_way_and_at_the_sender() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        for (hook, from) in [("forward", &lab.pods[0]), ("output", &lab.node)] {
            load(
                &lab.node,
                &format!(
                    "flush ruleset
                     table inet t {{
                         chain c {{
                             type filter hook {hook} priority 0
                             meta l4proto {{ tcp, udp }} th dport 1 drop
                             meta l4proto {{ tcp, udp }} th dport 2 reject
                         }}
                     }}"
                ),
            );
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for address in PODS[1].both() {
                    let [dropped, rejected] =
                        [1, 2].map(|port| probe(from, protocol, (address, port).into(), BRIEFLY));
                    let case = format!("{protocol} {address} in {hook}");
                    assert!(matches!(dropped, Outcome::Timeout), "{case}: {dropped:?}");
                    assert!(matches!(rejected, Outcome::Refused), "{case}: {rejected:?}");
                    let counts = probe_many(from, protocol, (address, 2).into(), 60);
                    assert_eq!(counts, Counts::from([("refused".to_owned(), 60)]), "{case}");
                }
            }
        }
    });
}

#[test]
fn destination_nat_spreads_connections_over_the_pods() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        load(
            &lab.node,
            "table inet t {
                 chain c {
                     type nat hook prerouting priority dstnat
                     ip daddr 10.96.0.1 dnat ip to numgen random mod 3 map {
                         0 : 10.244.1.11, 1 : 10.244.1.12, 2 : 10.244.1.13
                     }
                     ip6 daddr fd00:10:96::1 dnat ip6 to numgen random mod 3 map {
                         0 : fd00:10:244:1::11, 1 : fd00:10:244:1::12, 2 : fd00:10:244:1::13
                     }
                 }
             }",
        );
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let names = ["pod1", "pod2", "pod3"];
            let _servers: Vec<_> = lab
                .pods
                .iter()
                .zip(names)
                .map(|(pod, name)| serve(pod, name, protocol))
                .collect();
            for address in ["10.96.0.1", "fd00:10:96::1"] {
                let to = SocketAddr::new(address.parse().unwrap(), PORT);
                let counts = probe_many(&lab.client, protocol, to, 300);
                assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), names);
                // Six standard deviations around the mean of 100.
                let spread = counts.values().all(|count| (51..=149).contains(count));
                assert!(spread, "{protocol} {to}: {counts:?}");
            }
        }
    });
}

#[test]
fn a_flow_stays_with_its_server_and_notices_its_end() {
    in_sandbox(|| {
        let namespace = Namespace::new("lone").unwrap();
        let old = serve(&namespace, "old", Protocol::Tcp);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let mut flows = [1, 2].map(|_| Flow::open(&namespace, to).unwrap());
        for _ in 0..3 {
            for flow in &mut flows {
                assert_eq!(flow.ping().unwrap(), "old");
            }
        }

        let begin = Instant::now();
        drop(old);
        assert!(
            begin.elapsed() < Duration::from_millis(500),
            "took {:?}",
            begin.elapsed()
        );
        assert!(matches!(
            probe(&namespace, Protocol::Tcp, to, BRIEFLY),
            Outcome::Refused
        ));
        flows[0].ping().unwrap_err();

        let _new = serve(&namespace, "new", Protocol::Tcp);
        assert_eq!(Flow::open(&namespace, to).unwrap().ping().unwrap(), "new");
    });
}

#[test]
fn a_stream_shows_a_gap() {
    in_sandbox(|| {
        let namespace = Namespace::new("lone").unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let server = serve(&namespace, "here", protocol);
            let stream = Stream::start(&namespace, protocol, (Ipv6Addr::LOCALHOST, PORT).into());
            sleep(Duration::from_millis(200));
            drop(server);
            // A probe the server took in but did not get to answer waits for a second in vain.
            sleep(Duration::from_millis(1200));
            let counts = stream.stop();
            let saw_both = counts.contains_key("here") && counts.contains_key("refused");
            assert!(saw_both, "{protocol}: {counts:?}");
        }
    });
}

#[test]
fn sctp_works_where_the_kernel_has_it() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        for address in PODS[0].both() {
            let to = SocketAddr::new(address, PORT);
            let _server = match Server::start(&lab.pods[0], "pod1", Protocol::Sctp, to) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return unsupported(&error.to_string());
                }
                started => started.unwrap(),
            };
            let outcome = probe(&lab.client, Protocol::Sctp, to, ProbeOptions::default());
            check_answer(
                outcome,
                "pod1",
                CLIENT.both()[usize::from(address.is_ipv6())],
            );
            let counts = probe_many(&lab.client, Protocol::Sctp, to, 3);
            assert_eq!(counts, Counts::from([("pod1".to_owned(), 3)]));
            let closed = (address, PORT + 1).into();
            let outcome = probe(&lab.client, Protocol::Sctp, closed, BRIEFLY);
            assert!(matches!(outcome, Outcome::Refused), "{outcome:?}");
        }
    });
}

#[test]
fn namespaces_are_apart_from_each_other() {
    in_sandbox(|| {
        let [one, other] = ["one", "other"].map(|label| Namespace::new(label).unwrap());
        let forwarding = |namespace: &Namespace| {
            namespace
                .exec(&["cat", "/proc/sys/net/ipv4/ip_forward"])
                .unwrap()
        };
        one.sysctl("net.ipv4.ip_forward", "1").unwrap();
        other.sysctl("net.ipv4.ip_forward", "0").unwrap();
        assert_eq!(
            (forwarding(&one).trim(), forwarding(&other).trim()),
            ("1", "0")
        );

        let _server = serve(&one, "one", Protocol::Tcp);
        let to = (Ipv4Addr::LOCALHOST, PORT).into();
        assert!(matches!(
            probe(&other, Protocol::Tcp, to, BRIEFLY),
            Outcome::Refused
        ));

        one.sysctl("kernel.hostname", "x").unwrap_err();
    });
}

#[test]
fn a_failing_program_is_quoted_in_the_error() {
    in_sandbox(|| {
        let namespace = Namespace::new("lone").unwrap();
        let error = format!(
            "{:#}",
            namespace.exec(&["ip", "link", "show", "eth7"]).unwrap_err()
        );
        assert!(
            error.contains("`ip link show eth7` in namespace lone"),
            "{error}"
        );
        assert!(error.contains("does not exist"), "{error}");
        let error = format!("{:#}", namespace.exec(&["no-such-program"]).unwrap_err());
        assert!(error.contains("no-such-program"), "{error}");
    });
}
