//! Two nodes with a proxy each, which agree on nothing but the Services, and a CNI that masquerades
//! what leaves the cluster's pods for addresses that are none, node addresses included.

use integration::daemon::Daemon;
use integration::lab::{CLIENT, Dual, NODE, NODE2, POD_GATEWAY, PODS, REMOTE_GATEWAY, REMOTE_POD};
use integration::manifest::{
    Conditions, ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, load_balancer_ip, node_port,
    service_cidr,
};
use integration::netns::in_sandbox;
use serde_json::json;

use crate::bed::{Bed, POD1, REMOTE, Source, terminating, with};

const NUMBER: u8 = 1;
const PORT: u16 = node_port(NUMBER);
const EVERYBODY: &[Source] = &Source::ALL;

const CNI: &str = "table inet cni {
    chain postrouting {
        type nat hook postrouting priority srcnat + 10
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        ip6 saddr fd00:10:244::/48 ip6 daddr != fd00:10:244::/48 masquerade
    }
}";

impl Bed {
    fn with_cni() -> Self {
        let bed = Self::new();
        for node in [&bed.lab.node, &bed.lab.node2] {
            node.exec_with_input(&["nft", "-f", "-"], CNI).unwrap();
        }
        bed.manifests.put("cidr", &[service_cidr()]).unwrap();
        bed
    }

    fn start_both(&self) -> [Daemon; 2] {
        [
            self.start_proxy(),
            self.start_proxy_on(&self.lab.node2, "node2", &[]),
        ]
    }

    fn put_with_policy(&self, field: &str, policy: &str, endpoints: &[Endpoint]) {
        self.put("web", NUMBER, endpoints, |service| {
            service["spec"][field] = json!(policy);
        });
    }
}

/// S-135, S-136, S-139, S-144, S-65, S-67: under policy Local the endpoint's node keeps the client's
/// address; other nodes take pods and themselves there and drop the rest; under policy Cluster all
/// nodes serve everybody; and so back and forth. The load balancer's address is no different.
#[test]
fn external_traffic_policy_changes() {
    in_sandbox(|| {
        let bed = Bed::with_cni();
        let put = |policy| bed.put_with_policy("externalTrafficPolicy", policy, &[REMOTE]);
        put("Local");
        let _daemons = bed.start_both();
        let check_local = || {
            let see = |source, to: Dual, seen| bed.check_seen(source, to, PORT, "remote", seen);
            see(Source::Client, NODE2, CLIENT);
            // From another node, the host network has the node's address, and so have pods.
            see(Source::Host, NODE2, NODE);
            see(Source::Pod3, NODE2, NODE);
            see(Source::Node2, NODE2, REMOTE_GATEWAY);
            see(Source::RemotePod, NODE2, REMOTE_GATEWAY);
            bed.check(&[Source::Client, Source::Node2], NODE, PORT, "timeout");
            see(Source::Host, NODE, NODE);
            see(Source::Pod3, NODE, PODS[2]);
            let vip = load_balancer_ip(NUMBER);
            bed.check(&[Source::Client], vip, SERVICE_PORT, "timeout");
            bed.check_seen(Source::Pod3, vip, SERVICE_PORT, "remote", PODS[2]);
            bed.check_seen(Source::Host, vip, SERVICE_PORT, "remote", NODE);
        };
        let check_cluster = || {
            for (node, seen) in [(NODE, NODE), (NODE2, REMOTE_GATEWAY)] {
                for source in [Source::Client, Source::Pod1, Source::Host, Source::Node2] {
                    // What another node's pod or host network sends is masqueraded by that node,
                    // and once more here.
                    bed.check_seen(source, node, PORT, "remote", seen);
                }
            }
            let vip = load_balancer_ip(NUMBER);
            bed.check_seen(Source::Client, vip, SERVICE_PORT, "remote", NODE);
        };
        check_local();
        put("Cluster");
        check_cluster();
        put("Local");
        check_local();
    });
}

/// S-137, S-138, S-140, S-66, S-61, S-62: what serves while it terminates is used as if it were ready,
/// where nothing else is; so is what is published while it is not ready; and nothing else is.
#[test]
fn terminating_endpoints_serve_where_nothing_else_does() {
    in_sandbox(|| {
        let bed = Bed::with_cni();
        bed.put_with_policy("internalTrafficPolicy", "Cluster", &[]);
        let _daemons = bed.start_both();
        let near = [Source::Pod3, Source::Host];
        let far = [Source::RemotePod, Source::Node2];
        let published = with(POD1, Conditions::TERMINATING_YET_READY);
        for endpoint in [terminating(POD1), published] {
            bed.put_with_policy("internalTrafficPolicy", "Cluster", &[endpoint]);
            bed.check(EVERYBODY, cluster_ip(NUMBER), SERVICE_PORT, "pod1");
            bed.check(EVERYBODY, NODE, PORT, "pod1");
            bed.check(EVERYBODY, NODE2, PORT, "pod1");

            bed.put_with_policy("internalTrafficPolicy", "Local", &[endpoint]);
            bed.check(&far, cluster_ip(NUMBER), SERVICE_PORT, "timeout");
            bed.check(&near, cluster_ip(NUMBER), SERVICE_PORT, "pod1");

            bed.put_with_policy("externalTrafficPolicy", "Local", &[endpoint]);
            bed.check(&near, NODE2, PORT, "timeout");
            bed.check(&near, NODE, PORT, "pod1");
            bed.check(&far, NODE, PORT, "pod1");
            bed.check_seen(Source::Client, NODE, PORT, "pod1", CLIENT);
        }
        for endpoint in [Conditions::ENDED, Conditions::UNREADY] {
            bed.put_with_policy("internalTrafficPolicy", "Cluster", &[with(POD1, endpoint)]);
            bed.check(EVERYBODY, cluster_ip(NUMBER), SERVICE_PORT, "refused");
            bed.check(EVERYBODY, NODE, PORT, "refused");
            bed.check(EVERYBODY, NODE2, PORT, "refused");
        }
    });
}

/// S-126, S-161, S-94: between pods, on one node or two, addresses are kept, by way of a ClusterIP
/// and directly; and what goes to nodes and the outside is the CNI's business alone.
#[test]
fn addresses_are_kept_between_pods() {
    in_sandbox(|| {
        let bed = Bed::with_cni();
        bed.put("web", NUMBER, &[POD1], |_| {});
        bed.put("far", NUMBER + 1, &[REMOTE], |_| {});
        let _daemons = bed.start_both();
        for (number, endpoint, server) in [
            (NUMBER, PODS[0], "pod1"),
            (NUMBER + 1, REMOTE_POD, "remote"),
        ] {
            for source in [Source::Pod1, Source::Pod3, Source::RemotePod] {
                let own = source.address();
                // On itself, it is the node that seems to call.
                let through_service = match server {
                    _ if own != endpoint => own,
                    "pod1" => POD_GATEWAY,
                    _ => REMOTE_GATEWAY,
                };
                let address = cluster_ip(number);
                bed.check_seen(source, address, SERVICE_PORT, server, through_service);
                bed.check_seen(source, endpoint, ENDPOINT_PORT, server, own);
            }
            bed.check_seen(Source::Client, endpoint, ENDPOINT_PORT, server, CLIENT);
        }
        bed.check_seen(Source::Node2, NODE, ENDPOINT_PORT, "node", NODE2);
        bed.check_seen(Source::RemotePod, NODE, ENDPOINT_PORT, "node", NODE2);
    });
}

/// S-143: ranges with one pod, two halves, nobody, and none at all, as the outside and pods of two
/// nodes see it.
#[test]
fn source_ranges_hold_on_every_node() {
    in_sandbox(|| {
        let bed = Bed::with_cni();
        let put = |ranges: &[&str]| {
            bed.put("web", NUMBER, &[POD1], |service| {
                service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
            });
        };
        let check = |allowed: &[Source], others: &[Source]| {
            let vip = load_balancer_ip(NUMBER);
            bed.check(allowed, vip, SERVICE_PORT, "pod1");
            bed.check(others, vip, SERVICE_PORT, "timeout");
        };
        let [pod3, remote] = [Source::Pod3, Source::RemotePod];
        put(&["10.244.1.13/32", "fd00:10:244:1::13/128"]);
        let _daemons = bed.start_both();
        check(
            &[pod3],
            &[remote, Source::Client, Source::Pod1, Source::Node2],
        );
        put(&[
            "10.244.2.11/32",
            "fd00:10:244:2::11/128",
            "192.0.2.20/32",
            "2001:db8:1::20/128",
        ]);
        check(&[remote, Source::Node2], &[pod3, Source::Client]);
        put(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
        check(EVERYBODY, &[]);
        put(&["198.18.0.1/32", "2001:db8:ffff::1/128"]);
        check(&[], &[pod3, remote, Source::Client]);
        put(&[]);
        check(EVERYBODY, &[]);
    });
}
