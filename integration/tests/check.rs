//! `nftproxy check` on hosts in all conditions, and that `nftproxy run` says the same.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::env;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

use integration::daemon::{Daemon, Output, binary, run};
use integration::netns::{Namespace, in_sandbox, unsupported};
use integration::nft::loadable;
use serde_json::Value;

/// A host that passes packets on.
fn host() -> Namespace {
    let host = Namespace::new("host").unwrap();
    host.sysctl("net.ipv4.ip_forward", "1").unwrap();
    host.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    host
}

/// The findings, each as `level check: message; advice`, and the exit code.
fn check(host: &Namespace, arguments: &[&str]) -> (Vec<String>, Option<i32>) {
    let arguments = [&["check", "--output=json"], arguments].concat();
    let Output { code, out, err } = run(host, &arguments).unwrap();
    let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(document["version"], 1);
    let findings = document["findings"].as_array().unwrap().iter();
    let lines: Vec<_> = findings
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or_default();
            let [level, check, message, advice] = ["level", "check", "message", "advice"].map(text);
            format!("{level} {check}: {message}; {advice}")
        })
        .collect();
    let starts = |level: &str| lines.iter().any(|line| line.starts_with(level));
    let outcome = ["error", "warning"].into_iter().find(|level| starts(level));
    assert_eq!(document["outcome"], outcome.unwrap_or("ok"), "{lines:?}");
    (lines, code)
}

#[track_caller]
fn assert_has(lines: &[String], wanted: &str) {
    assert!(
        lines.iter().any(|line| line.contains(wanted)),
        "{wanted} is missing from {lines:#?}"
    );
}

/// Nothing is found, and nothing is left behind.
#[test]
fn all_is_well() {
    in_sandbox(|| {
        let host = host();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(0), "{lines:#?}");
        for wanted in [
            "ok kernel: Linux ",
            "ok rights: may change nftables",
            "ok rules: the kernel takes the rules of table ip nftproxy",
            "ok rules: the kernel takes the rules of table ip6 nftproxy",
            "ok conntrack: ",
            "ok forwarding: net.ipv4.ip_forward is on",
            "ok bridge: ",
            "ok neighbours: ",
            "ok ports: healthzBindAddress 0.0.0.0:10256 is free",
        ] {
            assert_has(&lines, wanted);
        }
        assert_eq!(host.exec(&["nft", "list", "ruleset"]).unwrap(), "");

        let text = run(&host, &["check"]).unwrap().out;
        assert_eq!(text.lines().count(), lines.len(), "{text}");
        assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
    });
}

#[test]
fn warnings_count_unless_they_are_allowed() {
    in_sandbox(|| {
        let host = host();
        host.sysctl("net.ipv4.ip_forward", "0").unwrap();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(1));
        assert_has(&lines, "warning forwarding: net.ipv4.ip_forward is 0");
        assert_has(&lines, "set net.ipv4.ip_forward=1");
        assert_eq!(check(&host, &["--allow-warnings"]).1, Some(0));

        // A family that no pod has does not count.
        host.sysctl("net.ipv4.ip_forward", "1").unwrap();
        host.sysctl("net.ipv6.conf.all.forwarding", "0").unwrap();
        assert_eq!(check(&host, &[]).1, Some(1));
        assert_eq!(check(&host, &["--cluster-cidr=10.244.0.0/16"]).1, Some(0));
    });
}

/// Adds an interface that is connected to something.
fn add_link(host: &Namespace, name: &str) {
    let peer = format!("{name}p");
    host.exec(&[
        "ip", "link", "add", name, "type", "veth", "peer", "name", &peer,
    ])
    .unwrap();
    host.exec(&["ip", "link", "set", &peer, "up"]).unwrap();
}

/// An interface that is left out is told of, in each family that pods have.
#[test]
fn interfaces_that_forward_nothing_are_told() {
    in_sandbox(|| {
        let host = host();
        add_link(&host, "eth0.5");
        assert_eq!(check(&host, &[]).1, Some(0));
        for version in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{version}/conf/eth0.5/forwarding");
            host.run(|| fs::write(&path, "0")).unwrap();
            let (lines, code) = check(&host, &[]);
            assert_eq!(code, Some(1));
            assert_has(
                &lines,
                &format!("net.{version}.conf.INTERFACE.forwarding is 0 for eth0.5:"),
            );
            host.run(|| fs::write(&path, "1")).unwrap();
        }
        assert_eq!(check(&host, &[]).1, Some(0));
    });
}

/// Strict reverse-path filtering hurts only where packets may come in by another way than the one
/// back.
#[test]
fn strict_interfaces_beside_the_way_back_are_told() {
    in_sandbox(|| {
        let host = host();
        host.sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
        for (name, address, metric) in [
            ("eth0", "192.0.2.1", "100"),
            ("eth1", "198.51.100.1", "200"),
        ] {
            let address = format!("{address}/24");
            add_link(&host, name);
            host.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "1")
                .unwrap();
            host.exec(&["ip", "link", "set", name, "up"]).unwrap();
            host.exec(&["ip", "address", "add", &address, "dev", name])
                .unwrap();
            assert_eq!(check(&host, &[]).1, Some(0), "one way to each net");
            host.exec(&[
                "ip", "route", "add", "default", "dev", name, "metric", metric,
            ])
            .unwrap();
        }
        let strict = "warning rp_filter: rp_filter of eth1 is strict, so what comes in there from \
                      anywhere is dropped, as the way back is eth0";
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(1));
        assert_has(&lines, strict);
        let ipv6 = ["--bind-address=2001:db8::1", "--cluster-cidr=fd00::/48"];
        assert_eq!(check(&host, &ipv6).1, Some(0));
        host.sysctl("net.ipv4.conf.eth1.rp_filter", "2").unwrap();
        assert_eq!(check(&host, &[]).1, Some(0));
        // The stricter of the two numbers does not count, but the larger.
        host.sysctl("net.ipv4.conf.eth1.rp_filter", "0").unwrap();
        host.sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
        assert_has(&check(&host, &[]).0, strict);
    });
}

#[test]
fn pods_on_a_bridge_need_br_netfilter() {
    in_sandbox(|| {
        let host = host();
        host.exec(&["ip", "link", "add", "cni0", "type", "bridge"])
            .unwrap();
        assert_eq!(check(&host, &[]).1, Some(0), "nobody is on it");
        let by_bridge = [
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface=cni0",
        ];
        if env::var_os("NFTPROXY_VM").is_some() {
            // Nobody else has this machine. It may have no such module all the same.
            let _ = Command::new("modprobe").arg("br_netfilter").output();
        }
        let is_on = |on: &str| {
            let set = |key| host.sysctl(key, on).is_ok();
            set("net.bridge.bridge-nf-call-iptables") && set("net.bridge.bridge-nf-call-ip6tables")
        };
        let has_module = is_on("0");
        let missing = if has_module {
            "net.bridge.bridge-nf-call-iptables is 0"
        } else {
            "module br_netfilter is not loaded"
        };
        assert_has(&check(&host, &by_bridge).0, missing);
        let veth = [
            "ip", "link", "add", "pod", "type", "veth", "peer", "name", "eth0",
        ];
        host.exec(&veth).unwrap();
        host.exec(&["ip", "link", "set", "pod", "master", "cni0"])
            .unwrap();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(1));
        assert_has(&lines, missing);
        assert_has(&lines, "a pod on cni0 cannot reach a Service by IPv6");
        if !has_module {
            return unsupported("this kernel has no br_netfilter");
        }
        assert!(is_on("1"));
        assert_eq!(check(&host, &[]).1, Some(0));
    });
}

#[test]
fn others_that_translate_are_named() {
    in_sandbox(|| {
        let host = host();
        let script = "
            table inet mesh { chain early { type nat hook prerouting priority -150; }; }
            table ip asleep { flags dormant; chain early { type nat hook output priority -150; }; }
            table ip firewall { chain in { type filter hook input priority 0; }; }";
        host.exec_with_input(&["nft", "-f", "-"], script).unwrap();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(0), "that may be as it should be: {lines:#?}");
        assert_has(
            &lines,
            "note neighbours: table inet mesh may translate destinations before nftproxy does: \
             chains early (priority -150)",
        );
        assert!(
            !lines
                .iter()
                .any(|line| line.contains("asleep") || line.contains("firewall"))
        );

        host.exec(&["nft", "add", "table", "ip6", "kube-proxy"])
            .unwrap();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(1));
        assert_has(
            &lines,
            "warning neighbours: table ip6 kube-proxy has kube-proxy's rules",
        );
        assert_has(&lines, "nftproxy cleanup");
        host.exec(&["nft", "delete", "table", "ip6", "kube-proxy"])
            .unwrap();
        assert_eq!(check(&host, &[]).1, Some(0));

        add_link(&host, "kube-ipvs0");
        assert_has(
            &check(&host, &[]).0,
            "kube-proxy in ipvs mode serves Services",
        );
        host.exec(&["ip", "link", "delete", "kube-ipvs0"]).unwrap();

        // The rules of another instance, as it leaves them.
        let script = run(&host, &["render", "--family=ipv4", "--manifests=/dev/null"]).unwrap();
        let script = script.out.replace(" nftproxy", " my-cni");
        host.exec_with_input(&["nft", "-f", "-"], &loadable(&script))
            .unwrap();
        assert_has(
            &check(&host, &[]).0,
            "warning neighbours: table ip my-cni has the rules of another nftproxy",
        );
    });
}

#[test]
fn taken_ports_are_told() {
    in_sandbox(|| {
        let host = host();
        let _taken = host.run(|| TcpListener::bind("127.0.0.1:10249")).unwrap();
        let (lines, code) = check(&host, &[]);
        assert_eq!(code, Some(1));
        assert_has(
            &lines,
            "warning ports: metricsBindAddress 127.0.0.1:10249 cannot be had",
        );
        let (lines, code) = check(&host, &["--bind-address-hard-fail"]);
        assert_eq!(code, Some(2));
        assert_has(&lines, "error ports: metricsBindAddress");
        let elsewhere = ["--metrics-bind-address=127.0.0.1:10250"];
        assert_eq!(check(&host, &elsewhere).1, Some(0));
    });
}

/// O-76: a host without IPv6 is one with one family, unless the pods have no other.
#[test]
fn ipv6_is_missed_where_pods_have_it() {
    in_sandbox(|| {
        let host = host();
        host.sysctl("net.ipv6.conf.all.disable_ipv6", "1").unwrap();
        let missing = "ipv6: this host has no IPv6, so there is no table ip6 nftproxy";
        for (cidr, level, code) in [
            ("10.244.0.0/16", "note", 0),
            ("10.244.0.0/16,fd00::/48", "warning", 1),
            ("fd00::/48", "warning", 2),
        ] {
            let (lines, found) = check(&host, &[&format!("--cluster-cidr={cidr}")]);
            assert_eq!(found, Some(code), "{cidr}: {lines:#?}");
            assert_has(&lines, &format!("{level} {missing}"));
            if code == 2 {
                let unfit = "error configuration: kube-proxy configuration is incorrect: cluster is \
                             IPv4-only but clusterCIDRs contains only IPv6 addresses";
                assert_has(&lines, unfit);
            }
        }
    });
}

/// A program with all capabilities but this one.
fn without_net_admin(arguments: &[&str]) -> Output {
    Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(binary().unwrap())
        .args(arguments)
        .output()
        .unwrap()
        .into()
}

/// O-9: what cannot be told ends with 2, as it is not known to work.
#[test]
fn missing_rights_are_an_error() {
    in_sandbox(|| {
        let Output { code, out, .. } = without_net_admin(&["check"]);
        assert_eq!(code, Some(2));
        let line = out.lines().find(|line| line.starts_with("error "));
        let words: Vec<_> = line.unwrap().split_whitespace().collect();
        let wanted = "error rights not permitted to change nftables; run as root or with \
                      CAP_NET_ADMIN, in the node's network namespace";
        assert_eq!(words.join(" "), wanted);
    });
    let output = Command::new(binary().unwrap())
        .args(["check", "--config=/nowhere"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// The same words, whoever finds out.
#[test]
fn run_says_the_same() {
    in_sandbox(|| {
        let host = host();
        host.sysctl("net.ipv4.ip_forward", "0").unwrap();
        host.exec(&["nft", "add", "table", "ip", "kube-proxy"])
            .unwrap();
        let (lines, _) = check(&host, &[]);
        let mut daemon = Daemon::start(&host, &["run", "--manifests", "/tmp"]).unwrap();
        daemon.wait_for_log("nftproxy starts").unwrap();
        let log = daemon.log();
        let warnings: Vec<_> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("warning ")?.split_once(": "))
            .collect();
        assert_eq!(warnings.len(), 2, "{lines:#?}");
        for (_, warning) in warnings {
            assert!(log.contains(warning), "{warning} is missing from {log}");
        }

        let Output { code, err, .. } = without_net_admin(&["run", "--manifests", "."]);
        assert_eq!(code, Some(1));
        let error = "not permitted to change nftables; run as root or with CAP_NET_ADMIN";
        assert!(err.contains(error), "{err}");
    });
}

/// O-66, O-78: nobody is told that a kernel is too old which may have what newer ones have.
#[test]
fn the_version_decides_nothing() {
    in_sandbox(|| {
        let host = host();
        let mut command = Command::new("setarch");
        // Its version becomes 2.6.x.
        command.args(["--uname-2.6"]).arg(binary().unwrap());
        let output: Output = host
            .run(|| command.args(["check"]).output())
            .unwrap()
            .into();
        let Output { code, out, err } = output;
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(
            out.contains("is older than 5.13, which nobody has tried"),
            "{out}"
        );
        assert!(
            out.contains("takes the rules of table ip nftproxy"),
            "{out}"
        );
        let output = host.run(|| {
            command
                .env("KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK", "1")
                .output()
        });
        assert_eq!(output.unwrap().status.code(), Some(0));
    });
}
