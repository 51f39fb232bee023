//! The real binary against an API server and against folders of manifests.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Resource, StreamingLists};
use integration::daemon::{Daemon, binary};
use integration::fixtures::{NODE_NAME, canonical, path, read, recorded};
use integration::netns::{Namespace, in_sandbox};
use integration::nft::{can_load_all, loadable};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::model::{DetectLocal, Family, Node, NodePortAddresses, State, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::expr::Expr;

/// The addresses of `node-1` in the recorded cluster.
const NODE_IPS: [&str; 2] = ["172.18.0.2", "fd00:172:18::2"];
const ZONE: &str = "eu-1a";

/// What the kernel holds: both families' tables, as far as they are there.
fn listed(namespace: &Namespace) -> (Option<FamilyRuleset<V4>>, Option<FamilyRuleset<V6>>) {
    namespace.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let v4 = Kernel::<V4>::list(&mut netlink).unwrap();
        let v6 = Kernel::<V6>::list(&mut netlink).unwrap();
        (
            v4.map(|table| canonical(&table.ruleset)),
            v6.map(|table| canonical(&table.ruleset)),
        )
    })
}

#[track_caller]
fn wait_for_ruleset(namespace: &Namespace, daemon: &Daemon, state: &State, node: &Node) {
    let Compiled { v4, v6, .. } = compile(state, node);
    let wanted = (Some(canonical(&v4)), Some(canonical(&v6)));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = listed(namespace);
        if found == wanted {
            return;
        }
        if Instant::now() > deadline {
            let lines = |ruleset: &FamilyRuleset<V4>| -> Vec<_> {
                ruleset
                    .elements
                    .iter()
                    .map(|element| format!("{}: {}", element.set(), element.nft()))
                    .collect()
            };
            let wanted = lines(&canonical(&v4));
            let found = found.0.as_ref().map(lines).unwrap_or_default();
            let missing: Vec<_> = wanted.iter().filter(|line| !found.contains(line)).collect();
            let extra: Vec<_> = found.iter().filter(|line| !wanted.contains(line)).collect();
            panic!(
                "missing {missing:#?}, too many {extra:#?}, log:\n{}",
                daemon.log()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The node as the daemon should see it in the recorded cluster.
fn node() -> Node {
    let only = |ip: &str| NodePortAddresses::Only([ip.parse::<IpAddr>().unwrap()].into());
    Node {
        zone: Some(ZONE.into()),
        detect_local: DetectLocal::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]),
        node_port_addresses_v4: only(NODE_IPS[0]),
        node_port_addresses_v6: only(NODE_IPS[1]),
        ips: NODE_IPS.map(|ip| ip.parse().unwrap()).to_vec(),
        ..Node::default()
    }
}

/// A namespace with the node's addresses, on its only interface.
fn node_namespace() -> Namespace {
    let namespace = Namespace::new("node").unwrap();
    for ip in NODE_IPS {
        namespace
            .exec(&["ip", "addr", "add", ip, "dev", "lo"])
            .unwrap();
    }
    namespace
}

fn server(namespace: &Namespace) -> ApiServer {
    let server = namespace.run(|| ApiServer::start().unwrap());
    server
        .load_list(Resource::Services, &read("services.json"))
        .unwrap();
    server
        .load_list(Resource::EndpointSlices, &read("endpointslices.json"))
        .unwrap();
    server
        .load_list(Resource::Nodes, &read("nodes.json"))
        .unwrap();
    server
        .load_list(Resource::ServiceCidrs, &read("servicecidrs.json"))
        .unwrap();
    server
}

/// A daemon that is configured like kube-proxy, by a file.
fn start(namespace: &Namespace, server: &ApiServer, folder: &Path) -> Daemon {
    let kubeconfig = folder.join("kubeconfig.conf");
    fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let config = folder.join("config.conf");
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
         kind: KubeProxyConfiguration\n\
         mode: nftables\n\
         clusterCIDR: 10.244.0.0/16\n\
         clientConnection:\n  kubeconfig: {}\n\
         nftables:\n  minSyncPeriod: 10ms\n  syncPeriod: 1s\n",
        kubeconfig.display()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    Daemon::start(
        namespace,
        &[
            "run",
            "--config",
            config,
            "--hostname-override",
            NODE_NAME,
            "-v=2",
        ],
    )
    .unwrap()
}

#[test]
fn lists_and_watch_streams_become_the_rules() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path());
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());

        server
            .replay(Resource::Services, &read("watch-services.jsonl"))
            .unwrap();
        server
            .replay(
                Resource::EndpointSlices,
                &read("watch-endpointslices.jsonl"),
            )
            .unwrap();
        wait_for_ruleset(&namespace, &daemon, &recorded("after.yaml"), &node());

        // Only what the role `system:node-proxier` allows, and with kube-proxy's selectors.
        for request in server.requests() {
            let is_event = request.path == "/apis/events.k8s.io/v1/namespaces/default/events";
            let method = if is_event { "POST" } else { "GET" };
            assert_eq!(request.method, method, "{request:?}");
            if request.path.ends_with("/services") {
                let label = "!service.kubernetes.io/service-proxy-name";
                assert_eq!(
                    request.query.get("labelSelector").map(String::as_str),
                    Some(label)
                );
                assert_eq!(
                    request.query.get("fieldSelector").map(String::as_str),
                    Some("spec.clusterIP!=None")
                );
            }
        }
        assert_eq!(daemon.stop().unwrap(), Some(0));
        // The rules stay.
        assert!(listed(&namespace).0.is_some());
    });
}

#[test]
fn a_disconnect_and_a_gone_history_lose_nothing() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path());
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());

        // Half of the streams, a cut, and the rest while nobody is connected.
        let services = read("watch-services.jsonl");
        let lines: Vec<_> = services.lines().collect();
        let (first, rest) = lines.split_at(lines.len() / 2);
        server
            .replay(Resource::Services, &first.join("\n"))
            .unwrap();
        server.refuse(true);
        server.disconnect_watches();
        server.replay(Resource::Services, &rest.join("\n")).unwrap();
        server
            .replay(
                Resource::EndpointSlices,
                &read("watch-endpointslices.jsonl"),
            )
            .unwrap();
        // By the time the server is back, the history of those changes is gone: 410.
        server.compact();
        thread::sleep(Duration::from_millis(200));
        server.refuse(false);
        wait_for_ruleset(&namespace, &daemon, &recorded("after.yaml"), &node());
    });
}

#[test]
fn a_server_with_streaming_lists_serves_as_well() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        server.set_streaming_lists(StreamingLists::Served);
        let daemon = start(&namespace, &server, folder.path());
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());
    });
}

#[test]
fn a_restart_with_nothing_changed_sends_nothing() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path());
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());
        daemon.stop().unwrap();
        let generation = || namespace.exec(&["nft", "-j", "list", "ruleset"]).unwrap();
        let before = generation();
        let mut daemon = start(&namespace, &server, folder.path());
        daemon
            .wait_for_log("ipFamily=\"IPv6\" full=true added=0 deleted=0 bytes=0")
            .unwrap();
        assert!(
            daemon
                .log()
                .contains("ipFamily=\"IPv4\" full=true added=0 deleted=0 bytes=0")
        );
        assert_eq!(generation(), before);
    });
}

#[test]
fn nothing_is_written_before_the_lists_are_complete() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        server.refuse(true);
        let mut daemon = start(&namespace, &server, folder.path());
        daemon.wait_for_log("watch failed; retrying").unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(listed(&namespace) == (None, None));
        server.refuse(false);
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());
    });
}

/// S-115: a changed ServiceCIDR acts at once. S-178, O-74: so does a node address that appears.
#[test]
fn service_cidrs_and_addresses_are_followed() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let server = server(&namespace);
        let daemon = start(&namespace, &server, folder.path());
        let mut state = recorded("all.yaml");
        wait_for_ruleset(&namespace, &daemon, &state, &node());

        let cidr = serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "second"}, "spec": {"cidrs": ["10.200.0.0/16"]},
        });
        server.upsert(cidr).unwrap();
        state.apply_service_cidr("second", ["10.200.0.0/16".parse().unwrap()]);
        wait_for_ruleset(&namespace, &daemon, &state, &node());

        namespace
            .exec(&["ip", "addr", "del", NODE_IPS[0], "dev", "lo"])
            .unwrap();
        let without = Node {
            node_port_addresses_v4: NodePortAddresses::Only([].into()),
            ..node()
        };
        wait_for_ruleset(&namespace, &daemon, &state, &without);
        namespace
            .exec(&["ip", "addr", "add", NODE_IPS[0], "dev", "lo"])
            .unwrap();
        wait_for_ruleset(&namespace, &daemon, &state, &node());
    });
}

/// Manifests in a folder do what the API server does, and are followed as they change.
#[test]
fn a_folder_of_manifests_is_followed() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        fs::copy(path("all.yaml"), &file).unwrap();
        let mut daemon = Daemon::start(
            &namespace,
            &[
                "run",
                "--manifests",
                folder.path().to_str().unwrap(),
                "--hostname-override",
                NODE_NAME,
                "--cluster-cidr",
                "10.244.0.0/16",
                "--iptables-min-sync-period=10ms",
            ],
        )
        .unwrap();
        wait_for_ruleset(&namespace, &daemon, &recorded("all.yaml"), &node());

        // A broken file keeps its last good state, and the log says where it is broken.
        fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: [\n").unwrap();
        daemon.wait_for_log("cluster.yaml:").unwrap();
        fs::write(
            folder.path().join("more.yaml"),
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\n\
             metadata: {name: more}\nspec: {cidrs: [10.200.0.0/16]}\n",
        )
        .unwrap();
        let mut state = recorded("all.yaml");
        state.apply_service_cidr("more", ["10.200.0.0/16".parse().unwrap()]);
        wait_for_ruleset(&namespace, &daemon, &state, &node());

        fs::copy(path("after.yaml"), &file).unwrap();
        fs::remove_file(folder.path().join("more.yaml")).unwrap();
        wait_for_ruleset(&namespace, &daemon, &recorded("after.yaml"), &node());
    });
}

/// O-77: a host without IPv6 has the IPv4 table alone.
#[test]
fn a_host_without_ipv6_has_one_table() {
    in_sandbox(|| {
        let namespace = node_namespace();
        namespace
            .sysctl("net.ipv6.conf.all.disable_ipv6", "1")
            .unwrap();
        let manifests = path("all.yaml");
        let arguments = ["run", "--manifests", manifests.to_str().unwrap()];
        let mut daemon = Daemon::start(&namespace, &arguments).unwrap();
        daemon.wait_for_log("ipFamily=\"IPv4\" full=true").unwrap();
        thread::sleep(Duration::from_millis(200));
        let (v4, v6) = listed(&namespace);
        assert!(v4.is_some() && v6.is_none());
    });
}

/// What `render` prints is what `run` installs.
#[test]
fn render_prints_what_run_installs() {
    in_sandbox(|| {
        let output = std::process::Command::new(binary().unwrap())
            .args([
                "render",
                "--hostname-override",
                NODE_NAME,
                "--cluster-cidr",
                "10.244.0.0/16",
            ])
            .args(["--manifests", path("all.yaml").to_str().unwrap()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let namespace = node_namespace();
        let script = loadable(&String::from_utf8(output.stdout).unwrap());
        namespace
            .exec_with_input(&["nft", "-c", "-f", "-"], &script)
            .unwrap();
        namespace
            .exec_with_input(&["nft", "-f", "-"], &script)
            .unwrap();
        let Compiled { v4, v6, .. } = compile(&recorded("all.yaml"), &node());
        let (found_v4, found_v6) = listed(&namespace);
        check_same(&found_v4.unwrap(), &canonical(&v4));
        check_same(&found_v6.unwrap(), &canonical(&v6));
    });
}

fn check_same<F: Family>(found: &FamilyRuleset<F>, wanted: &FamilyRuleset<F>) {
    assert!(found.elements == wanted.elements);
    for (chain, rules) in &wanted.skeleton.chains {
        // In a lookup of ranges, nft 1.0.6 puts a byte order conversion of one byte, which does
        // nothing.
        let mut found = found.skeleton.chains[chain].clone();
        if !can_load_all() && chain.to_string().ends_with("source-ranges") {
            continue;
        }
        for rule in &mut found {
            rule.exprs
                .retain(|expr| *expr != Expr::Foreign("byteorder".into()));
        }
        assert_eq!(found, *rules, "{chain}");
    }
    assert_eq!(found.skeleton.chains.len(), wanted.skeleton.chains.len());
}

/// Where going on is impossible, one clear line says why, and the exit code is not 0.
#[test]
fn hopeless_starts_say_why() {
    in_sandbox(|| {
        let namespace = node_namespace();
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("broken");
        fs::write(&broken, "clusters: 7\n").unwrap();
        let broken = broken.to_str().unwrap();
        let missing = folder.path().join("missing");
        let missing = missing.to_str().unwrap();
        for (arguments, message) in [
            (&["run", "--kubeconfig", broken][..], "reading kubeconfig"),
            (&["run", "--kubeconfig", missing], "reading kubeconfig"),
            (
                &["run", "--config", missing],
                "failed complete: failed to read",
            ),
            (&["run", "--manifests", missing], "looking for manifests"),
            (&["run"], "there is no in-cluster configuration"),
            (&["run", "--proxy-mode", "ipvs"], "nftables"),
        ] {
            let mut daemon = Daemon::start(&namespace, arguments).unwrap();
            assert_eq!(
                daemon.wait().unwrap(),
                Some(1),
                "{arguments:?}: {}",
                daemon.log()
            );
            daemon.wait_for_log(message).unwrap();
        }
    });
}
