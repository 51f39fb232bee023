//! The ports of a Service: protocols at one number, numbers and types that change, NodePorts that
//! come and go.
//!
//! As in `services`, what the proxy lets pass is answered by `outside`.

use integration::lab::{Dual, NODE};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Protocol, Stream};
use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, Source};
use crate::services::{EVERYWHERE, SOURCES, retype};

const NUMBER: u8 = 1;

/// S-141, S-10: TCP and UDP at the same number are two ports with endpoints of their own, and when
/// one goes the other never notices.
#[test]
fn protocols_at_one_number_are_ports_of_their_own() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER]);
        let put = |protocols: &[&str]| {
            let has = |port: &Value| protocols.contains(&port["protocol"].as_str().unwrap());
            let mut objects = vec![service("web", NUMBER)];
            let ports = objects[0]["spec"]["ports"].as_array_mut().unwrap();
            ports.retain(has);
            for (protocol, endpoint) in [("TCP", POD1), ("UDP", POD2)] {
                objects.extend(slices("web", &[endpoint]).map(|mut slice| {
                    let name = slice["metadata"]["name"].as_str().unwrap();
                    slice["metadata"]["name"] = json!(format!("{name}-{protocol}").to_lowercase());
                    let ports = slice["ports"].as_array_mut().unwrap();
                    ports.retain(|port| port["protocol"] == protocol);
                    slice
                }));
            }
            bed.manifests.put("web", &objects).unwrap();
        };
        // A port that the Service does not have is refused at the ClusterIP, and passes elsewhere.
        let check = |protocol, server, is_served: bool| {
            if is_served {
                return bed.check_served(&[protocol], NUMBER, server, EVERYWHERE);
            }
            for ip in cluster_ip(NUMBER).both() {
                for source in SOURCES {
                    bed.check_one(*source, protocol, (ip, SERVICE_PORT).into(), "refused");
                }
            }
            for ip in external_ip(NUMBER).both() {
                bed.check_one(Source::Pod3, protocol, (ip, SERVICE_PORT).into(), "outside");
            }
            for ip in NODE.both() {
                let to = (ip, node_port(NUMBER)).into();
                bed.check_one(Source::Client, protocol, to, "refused");
            }
        };
        put(&["TCP", "UDP"]);
        let _daemon = bed.start_proxy();
        for (remaining, has_tcp, has_udp) in [
            (&["TCP", "UDP"][..], true, true),
            (&["TCP"], true, false),
            (&["TCP", "UDP"], true, true),
            (&["UDP"], false, true),
            (&["UDP", "TCP"], true, true),
        ] {
            // What is there before and after has to be there all the time.
            let is_tcp_steady = has_tcp && remaining != ["UDP", "TCP"];
            let (steady, server, to) = if is_tcp_steady {
                (
                    Protocol::Tcp,
                    "pod1",
                    (load_balancer_ip(NUMBER).v4, SERVICE_PORT),
                )
            } else {
                (Protocol::Udp, "pod2", (NODE.v4, node_port(NUMBER)))
            };
            let stream = Stream::start(&bed.lab.pods[2], steady, to.into());
            put(remaining);
            check(Protocol::Tcp, "pod1", has_tcp);
            check(Protocol::Udp, "pod2", has_udp);
            let counts = stream.stop();
            assert_eq!(counts.keys().collect::<Vec<_>>(), [server], "{remaining:?}");
        }
    });
}

/// S-142: the type and the ports of a UDP Service change, and there is never another error than a
/// refusal.
#[test]
fn a_udp_service_changes_its_type_and_ports() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER]);
        let put = |kind: &str, port: u16, node_port: u16, endpoints: &[Endpoint]| {
            bed.put("udp", NUMBER, endpoints, |service| {
                for spec in service["spec"]["ports"].as_array_mut().unwrap() {
                    spec["port"] = json!(port);
                    spec["nodePort"] = json!(node_port);
                }
                let ports = service["spec"]["ports"].as_array_mut().unwrap();
                ports.retain(|port| port["protocol"] == "UDP");
                retype(service, kind);
            });
        };
        let check = |address: Dual, port: u16, wanted: &str| {
            for source in [Source::Pod3, Source::Host, Source::Node2] {
                for ip in address.both() {
                    bed.check_one(source, Protocol::Udp, (ip, port).into(), wanted);
                }
            }
        };
        let _daemon = bed.start_proxy();
        put("ClusterIP", 80, 30001, &[POD1]);
        check(cluster_ip(NUMBER), 80, "pod1");
        check(NODE, 30001, "refused");
        put("NodePort", 80, 30001, &[POD1]);
        check(NODE, 30001, "pod1");
        put("LoadBalancer", 80, 30001, &[POD1]);
        check(load_balancer_ip(NUMBER), 80, "pod1");
        put("LoadBalancer", 80, 30002, &[POD1]);
        check(NODE, 30002, "pod1");
        check(NODE, 30001, "refused");
        check(load_balancer_ip(NUMBER), 80, "pod1");
        put("LoadBalancer", 81, 30002, &[POD1]);
        check(load_balancer_ip(NUMBER), 81, "pod1");
        check(cluster_ip(NUMBER), 80, "refused");
        check(NODE, 30002, "pod1");
        put("LoadBalancer", 81, 30002, &[]);
        check(load_balancer_ip(NUMBER), 81, "refused");
        check(NODE, 30002, "refused");
        put("LoadBalancer", 81, 30002, &[POD2]);
        check(load_balancer_ip(NUMBER), 81, "pod2");
        check(NODE, 30002, "pod2");
        put("ClusterIP", 81, 30002, &[POD2]);
        check(NODE, 30002, "refused");
        check(cluster_ip(NUMBER), 81, "pod2");
    });
}

/// S-146, S-58: a load balancer does without NodePort, which comes and goes without it noticing.
#[test]
fn node_ports_of_a_load_balancer_come_and_go() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER]);
        let put = |node_port: u16| {
            bed.put("web", NUMBER, &[POD1], |service| {
                service["spec"]["allocateLoadBalancerNodePorts"] = json!(node_port != 0);
                for port in service["spec"]["ports"].as_array_mut().unwrap() {
                    port["nodePort"] = json!(node_port);
                }
            });
        };
        put(0);
        let _daemon = bed.start_proxy();
        let to = (load_balancer_ip(NUMBER).v6, SERVICE_PORT).into();
        bed.check_served(&bed.protocols, NUMBER, "pod1", [true, true, true, false]);
        let stream = Stream::start(&bed.lab.pods[2], Protocol::Tcp, to);
        put(node_port(NUMBER));
        bed.check_served(&bed.protocols, NUMBER, "pod1", EVERYWHERE);
        put(0);
        bed.check_served(&bed.protocols, NUMBER, "pod1", [true, true, true, false]);
        assert_eq!(stream.stop().keys().collect::<Vec<_>>(), ["pod1"]);
    });
}
