//! The real binary against an API server and against folders of manifests.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use integration::apiserver::{ApiServer, Resource};
use integration::daemon::{Daemon, binary};
use integration::fixtures::{NODE_NAME, canonical, path, read, recorded};
use integration::netns::in_sandbox;
use integration::nft::{can_load_all, loadable};
use integration::node::{NODE_IPS, RecordedNode, model};
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::model::{Family, Node, NodePortAddresses};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::expr::Expr;

/// A daemon that is configured like kube-proxy, by a file.
fn start(node: &RecordedNode, server: &ApiServer, folder: &Path) -> Daemon {
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
        &node.namespace,
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

/// O-86 to O-89, O-160: what is asked for is what the role `system:node-proxier` allows, with
/// kube-proxy's selectors.
#[test]
fn lists_and_watch_streams_become_the_rules() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let server = node.serve().unwrap();
        let daemon = start(&node, &server, folder.path());
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());

        server
            .replay(Resource::Services, &read("watch-services.jsonl"))
            .unwrap();
        server
            .replay(
                Resource::EndpointSlices,
                &read("watch-endpointslices.jsonl"),
            )
            .unwrap();
        node.wait_for_rules(&daemon, &recorded("after.yaml"), &model());

        // Only what the role `system:node-proxier` allows, and with kube-proxy's selectors.
        for request in server.requests() {
            let is_event = request.path == "/apis/events.k8s.io/v1/namespaces/default/events";
            let method = if is_event { "POST" } else { "GET" };
            assert_eq!(request.method, method, "{request:?}");
            let name = format!("metadata.name={NODE_NAME}");
            let (labels, fields) = match request.path.as_str() {
                "/api/v1/services" => (
                    Some("!service.kubernetes.io/service-proxy-name"),
                    Some("spec.clusterIP!=None"),
                ),
                "/apis/discovery.k8s.io/v1/endpointslices" => {
                    (Some("!service.kubernetes.io/headless"), None)
                }
                "/apis/networking.k8s.io/v1/servicecidrs" => (None, None),
                "/api/v1/nodes" => (None, Some(name.as_str())),
                _ if is_event => continue,
                path => panic!("{path} is none of what a proxy may ask for"),
            };
            let query = |key| request.query.get(key).map(String::as_str);
            assert_eq!(query("labelSelector"), labels, "{request:?}");
            assert_eq!(query("fieldSelector"), fields, "{request:?}");
        }
        assert_eq!(daemon.stop().unwrap(), Some(0));
        // The rules stay.
        assert!(node.listed().unwrap().0.is_some());
    });
}

#[test]
fn a_disconnect_and_a_gone_history_lose_nothing() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let server = node.serve().unwrap();
        let daemon = start(&node, &server, folder.path());
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());

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
        node.wait_for_rules(&daemon, &recorded("after.yaml"), &model());
    });
}

#[test]
fn a_restart_with_nothing_changed_sends_nothing() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let server = node.serve().unwrap();
        let daemon = start(&node, &server, folder.path());
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());
        daemon.stop().unwrap();
        let generation = || {
            node.namespace
                .exec(&["nft", "-j", "list", "ruleset"])
                .unwrap()
        };
        let before = generation();
        let mut daemon = start(&node, &server, folder.path());
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
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let server = node.serve().unwrap();
        server.refuse(true);
        let mut daemon = start(&node, &server, folder.path());
        daemon.wait_for_log("watch failed; retrying").unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(node.listed().unwrap() == (None, None));
        server.refuse(false);
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());
    });
}

/// S-115, O-92: a changed ServiceCIDR acts at once. S-178, O-74: so does a node address that appears.
#[test]
fn service_cidrs_and_addresses_are_followed() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let server = node.serve().unwrap();
        let daemon = start(&node, &server, folder.path());
        let mut state = recorded("all.yaml");
        node.wait_for_rules(&daemon, &state, &model());

        let cidr = serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "second"}, "spec": {"cidrs": ["10.200.0.0/16"]},
        });
        server.upsert(cidr).unwrap();
        state.apply_service_cidr("second", ["10.200.0.0/16".parse().unwrap()]);
        node.wait_for_rules(&daemon, &state, &model());

        node.namespace
            .exec(&["ip", "addr", "del", NODE_IPS[0], "dev", "lo"])
            .unwrap();
        let without = Node {
            node_port_addresses_v4: NodePortAddresses::Only([].into()),
            ..model()
        };
        node.wait_for_rules(&daemon, &state, &without);
        node.namespace
            .exec(&["ip", "addr", "add", NODE_IPS[0], "dev", "lo"])
            .unwrap();
        node.wait_for_rules(&daemon, &state, &model());
    });
}

/// Manifests in a folder do what the API server does, and are followed as they change.
#[test]
fn a_folder_of_manifests_is_followed() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        fs::copy(path("all.yaml"), &file).unwrap();
        let arguments = [
            "run",
            "--manifests",
            folder.path().to_str().unwrap(),
            "--hostname-override",
            NODE_NAME,
            "--cluster-cidr",
            "10.244.0.0/16",
            "--iptables-min-sync-period=10ms",
        ];
        let start = || Daemon::start(&node.namespace, &arguments).unwrap();
        let mut daemon = start();
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());

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
        node.wait_for_rules(&daemon, &state, &model());

        fs::copy(path("after.yaml"), &file).unwrap();
        fs::remove_file(folder.path().join("more.yaml")).unwrap();
        node.wait_for_rules(&daemon, &recorded("after.yaml"), &model());

        // At a start there is no last good state, and nothing is cut off.
        daemon.stop().unwrap();
        let before = node.listed().unwrap();
        let bad = folder.path().join("bad.yaml");
        fs::write(&bad, "kind: [").unwrap();
        fs::copy(path("all.yaml"), &file).unwrap();
        let mut daemon = start();
        daemon.wait_for_log("the rules stay as they are").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(node.listed().unwrap() == before, "{}", daemon.log());
        fs::remove_file(&bad).unwrap();
        node.wait_for_rules(&daemon, &recorded("all.yaml"), &model());
        daemon.stop().unwrap();
    });
}

/// O-77: a host without IPv6 has the IPv4 table alone.
#[test]
fn a_host_without_ipv6_has_one_table() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        node.namespace
            .sysctl("net.ipv6.conf.all.disable_ipv6", "1")
            .unwrap();
        let manifests = path("all.yaml");
        let arguments = ["run", "--manifests", manifests.to_str().unwrap()];
        let mut daemon = Daemon::start(&node.namespace, &arguments).unwrap();
        daemon.wait_for_log("ipFamily=\"IPv4\" full=true").unwrap();
        thread::sleep(Duration::from_millis(200));
        let (v4, v6) = node.listed().unwrap();
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
        let node = RecordedNode::new().unwrap();
        let script = loadable(&String::from_utf8(output.stdout).unwrap());
        node.namespace
            .exec_with_input(&["nft", "-c", "-f", "-"], &script)
            .unwrap();
        node.namespace
            .exec_with_input(&["nft", "-f", "-"], &script)
            .unwrap();
        let Compiled { v4, v6, .. } = compile(&recorded("all.yaml"), &model());
        let (found_v4, found_v6) = node.listed().unwrap();
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

/// O-16: where going on is impossible, one clear line says why, and the exit code is not 0.
#[test]
fn hopeless_starts_say_why() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
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
            let mut daemon = Daemon::start(&node.namespace, arguments).unwrap();
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
