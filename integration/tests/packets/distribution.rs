//! Topology hints: who is asked from here, among endpoints that are meant for nodes and zones.

use integration::lab::NODE;
use integration::manifest::{Conditions, Endpoint, node};
use integration::netns::in_sandbox;
use serde_json::json;

use crate::bed::{Bed, POD1, POD2, POD3, REMOTE, Source, destinations, terminating, with};

const NUMBER: u8 = 1;
const HERE: &str = "zone-a";
const ELSEWHERE: &str = "zone-b";

const fn for_zone(endpoint: Endpoint, zone: &'static str) -> Endpoint {
    Endpoint {
        for_zone: Some(zone),
        ..endpoint
    }
}

const fn for_node(endpoint: Endpoint, node: &'static str) -> Endpoint {
    Endpoint {
        for_node: Some(node),
        ..endpoint
    }
}

impl Bed {
    fn put_node(&self, zone: Option<&str>) {
        let node = node("node", NODE, zone);
        self.manifests.put("node", &[node]).unwrap();
    }

    /// Waits until pods and the host meet these servers at every kind of destination.
    #[track_caller]
    fn check_met(&self, servers: &[&str]) {
        for (address, port) in destinations(NUMBER) {
            for source in [Source::Pod3, Source::Host] {
                self.check_spread(source, address, port, servers);
            }
        }
    }
}

/// S-154, S-41, S-44 to S-48: hints for the node count before those for its zone, and each only if
/// every ready endpoint has one; without an endpoint that is meant for here, all are asked; and
/// when one is back, it alone is again. External destinations are no different.
#[test]
fn hints_lead_to_near_endpoints() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_node(Some(HERE));
        bed.put("web", NUMBER, &[], |_| {});
        let _daemon = bed.start_proxy();
        let near1 = for_zone(POD1, HERE);
        let near2 = for_zone(POD2, HERE);
        let far = for_zone(REMOTE, ELSEWHERE);
        let own = for_node(near1, "node");
        let others = for_node(near2, "node2");
        let others_far = for_node(far, "node2");
        let cases: [(&str, &[Endpoint], &[&str]); 10] = [
            ("this zone", &[near1, near2, far], &["pod1", "pod2"]),
            ("one died", &[near2, far], &["pod2"]),
            ("all near ones died", &[far], &["remote"]),
            ("one is back", &[near1, far], &["pod1"]),
            (
                "one without a hint",
                &[near1, POD2, far],
                &["pod1", "pod2", "remote"],
            ),
            (
                "an unready one without a hint",
                &[near1, with(POD3, Conditions::UNREADY), far],
                &["pod1"],
            ),
            ("this node", &[own, others, others_far], &["pod1"]),
            (
                "nobody for this node, so this zone",
                &[for_node(near1, "node2"), others, others_far],
                &["pod1", "pod2"],
            ),
            (
                "one without a node hint, so this zone",
                &[own, near2, others_far],
                &["pod1", "pod2"],
            ),
            (
                "no ready one, so all that terminate",
                &[terminating(near1), terminating(far)],
                &["pod1", "remote"],
            ),
        ];
        for (_, endpoints, servers) in cases {
            bed.put("web", NUMBER, endpoints, |_| {});
            bed.check_met(servers);
        }
    });
}

/// S-47, S-49, O-96: when the node's zone changes or is not known any more, every Service follows.
#[test]
fn the_zone_of_the_node_is_followed() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_node(Some(HERE));
        let endpoints = [for_zone(POD1, HERE), for_zone(REMOTE, ELSEWHERE)];
        bed.put("web", NUMBER, &endpoints, |_| {});
        let _daemon = bed.start_proxy();
        bed.check_met(&["pod1"]);
        bed.put_node(Some(ELSEWHERE));
        bed.check_met(&["remote"]);
        bed.put_node(None);
        bed.check_met(&["pod1", "remote"]);
        bed.put_node(Some(HERE));
        bed.check_met(&["pod1"]);
    });
}

/// S-42, S-43, S-49: policy Local knows no hints, and the short way of pods and the host does.
#[test]
fn policy_local_knows_no_hints() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_node(Some(HERE));
        let endpoints = [
            for_zone(POD1, HERE),
            for_zone(REMOTE, HERE),
            for_zone(POD2, ELSEWHERE),
        ];
        bed.put("web", NUMBER, &endpoints, |service| {
            service["spec"]["externalTrafficPolicy"] = json!("Local");
            service["spec"]["internalTrafficPolicy"] = json!("Local");
        });
        let _daemon = bed.start_proxy();
        let [cluster_ip, external @ ..] = destinations(NUMBER);
        for source in [Source::Pod3, Source::Host, Source::Client] {
            bed.check_spread(source, cluster_ip.0, cluster_ip.1, &["pod1", "pod2"]);
        }
        for (address, port) in external {
            bed.check_spread(Source::Client, address, port, &["pod1", "pod2"]);
            bed.check_spread(Source::Pod3, address, port, &["pod1", "remote"]);
            bed.check_spread(Source::Host, address, port, &["pod1", "remote"]);
        }
    });
}
