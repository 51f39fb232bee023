//! Objects and settings that no API server would take: whatever they hold, rules stay ours.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;

use integration::daemon::{Output, run};
use integration::netns::{Namespace, in_sandbox};
use integration::nft::loadable;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftproxy_core::compile::compile;
use nftproxy_core::k8s;
use nftproxy_core::model::{
    DetectLocal, InterfaceName, Node, Protocol, Service, ServiceName, ServicePort, State,
};
use nftproxy_core::render;
use nftproxy_core::ruleset::Comment;
use nftproxy_core::ruleset::element::{Destination, Element, Role};
use nftproxy_core::ruleset::expr::Verdict;
use nftproxy_core::ruleset::name::ChainName;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// What would be a statement, or the end of one, if it got into a script as it is.
const PIECES: [&str; 22] = [
    "\"",
    "\\",
    "{",
    "}",
    "\n",
    ";",
    "#",
    ",",
    " : drop",
    "flush ruleset",
    "include \"/etc/passwd\"",
    "*",
    "/",
    "a",
    "web",
    "0",
    "-",
    ".",
    "\0",
    "\u{2028}",
    "ä",
    "10.96.0.9",
];

fn hostile() -> impl Strategy<Value = String> {
    let pieces = vec(prop::sample::select(&PIECES[..]), 0..6).prop_map(|pieces| pieces.concat());
    prop_oneof![3 => pieces, 1 => any::<String>(), 4 => Just("web".to_owned())]
}

/// Either what it should be, or not.
fn or_hostile(good: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(good.to_owned()), 1 => hostile()]
}

/// A Service, a slice, a ServiceCIDR and a Node.
fn objects() -> impl Strategy<Value = [Value; 4]> {
    let names = (
        hostile(),
        or_hostile("web"),
        or_hostile("http"),
        or_hostile("web"),
    );
    let texts = (
        or_hostile("10.96.0.9"),
        or_hostile("IPv4"),
        or_hostile("TCP"),
        or_hostile("10.244.1.5"),
        or_hostile("10.0.0.0/8"),
        or_hostile("zone-a"),
    );
    let numbers = (
        any::<i32>(),
        prop_oneof![Just(80), any::<i32>()],
        any::<i32>(),
    );
    (names, texts, numbers).prop_map(
        |((namespace, name, port, label), (ip, family, protocol, address, cidr, zone), (a, b, c))| {
            [
                json!({
                    "metadata": {"namespace": "default", "name": name},
                    "spec": {
                        "type": "LoadBalancer",
                        "clusterIP": ip,
                        "clusterIPs": [ip],
                        "ipFamilies": [family],
                        "externalIPs": [ip, address],
                        "loadBalancerSourceRanges": [cidr],
                        "sessionAffinity": label,
                        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": a}},
                        "externalTrafficPolicy": zone,
                        "healthCheckNodePort": c,
                        "ports": [
                            {"name": port, "protocol": protocol, "port": b, "nodePort": a},
                            {"name": "http", "protocol": "TCP", "port": 80},
                        ],
                    },
                    "status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": family}]}},
                }),
                json!({
                    "metadata": {
                        "namespace": namespace,
                        "name": name,
                        "labels": {"kubernetes.io/service-name": label},
                    },
                    "addressType": family,
                    "ports": [{"name": port, "protocol": protocol, "port": b}, {"name": "http", "port": 80}],
                    "endpoints": [{
                        "addresses": [address],
                        "nodeName": zone,
                        "hints": {"forZones": [{"name": zone}], "forNodes": [{"name": label}]},
                    }],
                }),
                json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}}),
                json!({
                    "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
                    "spec": {"podCIDRs": [cidr]},
                    "status": {"addresses": [{"type": "InternalIP", "address": address}]},
                }),
            ]
        },
    )
}

/// The rules of all that can be used of some objects.
fn script(objects: [Value; 4], interface: &str) -> String {
    let [service, slice, service_cidr, node] = objects;
    let mut problems = Vec::new();
    let mut state = State::default();
    let object: core::Service = serde_json::from_value(service).unwrap();
    if let Some(service) = k8s::service(&object, &mut problems) {
        state.apply_service(service);
    }
    let object: discovery::EndpointSlice = serde_json::from_value(slice).unwrap();
    if let Some(slice) = k8s::endpoint_slice(&object, "node-1", &mut problems) {
        state.apply_slice(slice);
    }
    let object: ServiceCIDR = serde_json::from_value(service_cidr).unwrap();
    state.apply_service_cidr("any", k8s::service_cidrs(&object, &mut problems));
    let object: core::Node = serde_json::from_value(node).unwrap();
    let info = k8s::node_info(&object, &mut problems);
    for problem in problems {
        assert!(!problem.to_string().contains('\n'), "{problem:?}");
    }
    let detect_local = match InterfaceName::new(interface) {
        Ok(name) => DetectLocal::BridgeInterface(name),
        Err(_) => DetectLocal::Cidrs(info.pod_cidrs),
    };
    let node = Node {
        zone: info.zone,
        ips: info.ips,
        detect_local,
        ..Node::default()
    };
    let compiled = compile(&state, &node);
    render::ruleset(&compiled.v4) + &render::ruleset(&compiled.v6)
}

/// Whether each line is one statement of ours, and quotes hold nothing but plain text.
fn assert_ours(script: &str) {
    for line in script.lines() {
        let is_ours = ["table", "set", "map", "chain", "rule", "element"]
            .iter()
            .any(|what| {
                line.strip_prefix("add ")
                    .and_then(|line| line.strip_prefix(what))
                    .and_then(|line| {
                        line.strip_prefix(" ip")
                            .map(|line| line.trim_start_matches('6'))
                    })
                    .is_some_and(|line| line.starts_with(" nftproxy "))
            });
        assert!(is_ours, "{line:?}");
        let parts: Vec<_> = line.split('"').collect();
        assert_eq!(parts.len() % 2, 1, "quotes are not in pairs: {line:?}");
        for quoted in parts.iter().skip(1).step_by(2) {
            assert!(!quoted.contains(['{', '}', '\\']), "{line:?}");
            assert!(!quoted.chars().any(char::is_control), "{line:?}");
        }
        let bare: String = parts.iter().step_by(2).copied().collect();
        assert!(!bare.contains('#'), "{line:?}");
        if line.starts_with("add element") || line.starts_with("add rule") {
            assert!(!bare.contains(';'), "{line:?}");
        }
    }
}

#[track_caller]
fn assert_nft_takes(namespace: &Namespace, script: &str) {
    let result = namespace.exec_with_input(&["nft", "-c", "-f", "-"], &loadable(script));
    result.unwrap_or_else(|error| panic!("{error:#}: {script}"));
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

/// S-18: nothing of an object gets into a script but as what it should be.
#[test]
fn scripts_hold_our_statements_only() {
    let run = |cases, check: &dyn Fn(&str)| {
        runner(cases)
            .run(&(objects(), hostile()), |(objects, interface)| {
                check(&script(objects, &interface));
                Ok(())
            })
            .unwrap();
    };
    run(5_000, &assert_ours);
    in_sandbox(move || {
        let namespace = Namespace::new("host").unwrap();
        run(100, &|script| assert_nft_takes(&namespace, script));
    });
}

/// Embedders who build elements themselves are held to the same.
#[test]
fn comments_hold_plain_text_only() {
    let element = |text: &str| {
        let destination = Destination {
            address: Some([10, 96, 0, 1].into()),
            protocol: Protocol::Tcp,
            port: 80.try_into().unwrap(),
        };
        let verdict = Verdict::Goto(ChainName::Refuse);
        let element = Element::verdict(Role::Service, destination, verdict);
        element.with_comment(Comment::new(text))
    };
    let script = |text: &str| {
        let mut rules = compile(&State::default(), &Node::default()).v4;
        rules.elements.insert(element(text));
        render::ruleset(&rules)
    };
    runner(5_000)
        .run(&hostile(), |text| {
            assert_ours(&script(&text));
            assert!(Comment::new(&text).as_str().len() <= 128);
            Ok(())
        })
        .unwrap();
    in_sandbox(move || {
        let namespace = Namespace::new("host").unwrap();
        runner(50)
            .run(&hostile(), |text| {
                assert_nft_takes(&namespace, &script(&text));
                Ok(())
            })
            .unwrap();
    });
}

/// A Service cannot be built with a name that is not one.
#[test]
fn names_are_checked_where_they_are_made() {
    runner(5_000)
        .run(&(hostile(), hostile()), |(namespace, name)| {
            if let Ok(name) = ServiceName::new(&namespace, &name) {
                let port = ServicePort::new(Protocol::Tcp, 80.try_into().unwrap());
                let mut state = State::default();
                state.apply_service(Service::at(name, [10, 96, 0, 1].into(), [port]));
                let script = render::ruleset(&compile(&state, &Node::default()).v4);
                assert_ours(&script);
                assert!(
                    script.contains(&format!("comment \"{namespace}/")),
                    "{script}"
                );
            }
            Ok(())
        })
        .unwrap();
}

/// Runs a command of the program on manifests, which are not to touch this host.
fn program(arguments: &[&str], manifests: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("input.yaml"), manifests).unwrap();
    let folder = folder.path().to_str().unwrap();
    let host = Namespace::new("host").unwrap();
    run(&host, &[arguments, &["--manifests", folder]].concat()).unwrap()
}

const SERVICE_WITHOUT_NAMES: &str = "
apiVersion: v1
kind: Service
metadata: {name: un, namespace: t}
spec: {clusterIP: 10.96.7.4, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: un-1, namespace: t, labels: {kubernetes.io/service-name: un}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.11]}]
";

/// S-26: a slice port without a name has the empty one, as with an API server in between.
#[test]
fn ports_without_names_belong_together() {
    in_sandbox(|| {
        let Output { code, out, err } =
            program(&["render", "--family=ipv4"], SERVICE_WITHOUT_NAMES);
        assert_eq!(code, Some(0), "{err}");
        assert!(
            out.contains("10.96.7.4 . tcp . 80 comment \"t/un\" : goto pick-1"),
            "{out}"
        );
        assert!(
            out.contains("10.96.7.4 . tcp . 80 . 0 : 10.244.1.11 . 8080"),
            "{out}"
        );
    });
}

/// S-18: it is left out with a word, and the others are there.
#[test]
fn a_service_whose_name_is_a_statement_is_left_out() {
    in_sandbox(|| {
        let bad = r##"
apiVersion: v1
kind: Service
metadata: {name: "x\" : drop }\nflush ruleset\n#", namespace: t}
spec: {clusterIP: 10.96.7.11, ports: [{port: 443, name: h}]}
---"##;
        let manifests = format!("{bad}{SERVICE_WITHOUT_NAMES}");
        let Output { code, out, err } = program(&["render", "--family=ipv4"], &manifests);
        assert_eq!(code, Some(0), "{err}");
        assert!(!out.contains("flush"), "{out}");
        assert!(!out.contains("10.96.7.11"), "{out}");
        assert!(out.contains("10.96.7.4"), "{out}");
        assert_ours(&out);
        let line = err
            .lines()
            .find(|line| line.contains("flush ruleset"))
            .unwrap();
        assert!(line.contains("is not a DNS label"), "{line}");
        assert!(!err.lines().any(|line| line.starts_with("flush")), "{err}");
    });
}

/// O-45, O-46: rather than fail at each sync.
#[test]
fn interface_names_that_cannot_be_are_refused_at_start() {
    in_sandbox(|| {
        for (mode, flag, field, names) in [
            (
                "BridgeInterface",
                "--pod-bridge-interface",
                "detectLocal.bridgeInterface",
                ["averyveryverylongbridge", "cni0/1", "a b", "a\"b"],
            ),
            (
                "InterfaceNamePrefix",
                "--pod-interface-name-prefix",
                "detectLocal.interfaceNamePrefix",
                [
                    "averyveryverylongprefix",
                    "pod*",
                    "sixteen-bytes-16",
                    "a\nb",
                ],
            ),
        ] {
            for name in names {
                for command in ["run", "render"] {
                    let mode = format!("--detect-local-mode={mode}");
                    let flag = format!("{flag}={name}");
                    let Output { code, out, err } = program(&[command, &mode, &flag], "");
                    assert_eq!(code, Some(1), "{command} {name:?}: {out}{err}");
                    assert!(err.contains(field), "{err}");
                    assert!(err.contains("1 to 15 bytes"), "{err}");
                    assert_eq!(out, "");
                }
            }
        }
    });
}
