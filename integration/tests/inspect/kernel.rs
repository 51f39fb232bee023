//! The kernel of a node on which the real program runs, healthy and damaged.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, Output, binary, run};
use integration::netns::{Namespace, in_sandbox};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::listing::{self, Listing};
use nftproxy_core::model::{V4, V6};
use nftproxy_core::ruleset::Table;
use serde_json::Value;

use super::{recorded_cluster, schema};

struct Node {
    host: Namespace,
    cluster: Vec<String>,
}

impl Node {
    /// A node whose program has brought the recorded cluster's rules into the kernel, and stopped.
    fn new() -> Self {
        let host = Namespace::new("node").unwrap();
        host.exec(&["ip", "addr", "add", "172.18.0.2/32", "dev", "lo"])
            .unwrap();
        host.exec(&["ip", "-6", "addr", "add", "fd00:172:18::2/128", "dev", "lo"])
            .unwrap();
        let cluster = recorded_cluster();
        let arguments: Vec<_> = ["run"]
            .into_iter()
            .chain(cluster.iter().map(String::as_str))
            .collect();
        let mut daemon = Daemon::start(&host, &arguments).unwrap();
        for family in ["IPv4", "IPv6"] {
            daemon
                .wait_for_log(&format!("ipFamily=\"{family}\" full=true"))
                .unwrap();
        }
        // A second after the last change it tells of the tables in them.
        for family in ["ip", "ip6"] {
            let list = ["nft", "list", "chain", family, "nftproxy", "about"];
            let deadline = Instant::now() + Duration::from_secs(20);
            while host.exec(&list).is_err() {
                assert!(Instant::now() < deadline, "{}", daemon.log());
                sleep(Duration::from_millis(20));
            }
        }
        daemon.stop().unwrap();
        Self { host, cluster }
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        let mut arguments = vec![command];
        arguments.extend(more);
        arguments.extend(self.cluster.iter().map(String::as_str));
        run(&self.host, &arguments).unwrap()
    }

    fn audit(&self) -> (Option<i32>, Vec<String>) {
        let Output { code, out, err } = self.run("audit", &["-o", "json"]);
        let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        schema::check("audit", &document);
        let findings = document["findings"].as_array().unwrap().iter();
        let text =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let lines = findings.map(|finding| {
            let [severity, kind, service, object, message] =
                ["severity", "kind", "servicePort", "object", "message"]
                    .map(|key| text(finding, key));
            format!("{severity} {kind} {service} {object}: {message}")
        });
        (code, lines.collect())
    }

    fn nft(&self, script: &str) {
        self.host
            .exec_with_input(&["nft", "-f", "-"], script)
            .unwrap();
    }
}

/// What the kernel says over netlink and what nft(8) prints of it come to the same.
#[test]
fn text_and_json_hold_what_the_kernel_holds() {
    in_sandbox(|| {
        let node = Node::new();
        let (v4, v6) = node.host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            (
                Kernel::<V4>::list(&mut netlink).unwrap(),
                Kernel::<V6>::list(&mut netlink).unwrap(),
            )
        });
        assert!(
            v4.as_ref()
                .is_some_and(|table| table.ruleset.elements.len() > 100)
        );
        for flags in [
            &[][..],
            &["-n"],
            &["-a"],
            &["-s"],
            &["-S"],
            &["-y"],
            &["-p"],
            &["-j"],
            &["-j", "-n"],
        ] {
            let command = [&["nft"], flags, &["list", "ruleset"]].concat();
            let text = node.host.exec(&command).unwrap();
            let listing = listing::read(&text, &Table::default());
            let expected = Listing {
                v4: v4.clone(),
                v6: v6.clone(),
                ..Listing::default()
            };
            assert_eq!(listing, expected, "{flags:?}");
        }
    });
}

#[test]
fn a_healthy_node_is_clean_and_damage_is_found() {
    in_sandbox(|| {
        let node = Node::new();
        assert_eq!(node.audit(), (Some(0), Vec::new()));
        for (script, wanted) in [
            (
                "delete element ip nftproxy services { 10.96.185.9 . tcp . 6379 }",
                "error missing data/redis:redis map services: it lacks { 10.96.185.9 . tcp . 6379",
            ),
            (
                "add element ip nftproxy hairpin { 10.9.9.9 . 10.9.9.9 }",
                "error extra  set hairpin: { 10.9.9.9 . 10.9.9.9 } should not be there",
            ),
            (
                "add element ip nftproxy affinity { 10.1.1.1 . 10.96.185.9 . tcp . 6379 timeout 1h : 10.9.9.9 . 80 }",
                "error extra data/redis:redis map affinity: { 10.1.1.1 . 10.96.185.9 . tcp . 6379 : 10.9.9.9 . 80 } should not be there",
            ),
            (
                "add element ip nftproxy affinity { * timeout 1h : 10.9.9.9 . 80 }",
                "error foreign  table ip nftproxy: element { * } of affinity",
            ),
            (
                "insert rule ip nftproxy services ip saddr 10.1.1.1 drop",
                "error extra  chain services: rule 1 is none that should be there: ip saddr 10.1.1.1/32 drop",
            ),
            (
                "insert rule ip6 nftproxy node-ports goto about",
                "error extra  chain node-ports: rule 1 is none that should be there: goto about",
            ),
            (
                "insert rule ip6 nftproxy guard counter",
                "error extra  chain guard: rule 1 is none that should be there: counter",
            ),
            (
                "add chain ip6 nftproxy mine; add element ip6 nftproxy services { fd00::99 . tcp . 80 : jump mine }",
                "error foreign  table ip6 nftproxy: element { fd00::99 . tcp . 80 } of services",
            ),
            (
                "add chain ip nftproxy prerouting { policy drop; }",
                "error foreign  table ip nftproxy: chain prerouting of another type or policy",
            ),
            (
                "add chain ip nftproxy mine",
                "error foreign  table ip nftproxy: chain mine",
            ),
            (
                "flush chain ip6 nftproxy refuse",
                "error missing  chain refuse: it lacks the rule: reject",
            ),
            (
                "add table inet early { chain a { type filter hook prerouting priority -150; ip daddr 10.96.0.1 drop; }; }",
                "warning preempted  table inet early: chain a (priority -150) drops packets before our chains",
            ),
            (
                "add table ip nat { chain OUTPUT { type nat hook output priority -100; jump b; }; chain b { dnat to 10.0.0.1; }; }",
                "warning preempted  table ip nat: chain OUTPUT (priority -100) translates destinations at the same priority as we do",
            ),
            (
                "add table ip kube-proxy",
                "warning kube-proxy  table ip kube-proxy: it has kube-proxy's rules",
            ),
            (
                "delete table ip6 nftproxy",
                "error missing  table ip6 nftproxy: it does not exist",
            ),
        ] {
            node.nft(script);
            let (code, lines) = node.audit();
            assert_eq!(code, Some(1), "{script}");
            assert!(
                lines.iter().any(|line| line.starts_with(wanted)),
                "{script}: {wanted} is missing from {lines:#?}"
            );
            // The chain that tells of the table is there, whoever leads to it.
            let dangling = "chain about, which does not exist";
            assert!(
                !lines.iter().any(|line| line.contains(dangling)),
                "{script}"
            );
        }
    });
}

/// Looking changes nothing.
#[test]
fn the_kernel_is_left_as_it_was() {
    in_sandbox(|| {
        let node = Node::new();
        let list = || node.host.exec(&["nft", "-a", "list", "ruleset"]).unwrap();
        let before = list();
        for (command, more) in [
            ("audit", &[][..]),
            ("list", &["--from", "kernel"]),
            ("explain", &["10.244.1.77", "data/redis"]),
            (
                "explain",
                &["--by", "kernel", "10.244.1.77", "10.96.185.9:6379"],
            ),
        ] {
            let Output { code, out, err } = node.run(command, more);
            assert_eq!(code, Some(0), "{command}: {out}{err}");
        }
        assert_eq!(list(), before);
    });
}

/// Kernel and cluster have one digest, until somebody touches what decides.
#[test]
fn what_the_kernel_holds_has_the_digest_of_what_is_desired() {
    in_sandbox(|| {
        let node = Node::new();
        let digest = |more: &[&str]| {
            let Output { code, out, err } = node.run("digest", more);
            assert_eq!(code, Some(0), "{err}");
            out
        };
        let desired = digest(&[]);
        assert_eq!(desired.lines().count(), 2, "{desired}");
        // The table says so itself, in one line, once all is quiet.
        let found = digest(&["--from", "kernel"]);
        let without: Vec<_> = found
            .lines()
            .map(|line| line.split(", as the").next().unwrap())
            .collect();
        assert_eq!(without, desired.lines().collect::<Vec<_>>());
        assert_eq!(
            found.matches("), as the table says\n").count(),
            2,
            "{found}"
        );
        let about = node
            .host
            .exec(&["nft", "list", "chain", "ip", "nftproxy", "about"])
            .unwrap();
        let own = format!("layout 2, digest {}\"", fields(&desired)[1]);
        assert!(about.contains(&own), "{about}");
        let desired = found;
        // A chain that is left over decides nothing.
        node.nft("add chain ip nftproxy pick-99");
        assert_eq!(digest(&["--from", "kernel"]), desired);
        node.nft("flush set ip nftproxy hairpin");
        let damaged = digest(&["--from", "kernel"]);
        let (was, is) = (fields(&desired), fields(&damaged));
        // IPv4, its digest, `shared`, its digest.
        assert_ne!(was[1], is[1]);
        let own = format!(
            "and the table says: nftproxy {}, layout 2, digest {}\n",
            env!("CARGO_PKG_VERSION"),
            was[1]
        );
        assert!(damaged.contains(&own), "{damaged}");
        let (_, findings) = node.audit();
        let told = |finding: &String| {
            finding.starts_with("note different  table ip nftproxy: it says of itself")
        };
        assert!(findings.iter().any(told), "{findings:?}");
        assert_eq!(was[3], is[3]);
        assert_eq!(desired.lines().nth(1), damaged.lines().nth(1));
        node.nft("flush map ip nftproxy services");
        assert_ne!(fields(&digest(&["--from", "kernel"]))[3], was[3]);
    });
}

/// What `nft` has loaded is what we would have written, but for how it is put.
#[test]
fn what_nft_has_loaded_is_as_it_should_be() {
    in_sandbox(|| {
        let node = Node::new();
        let Output { out, .. } = node.run("render", &["--family", "ipv4"]);
        assert!(out.contains("@allowed-sources drop"), "{out}");
        node.nft(&format!("delete table ip nftproxy\n{out}"));
        assert_eq!(node.audit(), (Some(0), Vec::new()));
    });
}

/// A listing goes on with what changes, of the Services that are asked for.
#[test]
fn changes_are_followed() {
    in_sandbox(|| {
        let node = Node::new();
        let mut command = Command::new(binary().unwrap());
        command.args(["list", "--from", "kernel", "--watch", "--family", "ipv4"]);
        command.env("NO_COLOR", "1").stdout(Stdio::piped());
        let mut child = node.host.spawn(command).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = || lines.next().unwrap().unwrap();
        assert!(line().starts_with("SERVICE"));
        let text = node
            .host
            .exec(&["nft", "list", "map", "ip", "nftproxy", "services"]);
        let text = text.unwrap();
        let element = text.lines().find(|line| line.contains("goto pick-"));
        let element = element.unwrap().trim().trim_start_matches("elements = { ");
        let (key, rest) = element.split_once(" comment \"").unwrap();
        let (name, _) = rest.split_once('"').unwrap();
        node.nft(&format!("delete element ip nftproxy services {{ {key} }}"));
        let head = format!("{name} (IPv4)");
        while line() != head {}
        assert!(line().starts_with("  - ClusterIP "));
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

fn fields(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// A node without anything of ours.
#[test]
fn a_bare_kernel_has_no_table() {
    in_sandbox(|| {
        let host = Namespace::new("bare").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        fs::copy(
            concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/example.yaml"),
            &file,
        )
        .unwrap();
        let arguments = ["audit", "--manifests", file.to_str().unwrap()];
        let Output { code, out, .. } = run(&host, &arguments).unwrap();
        assert_eq!(code, Some(1), "{out}");
        assert!(
            out.contains(
                "table ip nftproxy: it does not exist; no Service of this family is served"
            ),
            "{out}"
        );
    });
}
