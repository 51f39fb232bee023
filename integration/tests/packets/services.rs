//! The life of a Service: it comes, changes its type, is handed to another proxy, and goes.
//!
//! What happens to its ports is in `ports`. Its addresses lie on the outside host as well, where a server called `outside` answers whatever
//! the proxy lets pass.

use integration::lab::{Dual, NODE};
use integration::manifest::{SERVICE_PORT, cluster_ip, node_port};
use integration::netns::in_sandbox;
use integration::traffic::{Flow, Protocol};
use serde_json::{Value, json};

use crate::bed::{Bed, HOST_NETWORK, POD1, POD2, POD3, Source, destinations};

const NUMBER: u8 = 1;
const OTHER: u8 = 2;
/// Those whose packets the node routes to the outside host if nobody wants them.
pub(crate) const SOURCES: &[Source] = &[Source::Pod3, Source::Host, Source::RemotePod];

/// Whether each kind of destination is served: ClusterIP, external IP, load-balancer IP, NodePort.
pub(crate) type Served = [bool; 4];
const NOWHERE: Served = [false; 4];
pub(crate) const EVERYWHERE: Served = [true; 4];

impl Bed {
    /// Puts the addresses of Services on the outside host.
    pub(crate) fn with_outside(numbers: &[u8]) -> Self {
        let mut bed = Self::new();
        for number in numbers {
            for (address, _) in &destinations(*number)[..3] {
                bed.add_outside(*address);
            }
        }
        bed
    }

    fn add_outside(&mut self, address: Dual) {
        for ip in address.both() {
            let ip = ip.to_string();
            let mut add = vec!["ip", "addr", "add", &ip, "dev", "lo"];
            if ip.contains(':') {
                // Without, it is tentative for a moment.
                add.push("nodad");
            }
            self.lab.client.exec(&add).unwrap();
        }
        self.serve(|lab| &lab.client, "outside", address, SERVICE_PORT);
    }

    /// Waits until `server` answers at exactly these kinds of destinations of a Service.
    #[track_caller]
    pub(crate) fn check_served(
        &self,
        protocols: &[Protocol],
        number: u8,
        server: &str,
        served: Served,
    ) {
        let unserved = ["outside", "outside", "outside", "refused"];
        for (((address, port), is_served), unserved) in
            destinations(number).into_iter().zip(served).zip(unserved)
        {
            let wanted = if is_served { server } else { unserved };
            for source in SOURCES {
                for protocol in protocols {
                    for ip in address.both() {
                        self.check_one(*source, *protocol, (ip, port).into(), wanted);
                    }
                }
            }
        }
    }
}

/// Makes of a Service with everything one of this type.
pub(crate) fn retype(service: &mut Value, kind: &str) {
    service["spec"]["type"] = json!(kind);
    if kind != "LoadBalancer" {
        service["status"] = json!({});
    }
    if !["LoadBalancer", "NodePort"].contains(&kind) {
        for port in service["spec"]["ports"].as_array_mut().unwrap() {
            port.as_object_mut().unwrap().remove("nodePort");
        }
    }
    if kind == "ExternalName" {
        let spec = service["spec"].as_object_mut().unwrap();
        spec.retain(|key, _| ["type", "ports"].contains(&key.as_str()));
        spec.insert("externalName".into(), json!("example.com"));
    }
}

/// S-131, S-1, O-86: the label that hands a Service to another proxy, at creation, removed, and added.
#[test]
fn a_service_is_left_to_the_proxy_its_label_names() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER]);
        let put = |label: Option<&str>| {
            bed.put("web", NUMBER, &[POD1], |service| {
                if let Some(value) = label {
                    let key = "service.kubernetes.io/service-proxy-name";
                    service["metadata"]["labels"] = json!({key: value});
                }
            });
        };
        put(Some("other"));
        let _daemon = bed.start_proxy();
        bed.check_served(&bed.protocols, NUMBER, "pod1", NOWHERE);
        put(None);
        bed.check_served(&bed.protocols, NUMBER, "pod1", EVERYWHERE);
        put(Some(""));
        bed.check_served(&bed.protocols, NUMBER, "pod1", NOWHERE);
    });
}

/// S-152, S-128, S-73: a Service has what its type has, and no more after it has changed. The external
/// IP of type ClusterIP works, though it is on no interface of the node.
#[test]
fn destinations_come_and_go_with_the_type() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER]);
        let _daemon = bed.start_proxy();
        for (kind, served) in [
            ("ExternalName", NOWHERE),
            ("ClusterIP", [true, true, false, false]),
            ("ExternalName", NOWHERE),
            ("NodePort", [true, true, false, true]),
            ("LoadBalancer", EVERYWHERE),
            ("ClusterIP", [true, true, false, false]),
            ("LoadBalancer", EVERYWHERE),
            ("ExternalName", NOWHERE),
        ] {
            bed.put("web", NUMBER, &[POD1], |service| retype(service, kind));
            bed.check_served(&bed.protocols, NUMBER, "pod1", served);
        }
    });
}

/// S-153: Services go up and down one by one; one that is made again with its old name has new
/// addresses; and what changes while the proxy is away holds once it is back.
#[test]
fn services_go_up_and_down_and_up_again() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER, OTHER]);
        bed.put("web", NUMBER, &[POD1], |_| {});
        bed.put("other", OTHER, &[POD2], |_| {});
        let daemon = bed.start_proxy();
        bed.check_served(&bed.protocols, NUMBER, "pod1", EVERYWHERE);
        bed.check_served(&bed.protocols, OTHER, "pod2", EVERYWHERE);
        bed.manifests.remove("other").unwrap();
        bed.check_served(&bed.protocols, OTHER, "pod2", NOWHERE);
        bed.check_served(&bed.protocols, NUMBER, "pod1", EVERYWHERE);

        bed.manifests.remove("web").unwrap();
        bed.check_served(&bed.protocols, NUMBER, "pod1", NOWHERE);
        bed.put("web", OTHER, &[POD1], |_| {});
        bed.check_served(&bed.protocols, OTHER, "pod1", EVERYWHERE);
        bed.check_served(&bed.protocols, NUMBER, "pod1", NOWHERE);

        daemon.stop().unwrap();
        bed.check_served(&bed.protocols, OTHER, "pod1", EVERYWHERE);
        bed.put("web", NUMBER, &[POD2], |_| {});
        let _daemon = bed.start_proxy();
        bed.check_served(&bed.protocols, NUMBER, "pod2", EVERYWHERE);
        bed.check_served(&bed.protocols, OTHER, "pod1", NOWHERE);
    });
}

/// S-155, S-114, S-115, O-92: a ClusterIP is served whether or not a ServiceCIDR has it, and the range acts
/// on what nobody has as soon as it is there, until it is gone.
#[test]
fn service_cidrs_come_and_go() {
    in_sandbox(|| {
        const SERVED: u8 = 200;
        const UNALLOCATED: u8 = 201;
        let bed = Bed::with_outside(&[SERVED, UNALLOCATED]);
        let put_cidr = |name: &str, cidrs: [&str; 2]| {
            let cidr = json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": name},
                "spec": {"cidrs": cidrs},
            });
            bed.manifests.put(name, &[cidr]).unwrap();
        };
        put_cidr("first", ["10.96.0.0/25", "fd00:10:96::/121"]);
        bed.put("web", SERVED, &[POD1], |_| {});
        let _daemon = bed.start_proxy();
        let check = |unallocated| {
            bed.check(
                &[Source::Pod3],
                cluster_ip(UNALLOCATED),
                SERVICE_PORT,
                unallocated,
            );
            bed.check(SOURCES, cluster_ip(SERVED), SERVICE_PORT, "pod1");
        };
        check("outside");
        put_cidr("second", ["10.96.0.128/25", "fd00:10:96::80/121"]);
        check("timeout");
        // Overlapping ones: nothing is lost with one of them.
        put_cidr("third", ["10.96.0.192/26", "fd00:10:96::c0/122"]);
        bed.manifests.remove("second").unwrap();
        check("timeout");
        bed.manifests.remove("third").unwrap();
        check("outside");
    });
}

/// S-159: of Services with the same endpoints one goes, and the other, hairpins included, stays; a
/// NodePort that changes takes nothing else with it.
#[test]
fn services_share_endpoints_and_not_their_fate() {
    in_sandbox(|| {
        let bed = Bed::with_outside(&[NUMBER, OTHER]);
        let endpoints = &[POD1, HOST_NETWORK];
        let check_hairpin = |number| {
            for (address, port) in destinations(number) {
                bed.check_spread(Source::Pod1, address, port, &["pod1", "node"]);
                bed.check_spread(Source::Host, address, port, &["pod1", "node"]);
            }
        };
        bed.put("a", NUMBER, endpoints, |_| {});
        bed.put("b", OTHER, endpoints, |_| {});
        let _daemon = bed.start_proxy();
        check_hairpin(NUMBER);
        check_hairpin(OTHER);
        let mut flow = Flow::open(&bed.lab.pods[0], (NODE.v4, node_port(NUMBER)).into()).unwrap();
        bed.manifests.remove("a").unwrap();
        bed.check_served(&bed.protocols, NUMBER, "", NOWHERE);
        check_hairpin(OTHER);
        flow.ping().unwrap();
        bed.put("b", OTHER, endpoints, |service| {
            for port in service["spec"]["ports"].as_array_mut().unwrap() {
                port["nodePort"] = json!(node_port(NUMBER));
            }
        });
        bed.check_spread(Source::Pod1, NODE, node_port(NUMBER), &["pod1", "node"]);
        bed.check(SOURCES, NODE, node_port(OTHER), "refused");
        bed.put("b", OTHER, &[POD3], |_| {});
        bed.check_served(&bed.protocols, OTHER, "pod3", EVERYWHERE);
    });
}
