//! UDP flows: what a client with a fixed source port experiences, which never opens a connection
//! anew, and what is left in connection tracking.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{Dual, NODE, NODE2};
use integration::manifest::{
    Conditions, ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, node_port, service,
    service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, Server, probe};

use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, POD3, REMOTE, Source, destination_addresses, placeless, with};

const NUMBER: u8 = 1;
const CLIENT_PORT: u16 = 40000;

impl Bed {
    fn put_udp(&self, endpoints: &[Endpoint]) {
        self.put("udp", NUMBER, endpoints, |_| {});
    }

    /// Sends one datagram of the source's one flow to a destination.
    fn send(&self, source: Source, to: SocketAddr) -> Outcome {
        let anywhere = if to.is_ipv4() {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let options = ProbeOptions {
            from: Some((anywhere, CLIENT_PORT).into()),
            timeout: Duration::from_millis(300),
        };
        probe(source.namespace(&self.lab), Protocol::Udp, to, options)
    }

    /// Waits until the flow of each of these sources to each destination is answered by somebody.
    #[track_caller]
    fn wait_for_answers(&self, sources: &[Source], wanted: &str) {
        for source in sources {
            for to in destination_addresses(NUMBER) {
                self.wait_for_answer(*source, to, wanted);
            }
        }
    }

    #[track_caller]
    fn wait_for_answer(&self, source: Source, to: SocketAddr, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = self.send(source, to).to_string();
            if found == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "from {source:?} to {to}: waited for {wanted}, last was {found}"
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// The entries of the node that hold this text.
    pub(crate) fn entries(&self, family: &str, text: &str) -> Vec<String> {
        let all = self.entries_of_all(family, text);
        let is_udp = |entry: &String| entry.trim_start().starts_with("udp ");
        all.into_iter().filter(is_udp).collect()
    }

    /// The same of all protocols.
    fn entries_of_all(&self, family: &str, text: &str) -> Vec<String> {
        let listing = self
            .lab
            .node
            .exec(&["conntrack", "-L", "-f", family])
            .unwrap();
        listing
            .lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

/// S-118 to S-122, S-147: a flow moves on when its endpoint goes, waits for the first one to come,
/// and stays where it is while its endpoint serves. It may come from a pod, the host, or outside.
#[test]
fn flows_follow_the_endpoints() {
    const SOURCES: &[Source] = &[Source::Client, Source::Pod1, Source::Host];
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_udp(&[]);
        let daemon = bed.start_proxy();
        bed.wait_for_answers(SOURCES, "refused");
        // It is not up yet, and nobody is asked.
        bed.put_udp(&[with(POD1, Conditions::UNREADY)]);
        bed.wait_for_answers(SOURCES, "refused");
        bed.put_udp(&[POD1]);
        bed.wait_for_answers(SOURCES, "pod1");
        // Others come: each flow stays (by chance, one in four would).
        bed.put_udp(&[POD1, POD2, POD3]);
        sleep(Duration::from_millis(300));
        for source in SOURCES {
            for to in destination_addresses(NUMBER) {
                let server = bed.send(*source, to).to_string();
                assert_eq!(server, "pod1", "{source:?} to {to}\n{}", daemon.log());
            }
        }
        // Its endpoint goes.
        bed.put_udp(&[POD2]);
        bed.wait_for_answers(SOURCES, "pod2");
        // All go, so that there is nobody to move to.
        bed.put_udp(&[]);
        bed.wait_for_answers(SOURCES, "refused");
        bed.put_udp(&[POD3]);
        bed.wait_for_answers(SOURCES, "pod3");
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

/// S-147, where the ClusterIP has policy Local: flows wait for an endpoint on the node.
#[test]
fn flows_wait_for_an_endpoint_on_the_node() {
    in_sandbox(|| {
        let bed = Bed::new();
        let put = |endpoints: &[Endpoint]| {
            bed.put("udp", NUMBER, endpoints, |service| {
                service["spec"]["internalTrafficPolicy"] = json!("Local");
            });
        };
        let check = |wanted| {
            for source in [Source::Pod3, Source::Host] {
                for ip in cluster_ip(NUMBER).both() {
                    bed.wait_for_answer(source, (ip, SERVICE_PORT).into(), wanted);
                }
            }
        };
        put(&[]);
        let _daemon = bed.start_proxy();
        check("refused");
        put(&[POD1]);
        check("pod1");
        put(&[POD2, REMOTE]);
        check("pod2");
    });
}

/// S-121, S-119: whatever happens to its Service, a flow stays with an endpoint that serves.
#[test]
fn flows_stay_with_whoever_serves() {
    in_sandbox(|| {
        const SOURCES: &[Source] = &[Source::Client, Source::Pod3];
        /// A Service without flows, which shows that a change has come into force.
        const OTHER: u8 = 2;
        let bed = Bed::new();
        let mut daemon = Some(bed.start_proxy());
        bed.put_udp(&[POD1]);
        bed.wait_for_answers(SOURCES, "pod1");
        let local = |service: &mut Value| {
            service["spec"]["internalTrafficPolicy"] = json!("Local");
            service["spec"]["externalTrafficPolicy"] = json!("Local");
        };
        let sticky = |service: &mut Value| service["spec"]["sessionAffinity"] = json!("ClientIP");
        let hinted = Endpoint {
            for_zone: Some("elsewhere"),
            ..POD1
        };
        let unchanged = |_: &mut Value| {};
        type Change<'a> = &'a dyn Fn(&mut Value);
        let steps: [(&[Endpoint], Change<'_>); 9] = [
            (&[POD1, POD2, POD3], &unchanged),
            (&[POD1, POD2], &unchanged),
            (&[with(POD1, Conditions::SERVING), POD2], &unchanged),
            (&[with(POD1, Conditions::SERVING)], &unchanged),
            (&[with(POD1, Conditions::TERMINATING), POD2], &unchanged),
            (&[hinted, POD2], &unchanged),
            (&[placeless(POD1), POD2], &local),
            (&[placeless(POD1), REMOTE], &local),
            (&[POD1, POD2], &sticky),
        ];
        for (step, (endpoints, change)) in steps.into_iter().enumerate() {
            bed.put("udp", NUMBER, endpoints, change);
            // The two are synced in this order, and flows forgotten right after.
            let server = if step % 2 == 0 { POD2 } else { POD3 };
            bed.put("other", OTHER, &[server], |_| {});
            let name = if step % 2 == 0 { "pod2" } else { "pod3" };
            bed.check(&[Source::Client], cluster_ip(OTHER), SERVICE_PORT, name);
            if step == 4 {
                daemon.take().unwrap().stop().unwrap();
                daemon = Some(bed.start_proxy());
            }
            for _ in 0..3 {
                sleep(Duration::from_millis(50));
                for source in SOURCES {
                    for to in destination_addresses(NUMBER) {
                        let found = bed.send(*source, to).to_string();
                        assert_eq!(found, "pod1", "step {step}: {source:?} to {to}");
                    }
                }
            }
        }
        // That nothing was forgotten was not for want of somebody who does it.
        bed.put_udp(&[POD2]);
        bed.wait_for_answers(SOURCES, "pod2");
    });
}

/// S-148, S-120: a flow follows when its endpoint changes its port number.
#[test]
fn flows_follow_a_changed_target_port() {
    in_sandbox(|| {
        const OTHER_PORT: u16 = 8081;
        const SOURCES: &[Source] = &[Source::Client, Source::Pod3, Source::Host];
        let mut bed = Bed::new();
        bed.serve(|lab| &lab.pods[0], "pod1-other", POD1.address, OTHER_PORT);
        let put = |target: u16| {
            let mut objects = vec![service("udp", NUMBER)];
            objects.extend(slices("udp", &[POD1]).map(|mut slice| {
                for port in slice["ports"].as_array_mut().unwrap() {
                    port["port"] = json!(target);
                }
                slice
            }));
            bed.manifests.put("udp", &objects).unwrap();
        };
        put(ENDPOINT_PORT);
        let _daemon = bed.start_proxy();
        bed.wait_for_answers(SOURCES, "pod1");
        put(OTHER_PORT);
        bed.wait_for_answers(SOURCES, "pod1-other");
        put(ENDPOINT_PORT);
        bed.wait_for_answers(SOURCES, "pod1");
    });
}

/// S-81: a refused datagram of the host leaves nothing behind that its next one would follow.
#[test]
fn refused_datagrams_leave_no_flow() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_udp(&[]);
        let _daemon = bed.start_proxy();
        for to in destination_addresses(NUMBER) {
            for source in [Source::Host, Source::Pod3, Source::Client] {
                bed.wait_for_answer(source, to, "refused");
            }
        }
        for family in ["ipv4", "ipv6"] {
            let left = bed.entries(family, &format!("sport={CLIENT_PORT} "));
            assert!(left.is_empty(), "{left:?}");
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
        bed.wait_for_answer(Source::Client, through, "pod1");
        let foreign = format!("dst={}", NODE2.v4);
        let before = bed.entries("ipv4", &foreign).len();
        assert_eq!(before, 1);
        bed.put_udp(&[POD2]);
        bed.wait_for_answer(Source::Client, through, "pod2");
        assert_eq!(bed.entries("ipv4", &foreign).len(), before);
    });
}

/// S-82, S-124: a flow that started before anybody stopped it is forgotten once it is known to lead
/// into a ServiceCIDR, be it of UDP or TCP; one to elsewhere goes on.
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
                bed.entries_of_all("ipv4", &v4).len(),
                bed.entries_of_all("ipv6", &v6).len(),
            )
        };
        for ip in [unallocated.both(), elsewhere.both()].concat() {
            let to = (ip, SERVICE_PORT).into();
            assert_eq!(bed.send(Source::Client, to).to_string(), "timeout");
            let options = ProbeOptions {
                timeout: Duration::from_millis(300),
                ..ProbeOptions::default()
            };
            let client = Source::Client.namespace(&bed.lab);
            let outcome = probe(client, Protocol::Tcp, to, options);
            assert_eq!(outcome.to_string(), "timeout");
        }
        assert_eq!(n_entries(unallocated), (2, 2));
        assert_eq!(n_entries(elsewhere), (2, 2));
        bed.manifests.put("cidrs", &[service_cidr()]).unwrap();
        let _daemon = bed.start_proxy();
        let deadline = Instant::now() + Duration::from_secs(10);
        while n_entries(unallocated) != (0, 0) {
            assert!(Instant::now() < deadline, "{:?}", n_entries(unallocated));
            sleep(Duration::from_millis(20));
        }
        assert_eq!(n_entries(elsewhere), (2, 2));
    });
}
