//! The real binary as kube-proxy's stand-in: its flags, exit codes, what it takes over and removes.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Resource};
use integration::daemon::{Daemon, Output, binary, run};
use integration::fixtures::{NODE_NAME, path, read};
use integration::netns::{Namespace, in_sandbox, skip};
use tempfile::TempDir;

/// Rules of kube-proxy in mode iptables, beside those of the kubelet and of a CNI plugin.
const IPTABLES: &str = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:CNI-A - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-ABC
-A KUBE-SVC-ABC -p tcp -j DNAT --to-destination 10.0.0.1:80
-A CNI-A -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
COMMIT
";
const KUBE_PROXY_TABLES: &str = "\
add table ip kube-proxy
add chain ip kube-proxy a { type nat hook prerouting priority -100; }
add table ip6 kube-proxy
add map ip6 kube-proxy b { type ipv6_addr : verdict; }
add table ip other
";

/// Leaves in the namespace what kube-proxy does in its modes iptables and nftables.
fn leave_rules(namespace: &Namespace) {
    for backend in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        let input = if backend.starts_with("ip6") {
            IPTABLES
                .replace("10.96.0.1/32", "fd00::1/128")
                .replace("10.0.0.1:80", "[fd00::2]:80")
        } else {
            IPTABLES.to_owned()
        };
        namespace.exec_with_input(&[backend], &input).unwrap();
    }
    namespace
        .exec_with_input(&["nft", "-f", "-"], KUBE_PROXY_TABLES)
        .unwrap();
}

fn has_iptables() -> bool {
    let found = Command::new("iptables-nft").arg("--version").output();
    let has_iptables = found.is_ok();
    if !has_iptables {
        skip("iptables is not installed");
    }
    has_iptables
}

#[track_caller]
fn assert_only_others_rules(namespace: &Namespace) {
    for backend in ["iptables-nft-save", "ip6tables-nft-save"] {
        let saved = namespace.exec(&[backend]).unwrap();
        for gone in [
            "KUBE-SERVICES",
            "KUBE-SVC-",
            "KUBE-FORWARD",
            "KUBE-PROXY-CANARY",
        ] {
            assert!(!saved.contains(gone), "{gone}:\n{saved}");
        }
        for kept in [
            "KUBE-FIREWALL",
            "KUBE-IPTABLES-HINT",
            "-A CNI-A -j KUBE-MARK-MASQ",
        ] {
            assert!(saved.contains(kept), "{kept}:\n{saved}");
        }
    }
    let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
    assert!(!tables.contains("kube-proxy"), "{tables}");
    assert!(tables.contains("table ip other"), "{tables}");
}

/// An API server with nodes, the folder of its kubeconfig, and the flag that names that. The first two
/// are to be kept for as long as it is asked.
fn nodes_served(namespace: &Namespace) -> (ApiServer, TempDir, String) {
    let server = namespace.run(|| ApiServer::start().unwrap());
    server
        .load_list(Resource::Nodes, &read("nodes.json"))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    (server, folder, kubeconfig)
}

/// O-143, O-146, O-147, O-151, O-152: everything of ours and of kube-proxy's goes, nothing of others,
/// by the command and by kube-proxy's flag; and once more with nothing left.
#[test]
fn cleanup_removes_ours_and_kube_proxys() {
    in_sandbox(|| {
        if !has_iptables() {
            return;
        }
        for arguments in [
            &["cleanup"][..],
            &["--cleanup"],
            &["run", "--cleanup=true", "-v=2"],
        ] {
            let namespace = Namespace::new("cleanup").unwrap();
            let manifests = tempfile::tempdir().unwrap();
            let path = manifests.path().to_str().unwrap();
            let mut daemon = Daemon::start(&namespace, &["run", "--manifests", path]).unwrap();
            daemon.wait_for_log("ipFamily=\"IPv6\" full=true").unwrap();
            daemon.stop().unwrap();
            leave_rules(&namespace);
            let Output { code, err, .. } = run(&namespace, arguments).unwrap();
            assert_eq!(code, Some(0), "{err}");
            assert_only_others_rules(&namespace);
            let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
            assert!(!tables.contains("nftproxy"), "{tables}");
            let Output { code, err, .. } = run(&namespace, arguments).unwrap();
            assert_eq!(code, Some(0), "{err}");
        }
    });
}

/// O-152, O-154, O-144: kube-proxy's rules are there until ours are, and then go.
#[test]
fn a_takeover_removes_kube_proxys_rules_after_ours_are_there() {
    in_sandbox(|| {
        if !has_iptables() {
            return;
        }
        let namespace = Namespace::new("takeover").unwrap();
        leave_rules(&namespace);
        let server = namespace.run(|| ApiServer::start().unwrap());
        server
            .load_list(Resource::Nodes, &read("nodes.json"))
            .unwrap();
        server.refuse(true);
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        let name = format!("--hostname-override={NODE_NAME}");
        let mut daemon = Daemon::start(&namespace, &[&kubeconfig, &name]).unwrap();
        daemon.wait_for_log("the API server").unwrap();
        let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
        assert!(tables.contains("table ip kube-proxy"), "{tables}");
        server.refuse(false);
        daemon.wait_for_log("removed table ip6 kube-proxy").unwrap();
        daemon
            .wait_for_log("removed kube-proxy's iptables chains")
            .unwrap();
        assert_only_others_rules(&namespace);
        let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
        assert!(tables.contains("table ip nftproxy"), "{tables}");
    });
}

/// O-13, O-8: the effective configuration is written, over whatever was there, and can be read; what
/// is invalid is not.
#[test]
fn the_effective_configuration_is_written() {
    in_sandbox(|| {
        let namespace = Namespace::new("write").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("config.yaml");
        fs::write(&target, "old").unwrap();
        let to = format!("--write-config-to={}", target.display());
        let output = run(
            &namespace,
            &[&to, "--cluster-cidr=10.244.0.0/16", "--cleanup"],
        )
        .unwrap();
        assert_eq!(output.code, Some(0), "{}", output.err);
        assert!(
            output.err.contains("\"Wrote configuration\" file="),
            "{}",
            output.err
        );
        let written = fs::read_to_string(&target).unwrap();
        for line in [
            "clusterCIDR: 10.244.0.0/16",
            "mode: nftables",
            "detectLocalMode: ClusterCIDR",
            "- primary",
        ] {
            assert!(written.contains(line), "{line}:\n{written}");
        }
        let again = format!("{}2", target.display());
        let config = format!("--config={}", target.display());
        let output = run(
            &namespace,
            &[&config, &format!("--write-config-to={again}")],
        )
        .unwrap();
        assert_eq!(output.code, Some(0), "{}", output.err);
        assert_eq!(fs::read_to_string(&again).unwrap(), written);

        let output = run(&namespace, &[&to, "--oom-score-adj=5000"]).unwrap();
        assert_eq!(output.code, Some(1));
        assert!(
            output
                .err
                .contains("\"command failed\" err=\"failed validate: "),
            "{}",
            output.err
        );
        assert_eq!(fs::read_to_string(&target).unwrap(), written);
    });
}

/// O-9, O-1, O-64: exit codes and where messages go.
#[test]
fn mistakes_on_the_command_line_end_with_1() {
    in_sandbox(|| {
        let namespace = Namespace::new("flags").unwrap();
        for (arguments, message) in [
            (&["--nonsense"][..], "Usage:"),
            (&["--v=x"], "Usage:"),
            (
                &["--config=/proc/sys/kernel/ostype"],
                "failed to decode /proc/sys/kernel/ostype: invalid type: string \\\"Linux\\\", \
                 expected a document with apiVersion and kind",
            ),
            (
                &["--config=/nonexistent"],
                "\"command failed\" err=\"failed complete: ",
            ),
            (
                &["--proxy-mode=ipvs"],
                "nftproxy implements the nftables mode only",
            ),
        ] {
            let Output { code, out, err } = run(&namespace, arguments).unwrap();
            assert_eq!((code, out.as_str()), (Some(1), ""), "{arguments:?}");
            assert!(err.contains(message), "{arguments:?}: {err}");
        }
        let Output { code, out, err } = run(&namespace, &["--version"]).unwrap();
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert!(out.starts_with("nftproxy "), "{out}");
    });
}

/// Whoever has read enough of what is printed has not made a mistake.
#[test]
fn a_closed_pipe_is_no_error() {
    let manifests = format!("--manifests={}", path("all.yaml").display());
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["render", &manifests],
        &["check", "--help"],
        &["run", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary().unwrap());
        let output = command.args(arguments).stdout(writer).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
        let complains = error.contains("pipe") || error.contains("panicked");
        assert!(!complains, "{arguments:?}: {error}");
    }
}

/// O-14, O-79: the init container sets the host up and makes no table; it needs the API server.
/// O-83: no other sysctl of the network is touched.
#[test]
fn init_only_sets_the_host_up_and_leaves_no_rules() {
    in_sandbox(|| {
        let namespace = Namespace::new("init").unwrap();
        let (_server, _folder, kubeconfig) = nodes_served(&namespace);
        let name = format!("--hostname-override={NODE_NAME}");
        // The size of the table is the whole machine's, and not a namespace's to set.
        let arguments = [
            "--init-only",
            &kubeconfig,
            &name,
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=1h1m1s",
            "--conntrack-udp-timeout=61s",
        ];
        // What cannot be read is not told, and the number of connections is nobody's setting.
        let list = "grep -rs . /proc/sys/net | grep -v nf_conntrack_count";
        let sysctls = || {
            let text = namespace.exec(&["sh", "-c", list]).unwrap();
            text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let before = sysctls();
        assert!(before.len() > 100, "{before:?}");
        let Output { code, err, .. } = run(&namespace, &arguments).unwrap();
        assert_eq!(code, Some(0), "{err}");
        let after = sysctls();
        let changed: Vec<_> = after
            .difference(&before)
            .map(|line| {
                line.strip_prefix("/proc/sys/net/netfilter/nf_conntrack_")
                    .unwrap()
            })
            .collect();
        assert_eq!(
            changed,
            [
                "tcp_timeout_close_wait:3600",
                "tcp_timeout_established:3661",
                "udp_timeout:61"
            ]
        );
        for line in [
            "\"Successfully retrieved NodeIPs\"",
            "\"Set sysctl\" entry=\"net/netfilter/nf_conntrack_tcp_timeout_established\" value=3661",
            "\"System initialized and --init-only specified\"",
        ] {
            assert!(err.contains(line), "{line}: {err}");
        }
        let sysctl = |name: &str| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            namespace.exec(&["cat", &path]).unwrap().trim().to_owned()
        };
        assert_eq!(sysctl("tcp_timeout_established"), "3661");
        assert_eq!(sysctl("udp_timeout"), "61");
        let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
        assert!(!tables.contains("nftproxy"), "{tables}");
    });
}

/// O-76, O-77, O-9: a host without IPv6 has no proxy for pods or a node of IPv6 only; it ends with
/// kube-proxy's words and code, before there is any rule. O-72: a node without addresses is at
/// loopback.
#[test]
fn families_that_can_never_agree_end_the_process() {
    in_sandbox(|| {
        let namespace = Namespace::new("families").unwrap();
        namespace
            .sysctl("net.ipv6.conf.all.disable_ipv6", "1")
            .unwrap();
        let (_server, folder, kubeconfig) = nodes_served(&namespace);
        let name = format!("--hostname-override={NODE_NAME}");
        let cluster = "\"command failed\" err=\"kube-proxy configuration is incorrect: cluster is \
                       IPv4-only but clusterCIDRs contains only IPv6 addresses\"";
        let family = "\"command failed\" err=\"no support for primary IP family \\\"IPv6\\\"\"";
        for (argument, message) in [
            ("--cluster-cidr=fd00:10:244::/64", cluster),
            ("--bind-address=2001:db8::1", family),
        ] {
            for init_only in [&[][..], &["--init-only"]] {
                let arguments = [&[kubeconfig.as_str(), &name, argument][..], init_only].concat();
                let Output { code, err, .. } = run(&namespace, &arguments).unwrap();
                assert_eq!(code, Some(1), "{arguments:?}: {err}");
                assert!(err.contains(message), "{arguments:?}: {err}");
                assert_eq!(namespace.exec(&["nft", "list", "tables"]).unwrap(), "");
            }
        }
        let folder = folder.path().to_str().unwrap();
        let arguments = ["run", "--manifests", folder, "--bind-address=127.0.0.1"];
        let mut daemon = Daemon::start(&namespace, &arguments).unwrap();
        daemon
            .wait_for_log("\"Can't determine this node's IP, assuming loopback; if this is")
            .unwrap();
        daemon
            .wait_for_log("\"kube-proxy running in single-stack mode\" ipFamily=\"IPv4\"")
            .unwrap();
    });
}

/// O-166, O-167, O-169: what support engineers look for in kube-proxy's log, with its keys; O-67: the
/// steps of a start have kube-proxy's order, but for health, which is answered before.
#[test]
fn kube_proxys_well_known_lines_are_logged() {
    in_sandbox(|| {
        let namespace = Namespace::new("lines").unwrap();
        let (_server, _folder, kubeconfig) = nodes_served(&namespace);
        let name = format!("--hostname-override={NODE_NAME}");
        let mut daemon = Daemon::start(&namespace, &[&kubeconfig, &name, "-v=2"]).unwrap();
        for line in [
            "\"Using nftables Proxier\"",
            "\"kube-proxy running in dual-stack mode\" primary ipFamily=\"IPv4\"",
            "\"Detect-local-mode set to ClusterCIDR, but no cluster CIDR specified for primary IP \
             family\" ipFamily=\"IPv4\" clusterCIDRs=\"[]\"",
            "\"DetectLocalMode\" localDetectMode=\"ClusterCIDR\"",
            "\"NFTables sync params\" minSyncPeriod=\"by cost\" syncPeriod=\"30s\"",
            "\"Using nftables mark for masquerade\" mark=\"0x00004000\"",
            "\"Starting service config controller\"",
            "\"Starting endpoint slice config controller\"",
            "\"Starting serviceCIDR config controller\"",
            "\"Starting node config controller\"",
            "\"Waiting for caches to sync\" controller=\"service config\"",
            "\"Caches are synced\" controller=\"endpoint slice config\"",
            "\"Caches are synced\" controller=\"node config\"",
            "\"Successfully retrieved NodeIPs\" NodeIPs=",
            "\"SyncProxyRules complete\" ipFamily=\"IPv6\"",
        ] {
            daemon.wait_for_log(line).unwrap();
        }
        let log = daemon.log();
        let place = |text| log.find(text).unwrap();
        for (earlier, later) in [
            ("Using nftables Proxier", "Waiting for caches to sync"),
            ("Waiting for caches to sync", "Caches are synced"),
            ("Caches are synced", "SyncProxyRules complete"),
            ("Successfully retrieved NodeIPs", "SyncProxyRules complete"),
        ] {
            assert!(place(earlier) < place(later), "{earlier}, {later}: {log}");
        }
    });
}

/// O-157, O-85: under kube-proxy's name it is kube-proxy to the API server, whatever its command
/// line; O-12: it stops at once when told to, and leaves the rules.
#[test]
fn the_name_of_kube_proxy_works() {
    in_sandbox(|| {
        let namespace = Namespace::new("name").unwrap();
        let server = namespace.run(|| ApiServer::start().unwrap());
        server
            .load_list(Resource::Nodes, &read("nodes.json"))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig.conf");
        fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let config = folder.path().join("config.conf");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             clientConnection: {{kubeconfig: {}}}\nnftproxy: {{logFilter: 'source=debug'}}\n",
            kubeconfig.display()
        );
        fs::write(&config, text).unwrap();
        let program = folder.path().join("kube-proxy");
        symlink(binary().unwrap(), &program).unwrap();
        let mut command = Command::new(&program);
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!("--hostname-override={NODE_NAME}"))
            .stderr(fs::File::create(folder.path().join("log")).unwrap());
        let mut child = namespace.spawn(command).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let has_table = || {
            let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
            tables.contains("table ip6 nftproxy")
        };
        while !has_table() {
            let log = fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "{log}");
            thread::sleep(Duration::from_millis(20));
        }
        for request in server.requests() {
            let agent = request.headers.get("user-agent").unwrap();
            assert!(agent.starts_with("kube-proxy/"), "{agent}");
        }
        let id = child.id().to_string();
        let told = Instant::now();
        Command::new("kill").arg(id).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(told.elapsed() < Duration::from_secs(2));
        assert!(has_table(), "the rules stay");
    });
}
