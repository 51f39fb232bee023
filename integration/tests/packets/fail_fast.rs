//! Clients whose endpoint is gone hear of it, rather than hang; nobody else does.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{NODE, PODS};
use integration::manifest::{ENDPOINT_PORT, SERVICE_PORT, cluster_ip, node_port};
use integration::netns::{Namespace, in_sandbox};
use integration::traffic::Flow;

use crate::bed::{Bed, POD1, POD2, POD3, Source, terminating};

const STEADY: u8 = 1;
const PATIENCE: Duration = Duration::from_secs(20);

/// The endpoints that clients are told of, in both families; `None` if there is no such table.
fn told_of(bed: &Bed) -> Option<String> {
    let list = |family| {
        let command = ["nft", "list", "set", family, "nftproxy-gone", "gone"];
        bed.lab.node.exec(&command).ok()
    };
    Some(list("ip")? + &list("ip6")?)
}

#[track_caller]
fn wait_until_told(bed: &Bed, is_it: impl Fn(Option<&str>) -> bool) {
    let start = Instant::now();
    while !is_it(told_of(bed).as_deref()) {
        assert!(start.elapsed() < PATIENCE, "{:?}", told_of(bed));
        sleep(Duration::from_millis(10));
    }
}

/// Nobody on this host answers any more, nor says that nobody does.
fn silence(host: &Namespace) {
    let script =
        "table inet silence { chain input { type filter hook input priority 0; policy drop; }; }";
    host.exec_with_input(&["nft", "-f", "-"], script).unwrap();
}

#[test]
fn clients_of_endpoints_that_are_gone_are_told() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1], |_| {});
        let daemon = bed.start_proxy_with(&["--fail-fast"]);
        let mut translated = Vec::new();
        for ip in cluster_ip(STEADY).both() {
            for source in [Source::Pod3, Source::Host] {
                let to = (ip, SERVICE_PORT).into();
                translated.push((source, to));
            }
        }
        for ip in NODE.both() {
            let to: SocketAddr = (ip, node_port(STEADY)).into();
            translated.push((Source::Client, to));
        }
        let open = |(source, to): (Source, SocketAddr)| {
            let flow = Flow::open(source.namespace(&bed.lab), to).unwrap();
            (source, to, flow)
        };
        let mut translated: Vec<_> = translated.into_iter().map(open).collect();
        let straight = PODS[0]
            .both()
            .map(|ip| (Source::Pod3, (ip, ENDPOINT_PORT).into()));
        let mut straight: Vec<_> = straight.into_iter().map(open).collect();

        // Whoever terminates is still there.
        bed.put("steady", STEADY, &[terminating(POD1), POD2], |_| {});
        bed.check(&[Source::Pod3], cluster_ip(STEADY), SERVICE_PORT, "pod2");
        assert_eq!(told_of(&bed), None, "{}", daemon.log());
        for (source, to, flow) in translated.iter_mut().chain(&mut straight) {
            let answer = flow.ping().unwrap();
            assert_eq!(answer, "pod1", "{source:?} to {to}");
        }

        silence(&bed.lab.pods[0]);
        bed.put("steady", STEADY, &[POD2], |_| {});
        let pod1 = PODS[0]
            .both()
            .map(|ip| format!("{ip} . tcp . {ENDPOINT_PORT}"));
        wait_until_told(&bed, |told| {
            told.is_some_and(|told| pod1.iter().all(|pod1| told.contains(pod1)))
        });
        for (source, to, flow) in &mut translated {
            let error = flow.ping().unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "{source:?} to {to}: {error}"
            );
        }
        for (source, to, flow) in &mut straight {
            let error = flow.ping().unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::WouldBlock,
                "{source:?} to {to}: {error}"
            );
        }
        // New connections are led elsewhere, and established ones go on.
        bed.check(
            &[Source::Pod3, Source::Host],
            cluster_ip(STEADY),
            SERVICE_PORT,
            "pod2",
        );
        let to = (cluster_ip(STEADY).v4, SERVICE_PORT).into();
        let mut other = Flow::open(&bed.lab.pods[2], to).unwrap();
        assert_eq!(other.ping().unwrap(), "pod2");

        // An address that is used again is not told of, and without any there is no table.
        bed.lab.pods[0]
            .exec(&["nft", "delete", "table", "inet", "silence"])
            .unwrap();
        bed.put("steady", STEADY, &[POD1, POD2], |_| {});
        wait_until_told(&bed, |told| told.is_none());
        bed.check_spread(
            Source::Pod3,
            cluster_ip(STEADY),
            SERVICE_PORT,
            &["pod1", "pod2"],
        );

        // Somebody's hands in the table cost nobody anything for long.
        bed.put("steady", STEADY, &[POD2, POD3], |_| {});
        wait_until_told(&bed, |told| told.is_some());
        bed.lab.node.exec(&["nft", "flush", "ruleset"]).unwrap();
        bed.put("steady", STEADY, &[POD3], |_| {});
        let gone = [PODS[0], PODS[1]].map(|pod| format!("{} . tcp . {ENDPOINT_PORT}", pod.v4));
        wait_until_told(&bed, |told| {
            told.is_some_and(|told| gone.iter().all(|gone| told.contains(gone)))
        });
        bed.check(&[Source::Pod3], cluster_ip(STEADY), SERVICE_PORT, "pod3");

        // What a process leaves behind is taken over by the next one, and deleted by one that is not
        // to tell anybody.
        let stop = |daemon: integration::daemon::Daemon| {
            daemon.stop().unwrap();
        };
        stop(daemon);
        bed.put("steady", STEADY, &[POD2, POD3], |_| {});
        let daemon = bed.start_proxy_with(&["--fail-fast"]);
        wait_until_told(&bed, |told| {
            told.is_some_and(|told| told.contains(&gone[0]) && !told.contains(&gone[1]))
        });
        stop(daemon);
        let daemon = bed.start_proxy();
        wait_until_told(&bed, |told| told.is_none());
        stop(daemon);
    });
}
