//! Which endpoints of a Service get its traffic: by their conditions, their slices, and while pods
//! are replaced.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use integration::lab::{NODE, PODS};
use integration::manifest::{
    Conditions, Endpoint, SERVICE_PORT, cluster_ip, load_balancer_ip, node_port, service, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Counts, Protocol, Stream};
use serde_json::{Value, json};

use crate::bed::{
    Bed, POD1, POD2, POD3, REMOTE, Source, destinations, placeless, terminating, with,
};

const NUMBER: u8 = 1;
const OTHER_SERVICE_PORT: u16 = 81;
const OTHER_ENDPOINT_PORT: u16 = 8081;
const SOURCES: &[Source] = &[Source::Client, Source::Pod3, Source::Host];

impl Bed {
    /// Waits until exactly these servers answer at all kinds of destinations.
    #[track_caller]
    fn check_servers(&self, servers: &[&str]) {
        for (address, port) in destinations(NUMBER) {
            for source in SOURCES {
                if servers.is_empty() {
                    self.check(&[*source], address, port, "refused");
                } else {
                    self.check_spread(*source, address, port, servers);
                }
            }
        }
    }
}

/// S-132, S-21 to S-23, O-87: who made a slice does not matter, nor whether it says where its endpoints
/// are; the label of headless Services cuts it off.
#[test]
fn slices_count_by_their_labels_alone() {
    in_sandbox(|| {
        let bed = Bed::new();
        let put = |labels: Value| {
            let [mut v4, mut v6] = slices("web", &[placeless(POD1)]);
            for slice in [&mut v4, &mut v6] {
                let all = slice["metadata"]["labels"].as_object_mut().unwrap();
                all.extend(labels.as_object().unwrap().clone());
            }
            let objects = [service("web", NUMBER), v4, v6];
            bed.manifests.put("web", &objects).unwrap();
        };
        let by_hand = json!({"endpointslice.kubernetes.io/managed-by": "me"});
        let headless = json!({
            "endpointslice.kubernetes.io/managed-by": "me",
            "service.kubernetes.io/headless": "",
        });
        put(by_hand.clone());
        let _daemon = bed.start_proxy();
        bed.check_servers(&["pod1"]);
        put(headless);
        bed.check_servers(&[]);
        put(by_hand);
        bed.check_servers(&["pod1"]);
    });
}

/// S-140, S-32, S-33, S-40: an endpoint that is ready counts, even while it terminates, as with
/// `publishNotReadyAddresses`; without a ready one, those that serve while they terminate do;
/// others never do.
#[test]
fn conditions_decide_who_is_used() {
    in_sandbox(|| {
        use Conditions as C;
        let bed = Bed::new();
        bed.put("web", NUMBER, &[], |_| {});
        let _daemon = bed.start_proxy();
        type Case<'a> = (&'a [(Endpoint, C)], &'a [&'a str]);
        let cases: [Case<'_>; 9] = [
            (&[(POD1, C::UNREADY)], &[]),
            (&[(POD1, C::READY)], &["pod1"]),
            (&[(POD1, C::TERMINATING_YET_READY)], &["pod1"]),
            (
                &[(POD1, C::TERMINATING_YET_READY), (POD2, C::READY)],
                &["pod1", "pod2"],
            ),
            (&[(POD1, C::TERMINATING), (POD2, C::READY)], &["pod2"]),
            (
                &[
                    (POD1, C::TERMINATING),
                    (POD2, C::TERMINATING),
                    (POD3, C::UNREADY),
                ],
                &["pod1", "pod2"],
            ),
            (&[(POD1, C::TERMINATING), (POD2, C::ENDED)], &["pod1"]),
            (&[(POD1, C::ENDED), (POD2, C::UNREADY)], &[]),
            (&[(POD1, C::SERVING)], &[]),
        ];
        for (endpoints, servers) in cases {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(endpoint, conditions)| with(*endpoint, *conditions))
                .collect();
            bed.put("web", NUMBER, &endpoints, |_| {});
            bed.check_servers(servers);
        }
    });
}

/// S-151, S-25, S-26: a Service's slices count together: for one port they may have different
/// numbers, each for its own endpoints, and each port may have endpoints of its own.
#[test]
fn slices_of_a_service_are_one_set() {
    in_sandbox(|| {
        let mut bed = Bed::new();
        bed.serve(
            |lab| &lab.pods[1],
            "pod2-other",
            PODS[1],
            OTHER_ENDPOINT_PORT,
        );
        bed.serve(
            |lab| &lab.pods[2],
            "pod3-other",
            PODS[2],
            OTHER_ENDPOINT_PORT,
        );
        let mut service = service("web", NUMBER);
        let ports = service["spec"]["ports"].as_array_mut().unwrap();
        let other_ports: Vec<_> = ports
            .iter()
            .map(|port| {
                let protocol = port["protocol"].as_str().unwrap();
                json!({
                    "name": format!("other-{}", protocol.to_lowercase()),
                    "protocol": protocol,
                    "port": OTHER_SERVICE_PORT,
                })
            })
            .collect();
        ports.extend(other_ports);
        // Named for the first port of the Service or the other one.
        let slices = |suffix: &str, prefix: &str, number: Option<u16>, endpoints: &[Endpoint]| {
            slices("web", endpoints).map(|mut slice| {
                let name = slice["metadata"]["name"].as_str().unwrap();
                slice["metadata"]["name"] = json!(format!("{name}-{suffix}"));
                for port in slice["ports"].as_array_mut().unwrap() {
                    let name = port["name"].as_str().unwrap();
                    port["name"] = json!(format!("{prefix}{name}"));
                    if let Some(number) = number {
                        port["port"] = json!(number);
                    }
                }
                slice
            })
        };
        let other = Some(OTHER_ENDPOINT_PORT);
        let mut objects = vec![service];
        objects.extend(slices("a", "", None, &[POD1, REMOTE]));
        objects.extend(slices("b", "", other, &[POD2]));
        objects.extend(slices("c", "other-", other, &[POD3]));
        bed.manifests.put("web", &objects).unwrap();
        let _daemon = bed.start_proxy();
        bed.check_servers(&["pod1", "remote", "pod2-other"]);
        let address = cluster_ip(NUMBER);
        bed.check(SOURCES, address, OTHER_SERVICE_PORT, "pod3-other");
    });
}

/// S-39, S-30: an endpoint that moves to another slice by way of being in both is never missed, and
/// what comes at once acts at once.
#[test]
fn endpoints_move_between_slices() {
    in_sandbox(|| {
        let bed = Bed::new();
        let put = |file: &str, endpoints: &[Endpoint]| {
            let slices = slices("web", endpoints).map(|mut slice| {
                let name = slice["metadata"]["name"].as_str().unwrap();
                slice["metadata"]["name"] = json!(format!("{name}-{file}"));
                slice
            });
            bed.manifests.put(file, &slices).unwrap();
        };
        bed.manifests.put("web", &[service("web", NUMBER)]).unwrap();
        put("a", &[POD1]);
        put("b", &[POD2]);
        let _daemon = bed.start_proxy();
        let streams = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let to = (cluster_ip(NUMBER).v6, SERVICE_PORT).into();
            Stream::start(&bed.lab.pods[2], protocol, to)
        });
        bed.check_servers(&["pod1", "pod2"]);
        // The copy in the other slice says something else for a while, and loses.
        put("b", &[POD2, terminating(POD1)]);
        bed.check_servers(&["pod1", "pod2"]);
        put("b", &[POD2, POD1]);
        put("a", &[]);
        bed.check_servers(&["pod1", "pod2"]);
        put("a", &[POD2]);
        put("b", &[POD1]);
        bed.check_servers(&["pod1", "pod2"]);
        for stream in streams {
            let counts = stream.stop();
            assert!(
                counts.keys().eq(["pod1", "pod2"]),
                "somebody was cut off: {counts:?}"
            );
        }
    });
}

/// S-145, S-42, S-44: one pod is replaced by the next, five times over, on a node that has no other;
/// whoever asks meanwhile gets an answer, from the terminating pod if need be.
#[test]
fn rolling_updates_cut_nobody_off() {
    in_sandbox(|| {
        const ROLLOUTS: usize = 5;
        /// For connections that are on their way to a pod when the last rule to it goes.
        const GRACE: Duration = Duration::from_millis(200);
        let pods = [("pod1", POD1), ("pod2", POD2)];
        for policy in ["Cluster", "Local"] {
            let mut bed = Bed::new();
            let put = |bed: &Bed, endpoints: &[Endpoint]| {
                // With policy Local, the remote one is for others.
                let mut endpoints = endpoints.to_vec();
                if policy == "Local" {
                    endpoints.push(REMOTE);
                }
                bed.put("web", NUMBER, &endpoints, |service| {
                    service["spec"]["externalTrafficPolicy"] = json!(policy);
                });
            };
            let check = |bed: &Bed, server: &str| {
                for (address, port) in [
                    (load_balancer_ip(NUMBER), SERVICE_PORT),
                    (NODE, node_port(NUMBER)),
                ] {
                    bed.check(&[Source::Client], address, port, server);
                }
            };
            put(&bed, &[pods[0].1]);
            let _daemon = bed.start_proxy();
            let targets: [(SocketAddr, Protocol); 3] = [
                (
                    (load_balancer_ip(NUMBER).v4, SERVICE_PORT).into(),
                    Protocol::Tcp,
                ),
                ((NODE.v6, node_port(NUMBER)).into(), Protocol::Tcp),
                (
                    (load_balancer_ip(NUMBER).v6, SERVICE_PORT).into(),
                    Protocol::Udp,
                ),
            ];
            let streams =
                targets.map(|(to, protocol)| Stream::start(&bed.lab.client, protocol, to));
            for step in 0..ROLLOUTS {
                let (old_name, old) = pods[step % 2];
                let (new_name, new) = pods[(step + 1) % 2];
                // The old one terminates before the new one is up.
                put(&bed, &[terminating(old), with(new, Conditions::UNREADY)]);
                check(&bed, old_name);
                put(&bed, &[terminating(old), new]);
                check(&bed, new_name);
                put(&bed, &[new]);
                check(&bed, new_name);
                sleep(GRACE);
                bed.stop_servers(old_name);
                check(&bed, new_name);
                bed.serve_endpoint(old_name);
            }
            for (stream, (to, protocol)) in streams.into_iter().zip(targets) {
                let counts = stream.stop();
                let n_probes: usize = counts.values().sum();
                let answered = |counts: &Counts, name| counts.get(name).copied().unwrap_or(0);
                let n_answers = answered(&counts, "pod1") + answered(&counts, "pod2");
                assert!(n_probes >= 100, "{protocol} to {to}: {counts:?}");
                assert!(
                    n_answers * 100 >= n_probes * 95,
                    "policy {policy}, {protocol} to {to}: {counts:?}"
                );
            }
        }
    });
}
