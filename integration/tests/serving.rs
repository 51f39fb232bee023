//! The servers of the real binary: health, metrics and pages, asked by clients of all kinds.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Resource};
use integration::daemon::Daemon;
use integration::fixtures::{NODE_NAME, read};
use integration::netns::{Namespace, in_sandbox};
use serde_json::{Value, json};

const HEALTHZ: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";
/// Half-open clients at a time; four times what a listener serves.
const N_CLIENTS: usize = 1000;

fn node_namespace() -> Namespace {
    let namespace = Namespace::new("node").unwrap();
    namespace
        .exec(&["ip", "addr", "add", "172.18.0.2", "dev", "lo"])
        .unwrap();
    namespace
}

fn server(namespace: &Namespace) -> ApiServer {
    let server = namespace.run(|| ApiServer::start().unwrap());
    for (resource, file) in [
        (Resource::Services, "services.json"),
        (Resource::EndpointSlices, "endpointslices.json"),
        (Resource::Nodes, "nodes.json"),
        (Resource::ServiceCidrs, "servicecidrs.json"),
    ] {
        server.load_list(resource, &read(file)).unwrap();
    }
    server
}

/// A daemon as kubeadm starts kube-proxy, with further fields in the file.
fn start(namespace: &Namespace, server: &ApiServer, folder: &Path, fields: &str) -> Daemon {
    let kubeconfig = folder.join("kubeconfig.conf");
    fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let config = folder.join("config.conf");
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         mode: nftables\nclusterCIDR: 10.244.0.0/16\n\
         clientConnection:\n  kubeconfig: {}\n\
         conntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n{fields}",
        kubeconfig.display()
    );
    fs::write(&config, text).unwrap();
    let config = format!("--config={}", config.display());
    let name = format!("--hostname-override={NODE_NAME}");
    Daemon::start(namespace, &[&config, &name, "-v=2"]).unwrap()
}

/// Status and body of an answer; none if nobody listens.
fn get(namespace: &Namespace, address: &str, path: &str) -> Option<(u16, String)> {
    namespace.run(|| {
        let address: SocketAddr = address.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some((status, body.to_owned()))
    })
}

#[track_caller]
fn wait_for(
    namespace: &Namespace,
    daemon: &Daemon,
    address: &str,
    path: &str,
    status: u16,
) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut last = None;
    while Instant::now() < deadline {
        last = get(namespace, address, path);
        match last {
            Some((found, body)) if found == status => return body,
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
    panic!(
        "{path} never answers {status}, but {last:?}; log:\n{}",
        daemon.log()
    );
}

/// The value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

/// O-68, O-98, O-116, O-134: health is answered before there is an API server, tells when there are
/// rules, follows the node, and does not mind the API server's end.
#[test]
fn health_follows_the_proxy_and_the_node() {
    in_sandbox(|| {
        let (namespace, folder) = (node_namespace(), tempfile::tempdir().unwrap());
        let server = server(&namespace);
        server.refuse(true);
        let daemon = start(&namespace, &server, folder.path(), "");
        wait_for(&namespace, &daemon, HEALTHZ, "/livez", 200);
        let body = wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 503);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["nodeEligible"], false);
        // O-107: by the other family, though the wildcard is that of IPv4.
        wait_for(&namespace, &daemon, "[::1]:10256", "/livez", 200);

        server.refuse(false);
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);

        let mut node: Value = serde_json::from_str(&read("nodes.json")).unwrap();
        let nodes = node["items"].as_array_mut().unwrap();
        let mut node = nodes
            .iter()
            .find(|node| node["metadata"]["name"] == NODE_NAME)
            .unwrap()
            .clone();
        node["apiVersion"] = "v1".into();
        node["kind"] = "Node".into();
        let healthy = node.clone();
        node["spec"]["taints"] =
            json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
        server.upsert(node).unwrap();
        let body = wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 503);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["healthy"], &body["nodeEligible"]),
            (&json!(true), &json!(false))
        );
        wait_for(&namespace, &daemon, HEALTHZ, "/livez", 200);
        server.upsert(healthy).unwrap();
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);
        server.refuse(true);
        server.disconnect_watches();
        thread::sleep(Duration::from_millis(300));
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);
        assert_eq!(daemon.stop().unwrap(), Some(0));
    });
}

/// O-124 to O-133, O-136, O-142, and what kube-proxy does not tell.
#[test]
fn metrics_tell_what_was_done() {
    in_sandbox(|| {
        let (namespace, folder) = (node_namespace(), tempfile::tempdir().unwrap());
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path(), "");
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);
        let (_, text) = get(&namespace, METRICS, "/metrics").unwrap();
        for (series, at_least) in [
            (
                "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
                1.0,
            ),
            (
                "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
                1.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}",
                1.7e9,
            ),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 5.0),
            ("kubeproxy_sync_proxy_rules_service_changes_total", 10.0),
            ("nftproxy_sync_batch_bytes_sum{ip_family=\"IPv4\"}", 1000.0),
            ("nftproxy_sync_batch_elements_sum{ip_family=\"IPv4\"}", 10.0),
            (
                "nftproxy_sync_kernel_duration_seconds_count{ip_family=\"IPv4\"}",
                1.0,
            ),
            ("nftproxy_lists_total{kind=\"Service\"}", 1.0),
            ("nftproxy_watches_total{kind=\"EndpointSlice\"}", 1.0),
            ("process_resident_memory_bytes", 1e6),
        ] {
            let found = value(&text, series);
            assert!(
                found.is_some_and(|found| found >= at_least),
                "{series}: {found:?}"
            );
        }
        for series in [
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "nftproxy_notes{ip_family=\"IPv4\",reason=\"Refused\"}",
            "nftproxy_repairs_total{cause=\"comparison\",ip_family=\"IPv4\"}",
            "nftproxy_flows_forgotten_total",
        ] {
            assert_eq!(value(&text, series), Some(0.0), "{series}");
        }
        let requests = text
            .lines()
            .find(|line| line.starts_with("rest_client_requests_total{"));
        assert!(requests.unwrap().contains("method=\"GET\""), "{requests:?}");
        // O-110, O-112
        assert_eq!(
            get(&namespace, METRICS, "/proxyMode").unwrap(),
            (200, "nftables".into())
        );
        let (_, body) = get(&namespace, METRICS, "/configz").unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let config = &body["kubeproxy.config.k8s.io"];
        assert_eq!(config["kind"], "KubeProxyConfiguration");
        assert_eq!(config["nodePortAddresses"], json!(["primary"]));
        assert_eq!(config["hostnameOverride"], NODE_NAME);
    });
}

/// O-106: clients that connect and say nothing, or half of what they have to say, however many, keep
/// no probe from being answered, and the proxy works on.
#[test]
fn half_open_clients_do_no_harm() {
    in_sandbox(|| {
        let (namespace, folder) = (node_namespace(), tempfile::tempdir().unwrap());
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path(), "");
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);
        let clients: Vec<_> = namespace.run(|| {
            let connect = |index: usize| {
                let mut stream = TcpStream::connect([HEALTHZ, METRICS][index % 2]).unwrap();
                if index.is_multiple_of(3) {
                    // It may be cut already.
                    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: ");
                }
                stream
            };
            (0..N_CLIENTS).map(connect).collect()
        });
        for _ in 0..20 {
            assert_eq!(get(&namespace, HEALTHZ, "/healthz").unwrap().0, 200);
            assert_eq!(get(&namespace, METRICS, "/metrics").unwrap().0, 200);
        }
        let files = fs::read_dir(format!("/proc/{}/fd", daemon.id()))
            .unwrap()
            .count();
        assert!(files < N_CLIENTS, "{files} files are open");
        drop(clients);
        let partial =
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
        let before = value(&get(&namespace, METRICS, "/metrics").unwrap().1, partial);
        server
            .upsert(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": "default", "name": "late", "uid": "1"},
                "spec": {"clusterIP": "10.96.99.99", "clusterIPs": ["10.96.99.99"],
                         "ports": [{"port": 80, "protocol": "TCP"}]},
            }))
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = value(&get(&namespace, METRICS, "/metrics").unwrap().1, partial);
            if now > before {
                break;
            }
            assert!(Instant::now() < deadline, "no sync; log:\n{}", daemon.log());
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// O-30, O-108, O-155: a taken port is named and tried again; with `bindAddressHardFail` it is the end.
#[test]
fn a_taken_port_is_waited_for_or_is_the_end() {
    in_sandbox(|| {
        let (namespace, folder) = (node_namespace(), tempfile::tempdir().unwrap());
        let server = server(&namespace);
        let taken = namespace.run(|| std::net::TcpListener::bind(METRICS).unwrap());
        let mut daemon = start(&namespace, &server, folder.path(), "");
        daemon
            .wait_for_log("starting metrics server failed")
            .unwrap();
        daemon.wait_for_log("kube-proxy").unwrap();
        wait_for(&namespace, &daemon, HEALTHZ, "/healthz", 200);
        drop(taken);
        wait_for(&namespace, &daemon, METRICS, "/healthz", 200);
        daemon.stop().unwrap();

        let _taken = namespace.run(|| std::net::TcpListener::bind(METRICS).unwrap());
        let mut daemon = start(
            &namespace,
            &server,
            folder.path(),
            "bindAddressHardFail: true\n",
        );
        assert_eq!(daemon.wait().unwrap(), Some(1), "{}", daemon.log());
        // O-84: once for each start, and once for the failure.
        let path = "/apis/events.k8s.io/v1/namespaces/default/events";
        let requests = server.requests();
        let events = requests.iter().filter(|request| request.path == path);
        let methods: Vec<_> = events.map(|request| request.method.as_str()).collect();
        assert_eq!(methods, ["POST"; 3]);
        daemon
            .wait_for_log("starting metrics server failed")
            .unwrap();
    });
}
