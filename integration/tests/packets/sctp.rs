//! What is particular to SCTP, where the kernel has it: what connection tracking makes of associations,
//! and hosts with several addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::CLIENT;
use integration::manifest::{ENDPOINT_PORT, SERVICE_PORT, cluster_ip};
use integration::netns::{in_sandbox, unsupported};
use integration::traffic::{Flow, Outcome, ProbeOptions, Protocol, Server, probe};

use crate::bed::{Bed, POD1, POD2, Source};

const NUMBER: u8 = 1;

/// A bed with SCTP; `None` if this kernel has none, which is told.
fn bed() -> Option<Bed> {
    let bed = Bed::new();
    if !bed.protocols.contains(&Protocol::Sctp) {
        unsupported("this kernel has no sctp");
        return None;
    }
    Some(bed)
}

/// An association from a port whose last one connection tracking still knows goes where that went,
/// whatever the rules say: the kernel gives up such an entry for TCP only.
#[test]
fn a_port_that_is_used_again_goes_where_it_went() {
    in_sandbox(|| {
        let Some(bed) = bed() else { return };
        bed.put("web", NUMBER, &[POD1], |_| {});
        let _daemon = bed.start_proxy();
        let to = SocketAddr::from((cluster_ip(NUMBER).v4, SERVICE_PORT));
        let from = SocketAddr::from((CLIENT.v4, 32_000));
        let ask = || {
            let options = ProbeOptions {
                from: Some(from),
                ..ProbeOptions::default()
            };
            probe(&bed.lab.client, Protocol::Sctp, to, options)
        };
        assert_eq!(ask().to_string(), "pod1");
        bed.put("web", NUMBER, &[POD2], |_| {});
        bed.check_one(Source::Client, Protocol::Sctp, to, "pod2");
        // Either the old way or, as the entry is closing, not at all.
        let outcome = ask();
        let is_old = matches!(&outcome, Outcome::Answer { server, .. } if server == "pod1");
        assert!(is_old || matches!(outcome, Outcome::Timeout), "{outcome}");
        // Once the entry is gone, the rules hold.
        bed.lab.node.exec(&["conntrack", "-F"]).unwrap();
        assert_eq!(ask().to_string(), "pod2");
    });
}

/// An association with an endpoint that has several addresses uses them all, and goes on when the
/// first one fails; nothing of ours is in its way.
#[test]
fn the_other_addresses_of_a_host_are_left_alone() {
    in_sandbox(|| {
        const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 111);
        let Some(mut bed) = bed() else { return };
        let second = format!("{SECOND}/32");
        let pod = &bed.lab.pods[0];
        pod.exec(&["ip", "addr", "add", &second, "dev", "eth0"])
            .unwrap();
        bed.lab
            .node
            .exec(&["ip", "route", "add", &second, "dev", "pod1"])
            .unwrap();
        // A failed way is given up at its first silence.
        for (key, value) in [
            ("path_max_retrans", "1"),
            ("rto_min", "200"),
            ("rto_initial", "500"),
            ("hb_interval", "1000"),
        ] {
            for host in [&bed.lab.client, &bed.lab.pods[0]] {
                host.sysctl(&format!("net.sctp.{key}"), value).unwrap();
            }
        }
        bed.stop_servers("pod1");
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT));
        let server = Server::start(&bed.lab.pods[0], "many", Protocol::Sctp, anywhere);
        let _server = server.unwrap();
        bed.put("web", NUMBER, &[POD1], |_| {});
        let _daemon = bed.start_proxy();

        let to = SocketAddr::from((POD1.address.v4, ENDPOINT_PORT));
        let mut flow = Flow::open_by(&bed.lab.client, Protocol::Sctp, to).unwrap();
        flow.set_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(flow.ping().unwrap(), "many");
        // The client asks all addresses that it was told of whether they are there.
        let deadline = Instant::now() + Duration::from_secs(20);
        let known = || {
            let list = bed
                .lab
                .node
                .exec(&["conntrack", "-L", "-p", "sctp"])
                .unwrap();
            list.contains(&format!("dst={SECOND}"))
        };
        while !known() {
            assert!(Instant::now() < deadline, "nobody asked for {SECOND}");
            sleep(Duration::from_millis(50));
        }
        sleep(Duration::from_secs(1));
        // The first address ends.
        bed.lab
            .node
            .exec_with_input(
                &["nft", "-f", "-"],
                &format!(
                    "table ip cut {{
                         chain forward {{
                             type filter hook forward priority 0
                             ip daddr {} drop
                         }}
                     }}",
                    POD1.address.v4
                ),
            )
            .unwrap();
        assert_eq!(flow.ping().unwrap(), "many");
    });
}
