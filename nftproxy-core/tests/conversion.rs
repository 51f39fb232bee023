//! What is read of Kubernetes objects, and what is made of odd ones.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftproxy_core::k8s::{self, Problem};
use nftproxy_core::model::{
    ClusterIps, Endpoint, EndpointSlice, Locality, NodeHint, PortName, Protocol, Service,
    SliceEndpoints, TrafficPolicy, V4,
};
use serde_json::{Value, json};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLUSTER_IP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10);

/// A Service with a ClusterIP and port 80, with these fields on top.
fn service_object(changes: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10"],
            "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP"}],
        },
    });
    merge(&mut object, changes);
    object
}

/// A slice of Service `web` with port 8080 and one endpoint, with these fields on top.
fn slice_object(changes: Value) -> Value {
    let mut object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.5"], "nodeName": "node-1"}],
    });
    merge(&mut object, changes);
    object
}

/// As `kubectl patch --type=merge`: objects merge, `null` removes, all else replaces.
fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(json!({})), change);
                }
            }
        }
        (into, change) => *into = change,
    }
}

fn read_service(changes: Value) -> (Option<Service>, Vec<Problem>) {
    let object = serde_json::from_value(service_object(changes)).unwrap();
    let mut problems = Vec::new();
    let service = k8s::service(&object, &mut problems);
    (service, problems)
}

/// A Service that is read without a problem.
fn service(changes: Value) -> Service {
    let (service, problems) = read_service(changes);
    assert_eq!(problems, []);
    service.unwrap()
}

fn read_slice(changes: Value) -> (Option<EndpointSlice>, Vec<Problem>) {
    let object = serde_json::from_value(slice_object(changes)).unwrap();
    let mut problems = Vec::new();
    let slice = k8s::endpoint_slice(&object, "node-1", &mut problems);
    (slice, problems)
}

/// A slice that is read without a problem.
fn slice(changes: Value) -> EndpointSlice {
    let (slice, problems) = read_slice(changes);
    assert_eq!(problems, []);
    slice.unwrap()
}

/// The IPv4 endpoints of a slice with these, read without a problem.
fn endpoints(endpoints: Value) -> Vec<Endpoint<V4>> {
    match slice(json!({"endpoints": endpoints})).endpoints {
        SliceEndpoints::V4(endpoints) => endpoints.to_vec(),
        SliceEndpoints::V6(endpoints) => panic!("{endpoints:?} are of IPv6"),
    }
}

/// Where the problems are: in which object, and in which field.
fn places(problems: &[Problem]) -> Vec<String> {
    let place = |problem: &Problem| {
        let field = problem.message.split(": ").next().unwrap();
        format!("{} {field}", problem.object)
    };
    problems.iter().map(place).collect()
}

/// S-1: the label counts, whatever its value.
#[test]
fn s1_services_of_other_proxies_are_skipped() {
    for value in ["", "other"] {
        let labels = json!({"service.kubernetes.io/service-proxy-name": value});
        let (service, problems) = read_service(json!({"metadata": {"labels": labels}}));
        assert_eq!((service, problems), (None, vec![]));
    }
}

/// S-2, S-3: nothing of them is left.
#[test]
fn s2_s3_services_without_cluster_ip_are_skipped() {
    for changes in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": null}),
        json!({"clusterIP": null, "clusterIPs": null}),
        json!({"type": "ExternalName", "externalName": "db.example.com"}),
    ] {
        let (service, problems) = read_service(json!({"spec": changes}));
        assert_eq!((service, problems), (None, vec![]), "{changes}");
    }
    let (none, _) = read_service(json!({"spec": null}));
    assert_eq!(none, None);
}

/// S-4, S-12
#[test]
fn s4_s12_external_policy_local_counts_only_for_what_is_external() {
    for (changes, expected) in [
        (json!({"type": "NodePort"}), TrafficPolicy::Local),
        (json!({"type": "LoadBalancer"}), TrafficPolicy::Local),
        (json!({"type": "ClusterIP"}), TrafficPolicy::Cluster),
        (json!({"externalIPs": []}), TrafficPolicy::Cluster),
        (
            json!({"externalIPs": ["2001:db8::1"]}),
            TrafficPolicy::Local,
        ),
    ] {
        let mut spec = json!({"externalTrafficPolicy": "Local"});
        merge(&mut spec, changes.clone());
        let policy = service(json!({"spec": spec})).external_traffic_policy;
        assert_eq!(policy, expected, "{changes}");
    }
    for (text, expected) in [
        ("Cluster", TrafficPolicy::Cluster),
        ("", TrafficPolicy::Cluster),
    ] {
        let spec = json!({"type": "NodePort", "externalTrafficPolicy": text});
        assert_eq!(
            service(json!({"spec": spec})).external_traffic_policy,
            expected
        );
    }
    let spec =
        json!({"type": "NodePort", "externalTrafficPolicy": "local", "internalTrafficPolicy": "x"});
    let (service, problems) = read_service(json!({"spec": spec}));
    let service = service.unwrap();
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    let fields = ["internalTrafficPolicy", "externalTrafficPolicy"];
    let fields = fields.map(|field| format!("Service default/web spec.{field}"));
    assert_eq!(places(&problems), fields);
}

/// S-4, S-7
#[test]
fn s4_s59_the_health_check_node_port_needs_a_load_balancer_with_policy_local() {
    let local = json!({
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30123,
    });
    for (changes, expected) in [
        (json!({}), Some(30123)),
        (json!({"externalTrafficPolicy": "Cluster"}), None),
        (json!({"externalTrafficPolicy": null}), None),
        (json!({"type": "NodePort"}), None),
        (
            json!({"type": "ClusterIP", "externalIPs": ["198.51.100.1"]}),
            None,
        ),
        (json!({"healthCheckNodePort": null}), None),
        (json!({"healthCheckNodePort": 0}), None),
    ] {
        let mut spec = local.clone();
        merge(&mut spec, changes.clone());
        let port = service(json!({"spec": spec})).health_check_node_port;
        assert_eq!(port.map(NonZeroU16::get), expected, "{changes}");
    }
    for number in [65536, -1] {
        let mut spec = local.clone();
        merge(&mut spec, json!({"healthCheckNodePort": number}));
        let (service, problems) = read_service(json!({"spec": spec}));
        assert_eq!(service.unwrap().health_check_node_port, None);
        let place = "Service default/web spec.healthCheckNodePort";
        assert_eq!(places(&problems), [place]);
    }
}

#[test]
fn s4_other_fields_act_whatever_the_type() {
    let service = service(json!({
        "spec": {
            "ports": [{"port": 80, "nodePort": 30080}],
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    }));
    assert_eq!(service.ports[0].node_port.unwrap().get(), 30080);
    assert_eq!(*service.load_balancer_ips, [IpAddr::from([203, 0, 113, 1])]);
    assert_eq!(service.source_ranges.len(), 1);
}

/// S-5
#[test]
fn s5_cluster_ips_go_by_family() {
    let both = ClusterIps {
        v4: Some(CLUSTER_IP),
        v6: Some(CLUSTER_IP_V6),
    };
    let v4 = ClusterIps { v6: None, ..both };
    let v6 = ClusterIps { v4: None, ..both };
    for (families, cluster_ips, expected) in [
        (
            json!(["IPv4", "IPv6"]),
            json!(["10.96.0.10", "fd00:10:96::10"]),
            both,
        ),
        (
            json!(["IPv6", "IPv4"]),
            json!(["fd00:10:96::10", "10.96.0.10"]),
            both,
        ),
        (json!(["IPv4"]), json!(["10.96.0.10", "fd00:10:96::10"]), v4),
        (json!(["IPv4", "IPv6"]), json!(["10.96.0.10"]), v4),
        (json!(["IPv6"]), json!(["fd00:10:96::10"]), v6),
        // The first counts.
        (
            json!(["IPv4", "IPv4"]),
            json!(["10.96.0.10", "10.96.0.11"]),
            v4,
        ),
        // From before dual-stack.
        (json!(null), json!(null), v4),
        (json!([]), json!(["10.96.0.99"]), v4),
    ] {
        let spec = json!({"ipFamilies": families, "clusterIPs": cluster_ips});
        let actual = service(json!({"spec": spec})).cluster_ips;
        assert_eq!(actual, expected, "{spec}");
    }
}

/// S-5, S-18
#[test]
fn s5_s18_cluster_ips_that_do_not_fit_are_reported() {
    for spec in [
        json!({"clusterIPs": ["10.96.0.x"]}),
        json!({"clusterIPs": ["fd00:10:96::10"]}),
    ] {
        let (service, problems) = read_service(json!({"spec": spec}));
        assert_eq!(
            service.unwrap().cluster_ips,
            ClusterIps::default(),
            "{spec}"
        );
        assert_eq!(places(&problems), ["Service default/web spec.clusterIPs"]);
    }
    let (service, problems) =
        read_service(json!({"spec": {"clusterIP": "10.96.0.x", "ipFamilies": null}}));
    assert_eq!(service.unwrap().cluster_ips, ClusterIps::default());
    assert_eq!(places(&problems), ["Service default/web spec.clusterIP"]);
}

/// S-7, S-8
#[test]
fn s7_s8_addresses_are_read_leniently() {
    let external_ips = json!([
        " 192.168.099.022 ",
        "",
        " ",
        "nonsense",
        "1.2.3.004",
        "::ffff:10.0.0.1",
        "2001:db8::1"
    ]);
    let (service, problems) = read_service(json!({"spec": {"externalIPs": external_ips}}));
    let expected = ["192.168.99.22", "1.2.3.4", "10.0.0.1", "2001:db8::1"];
    let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(*service.unwrap().external_ips, expected);
    assert_eq!(places(&problems), ["Service default/web spec.externalIPs"]);
}

/// S-8
#[test]
fn s8_vectors() {
    for (text, expected) in [
        ("172.30.0.041", Some("172.30.0.41")),
        ("1.2.3.004", Some("1.2.3.4")),
        ("10.180.00.001", Some("10.180.0.1")),
        ("fd00:10:96:0:0:0:0:10", Some("fd00:10:96::10")),
        ("1.2.3", None),
        ("1.2.3.4.5", None),
        ("1.2.3.", None),
        ("1.2.3.-4", None),
        ("1.2.3.+4", None),
        ("1.2.3.0x4", None),
        ("fe80::1%eth0", None),
        ("", None),
    ] {
        let actual = k8s::parse_ip(text).map(|ip| ip.to_string());
        assert_eq!(actual.as_deref(), expected, "{text}");
    }
    for (text, expected) in [
        ("203.0.113.000/025", Some("203.0.113.0/25")),
        ("203.0.113.129/25", Some("203.0.113.128/25")),
        ("fd00::1/64", Some("fd00::/64")),
        ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
        ("::ffff:10.0.0.0/64", None),
        ("10.0.0.0/33", None),
        ("fd00::/129", None),
        ("10.0.0.0/", None),
        ("10.0.0.0", None),
    ] {
        let actual = k8s::parse_cidr(text).map(|range| range.to_string());
        assert_eq!(actual.as_deref(), expected, "{text}");
    }
}

/// S-7, S-107
#[test]
fn s7_s107_source_ranges_are_trimmed_and_bad_ones_skipped() {
    let ranges = json!([
        " 192.0.2.0/24 ",
        " ",
        "nonsense",
        "192.0.2.1",
        "2001:db8::1/32"
    ]);
    let spec = json!({"loadBalancerSourceRanges": ranges});
    let (service, problems) = read_service(json!({"spec": spec}));
    let actual: Vec<_> = service
        .unwrap()
        .source_ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(actual, ["192.0.2.0/24", "2001:db8::/32"]);
    let place = "Service default/web spec.loadBalancerSourceRanges";
    assert_eq!(places(&problems), [place, place]);
}

/// S-57
#[test]
fn s57_ingress_addresses_count_in_mode_vip() {
    let (service, problems) = read_service(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"},
        {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
        {"ip": "nonsense"},
    ]}}}));
    let expected = [[203, 0, 113, 1], [203, 0, 113, 2]].map(IpAddr::from);
    assert_eq!(*service.unwrap().load_balancer_ips, expected);
    assert_eq!(
        places(&problems),
        ["Service default/web status.loadBalancer.ingress"]
    );
}

/// S-9, S-10
#[test]
fn s9_s10_ports() {
    let service = service(json!({"spec": {"ports": [
        {"name": "tcp", "port": 53, "nodePort": 0},
        {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
        {"name": "sctp", "port": 53, "protocol": "SCTP", "targetPort": "named"},
    ]}}));
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| {
            (
                port.name.as_str(),
                port.protocol,
                port.node_port.map(u16::from),
            )
        })
        .collect();
    let expected = [
        ("tcp", Protocol::Tcp, None),
        ("udp", Protocol::Udp, Some(30053)),
        ("sctp", Protocol::Sctp, None),
    ];
    assert_eq!(ports, expected);
}

/// S-18
#[test]
fn s18_bad_ports_leave_the_others() {
    let (service, problems) = read_service(json!({"spec": {"ports": [
        {"name": "zero", "port": 0},
        {"name": "large", "port": 65536},
        {"name": "odd", "port": 80, "protocol": "DCCP"},
        {"name": "No Label", "port": 81},
        {"name": "x\" : drop }", "port": 82},
        {"name": "good", "port": 80},
    ]}}));
    let names: Vec<_> = service
        .unwrap()
        .ports
        .iter()
        .map(|port| port.name.clone())
        .collect();
    assert_eq!(names, [PortName::new("good").unwrap()]);
    assert_eq!(places(&problems), ["Service default/web spec.ports"; 5]);
    assert_eq!(
        self::service(json!({"spec": {"ports": null}})).ports,
        [].into()
    );
}

/// S-11, S-19: a change of these makes no other Service, so it marks nothing as dirty.
#[test]
fn s11_fields_that_no_rule_depends_on_are_not_read() {
    let plain = service(json!({}));
    let decorated = service(json!({
        "metadata": {
            "labels": {"app": "web"},
            "annotations": {"service.kubernetes.io/topology-mode": "Auto"},
            "resourceVersion": "7",
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["example.com/finalizer"],
        },
        "spec": {
            "selector": {"app": "web"},
            "publishNotReadyAddresses": true,
            "trafficDistribution": "PreferClose",
            "ipFamilyPolicy": "SingleStack",
            "loadBalancerIP": "203.0.113.9",
            "loadBalancerClass": "example.com/lb",
            "allocateLoadBalancerNodePorts": false,
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "appProtocol": "http"}],
        },
        "status": {"conditions": [], "loadBalancer": {}},
    }));
    assert_eq!(plain, decorated);
}

/// S-12, S-13
#[test]
fn s12_s13_defaults() {
    let plain = service(json!({}));
    assert_eq!(plain.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(plain.session_affinity, None);
    assert_eq!(plain.created, 0);
    let local = service(json!({"spec": {"internalTrafficPolicy": "Local"}}));
    assert_eq!(local.internal_traffic_policy, TrafficPolicy::Local);
    for (affinity, config, expected) in [
        ("None", json!({}), None),
        ("", json!({}), None),
        ("ClientIP", json!({}), Some(10800)),
        ("ClientIP", json!({"clientIP": {}}), Some(10800)),
        (
            "ClientIP",
            json!({"clientIP": {"timeoutSeconds": 90}}),
            Some(90),
        ),
        (
            "ClientIP",
            json!({"clientIP": {"timeoutSeconds": 86400}}),
            Some(86400),
        ),
    ] {
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        let timeout = service(json!({"spec": spec})).session_affinity;
        assert_eq!(timeout.map(u32::from), expected, "{spec}");
    }
    for (affinity, seconds, expected) in [
        ("Odd", 90, None),
        ("ClientIP", 0, Some(10800)),
        ("ClientIP", -1, Some(10800)),
        ("ClientIP", 86401, Some(10800)),
    ] {
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        let (service, problems) = read_service(json!({"spec": spec}));
        let timeout = service.unwrap().session_affinity;
        assert_eq!(timeout.map(u32::from), expected, "{spec}");
        assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
    }
}

/// S-18: what the API server refuses is left out, whatever it would do.
#[test]
fn names_that_cannot_be_are_reported() {
    let statement = "x\" : drop }\nflush ruleset\n#";
    for metadata in [
        json!({"name": statement}),
        json!({"name": "Web"}),
        json!({"name": "a.b"}),
        json!({"name": null}),
        json!({"namespace": statement}),
        json!({"namespace": ""}),
        json!({"namespace": "a.b"}),
        json!({"namespace": "a/b"}),
    ] {
        let (service, problems) = read_service(json!({"metadata": metadata}));
        assert_eq!((service, problems.len()), (None, 1), "{metadata}");
        assert!(
            problems[0].message.starts_with("metadata: "),
            "{problems:?}"
        );
        assert!(!problems[0].to_string().contains('\n'), "{problems:?}");
    }
    // Names that start with a digit are legal since Kubernetes 1.34.
    assert_eq!(
        service(json!({"metadata": {"name": "1st"}})).name.as_str(),
        "default/1st"
    );

    for metadata in [
        json!({"name": statement}),
        json!({"namespace": statement}),
        json!({"labels": {"kubernetes.io/service-name": statement}}),
        json!({"labels": {"kubernetes.io/service-name": "Web_1"}}),
    ] {
        let (slice, problems) = read_slice(json!({"metadata": metadata}));
        assert_eq!((slice, problems.len()), (None, 1), "{metadata}");
    }
    let longest = vec!["a"; 127].join(".");
    assert_eq!(
        slice(json!({"metadata": {"name": longest}})).name.as_str(),
        format!("default/{longest}")
    );
    let (slice, problems) = read_slice(json!({
        "ports": [{"name": statement, "port": 1}, {"name": "http", "port": 80}],
        "endpoints": [{
            "addresses": ["10.244.1.5"],
            "nodeName": statement,
            "hints": {"forZones": [{"name": statement}, {"name": "a"}]},
        }],
    }));
    let slice = slice.unwrap();
    assert_eq!(slice.ports.len(), 1);
    let SliceEndpoints::V4(endpoints) = slice.endpoints else {
        panic!("the slice is of IPv4");
    };
    assert_eq!(endpoints[0].locality, Locality::Remote);
    assert_eq!(*endpoints[0].hints.as_ref().unwrap().zones, ["a".into()]);
    let places = places(&problems);
    let (of_endpoints, of_ports) = places.split_at(2);
    assert_eq!(of_endpoints, ["EndpointSlice default/web-1 endpoints"; 2]);
    assert_eq!(of_ports, ["EndpointSlice default/web-1 ports"]);
}

/// Addresses that the API server refuses where packets would be sent to, or where no ServiceCIDR
/// can be.
#[test]
fn special_addresses_are_reported() {
    for special in ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1"] {
        let (slice, problems) = read_slice(json!({"endpoints": [
            {"addresses": [special]},
            {"addresses": ["10.244.1.5"]},
        ]}));
        assert!(matches!(slice.unwrap().endpoints, SliceEndpoints::V4(one) if one.len() == 1));
        assert_eq!(places(&problems), ["EndpointSlice default/web-1 endpoints"]);
        let (service, problems) = read_service(json!({"spec": {"externalIPs": [special]}}));
        assert_eq!(service.unwrap().external_ips.len(), 0);
        assert_eq!(places(&problems), ["Service default/web spec.externalIPs"]);
    }
    for special in ["127.0.0.1", "0.0.0.0"] {
        let (service, problems) = read_service(json!({"spec": {"clusterIPs": [special]}}));
        assert_eq!(service.unwrap().cluster_ips, ClusterIps::default());
        assert_eq!(places(&problems), ["Service default/web spec.clusterIPs"]);
    }
}

/// O-71 (internal addresses before external ones, others skipped)
#[test]
fn what_of_a_node_cannot_be_used_is_reported() {
    let object = serde_json::from_value(json!({
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a zone"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "nonsense"]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "nonsense"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": "node-1"},
        ]},
    }));
    let mut problems = Vec::new();
    let info = k8s::node_info(&object.unwrap(), &mut problems);
    assert_eq!(info.zone, None);
    assert_eq!(info.pod_cidrs.len(), 1);
    assert_eq!(
        info.ips,
        [[192, 0, 2, 1], [198, 51, 100, 1]].map(IpAddr::from)
    );
    assert_eq!(
        places(&problems),
        [
            "Node node-1 label topology.kubernetes.io/zone",
            "Node node-1 status.addresses",
            "Node node-1 spec.podCIDRs"
        ]
    );
}

/// S-15
#[test]
fn s15_the_age_is_read() {
    let metadata = json!({"creationTimestamp": "1970-01-02T00:00:01Z"});
    assert_eq!(service(json!({"metadata": metadata})).created, 86401);
}

/// S-21, S-22
#[test]
fn s21_s22_slices_of_no_service_or_not_for_proxies_are_skipped() {
    for labels in [
        json!({"kubernetes.io/service-name": null}),
        json!({"kubernetes.io/service-name": ""}),
        json!({"service.kubernetes.io/headless": ""}),
    ] {
        let (slice, problems) = read_slice(json!({"metadata": {"labels": labels}}));
        assert_eq!((slice, problems), (None, vec![]), "{labels}");
    }
    let (none, _) = read_slice(json!({"metadata": {"labels": null}}));
    assert_eq!(none, None);
    let owned = slice(json!({"metadata": {
        "namespace": "other",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "owner", "uid": "1"}],
    }}));
    assert_eq!(owned.service.as_str(), "other/web");
}

/// S-23
#[test]
fn s23_it_does_not_matter_who_manages_a_slice() {
    let managed_by = json!({"endpointslice.kubernetes.io/managed-by": "someone"});
    assert_eq!(
        slice(json!({"metadata": {"labels": managed_by}})),
        slice(json!({}))
    );
}

/// S-24
#[test]
fn s24_slices_have_a_family() {
    let v6 = slice(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}));
    assert!(matches!(&v6.endpoints, SliceEndpoints::V6(endpoints) if endpoints.len() == 1));
    let (fqdn, problems) = read_slice(json!({"addressType": "FQDN"}));
    assert_eq!((fqdn, problems.len()), (None, 1));
    let (mixed, problems) = read_slice(json!({"addressType": "IPv6"}));
    assert!(matches!(mixed.unwrap().endpoints, SliceEndpoints::V6(none) if none.is_empty()));
    assert_eq!(places(&problems), ["EndpointSlice default/web-1 endpoints"]);
}

/// S-26, S-27, S-168: a missing protocol is TCP; without a name or a number there is no port, rather than
/// every port.
#[test]
fn s26_s27_slice_ports() {
    let ports = json!([
        {"name": "", "port": 1},
        {"name": "udp", "port": 2, "protocol": "UDP"},
        {"port": 3},
        {"name": "without"},
        {"name": "zero", "port": 0},
        {"name": "odd", "port": 4, "protocol": "DCCP"},
        {"name": "large", "port": 65536},
    ]);
    let (slice, problems) = read_slice(json!({"ports": ports}));
    assert_eq!(places(&problems), ["EndpointSlice default/web-1 ports"; 2]);
    let slice = slice.unwrap();
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol, port.port.get()))
        .collect();
    assert_eq!(ports, [("", Protocol::Tcp, 1), ("udp", Protocol::Udp, 2)]);
    assert_eq!(self::slice(json!({"ports": null})).ports, [].into());
}

/// S-18, S-28
#[test]
fn s18_s28_the_first_address_of_an_endpoint_counts() {
    let (slice, problems) = read_slice(json!({"endpoints": [
        {"addresses": ["10.180.00.001", "10.180.0.2"]},
        {"addresses": []},
        {"addresses": ["nonsense", "10.180.0.3"]},
    ]}));
    let SliceEndpoints::V4(endpoints) = slice.unwrap().endpoints else {
        panic!("the slice is of IPv4");
    };
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(addresses, [Ipv4Addr::new(10, 180, 0, 1)]);
    assert_eq!(
        places(&problems),
        ["EndpointSlice default/web-1 endpoints"; 2]
    );
}

/// S-31, O-69
#[test]
fn s31_locality_is_the_exact_name_of_the_node() {
    let at = |node_name: Value| {
        let endpoint = json!({"addresses": ["10.0.0.1"], "nodeName": node_name});
        match read_slice(json!({"endpoints": [endpoint]}))
            .0
            .unwrap()
            .endpoints
        {
            SliceEndpoints::V4(endpoints) => endpoints[0].locality,
            SliceEndpoints::V6(endpoints) => panic!("{endpoints:?} are of IPv6"),
        }
    };
    assert_eq!(at(json!("node-1")), Locality::Local);
    assert_eq!(at(json!("Node-1")), Locality::Remote);
    assert_eq!(at(json!("node-10")), Locality::Remote);
    assert_eq!(at(json!(null)), Locality::Unknown);
}

/// S-32
#[test]
fn s32_each_condition_has_its_default() {
    for (conditions, expected) in [
        (json!(null), (true, true, false)),
        (json!({}), (true, true, false)),
        (json!({"ready": false}), (false, true, false)),
        (
            json!({"ready": false, "terminating": true}),
            (false, true, true),
        ),
        (json!({"serving": false}), (true, false, false)),
    ] {
        let endpoint =
            &endpoints(json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]))[0];
        let actual = (endpoint.ready, endpoint.serving, endpoint.terminating);
        assert_eq!(actual, expected, "{conditions}");
    }
}

/// S-34: an empty list is no hint, and the zone of the endpoint is not read.
#[test]
fn s34_hints() {
    let hints_of = |hints: Value| {
        let endpoint = json!({"addresses": ["10.0.0.1"], "zone": "zone-x", "hints": hints});
        let hints = endpoints(json!([endpoint]))[0].hints.clone()?;
        let zones: Vec<_> = hints.zones.iter().map(ToString::to_string).collect();
        Some((zones.join(" "), hints.node))
    };
    let nodes = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({"name": name}))
            .collect::<Vec<_>>()
    };
    assert_eq!(hints_of(json!(null)), None);
    assert_eq!(hints_of(json!({"forZones": [], "forNodes": []})), None);
    let zones = hints_of(json!({"forZones": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(zones, Some(("a b".into(), NodeHint::None)));
    let this = hints_of(json!({"forNodes": nodes(&["node-2", "node-1"])}));
    assert_eq!(this, Some((String::new(), NodeHint::ThisNode)));
    let other = hints_of(json!({"forNodes": nodes(&["node-10"])}));
    assert_eq!(other, Some((String::new(), NodeHint::OtherNodes)));
}

/// S-114
#[test]
fn s114_service_cidrs() {
    let object: ServiceCIDR = serde_json::from_value(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "nonsense", "fd00:10:96::/112"]},
        "status": {"conditions": []},
    }))
    .unwrap();
    let mut problems = Vec::new();
    let ranges = k8s::service_cidrs(&object, &mut problems);
    let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00:10:96::/112"]);
    assert_eq!(places(&problems), ["ServiceCIDR kubernetes spec.cidrs"]);
}
