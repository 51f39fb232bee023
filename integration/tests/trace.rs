//! `nftproxy trace` on a node with real packets.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, binary};
use integration::lab::{CLIENT, Lab, NODE, PODS, REMOTE_POD};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, Server, probe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.20, "fd00:10:96::20"]
  clusterIP: 10.96.0.20
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: shop}
spec:
  clusterIP: 10.96.0.50
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: [10.244.1.11], nodeName: node}
  - {addresses: [10.244.2.11], nodeName: other}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: ["fd00:10:244:1::11"], nodeName: node}
"#;

struct Bed {
    lab: Lab,
    folder: tempfile::TempDir,
    _servers: [Server; 2],
}

impl Bed {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
        let serve = |namespace, name| {
            let address = "[::]:8080".parse().unwrap();
            Server::start(namespace, name, Protocol::Tcp, address).unwrap()
        };
        let servers = [serve(&lab.pods[0], "pod"), serve(&lab.remote_pod, "remote")];
        let bed = Self {
            lab,
            folder,
            _servers: servers,
        };
        let mut arguments = vec!["run"];
        let flags = bed.flags();
        arguments.extend(flags.iter().map(String::as_str));
        let mut daemon = Daemon::start(&bed.lab.node, &arguments).unwrap();
        for family in ["IPv4", "IPv6"] {
            let synced = format!("ipFamily=\"{family}\" full=true");
            daemon.wait_for_log(&synced).unwrap();
        }
        daemon.stop().unwrap();
        bed
    }

    fn flags(&self) -> Vec<String> {
        let manifests = self.folder.path().to_str().unwrap();
        [
            "--manifests",
            manifests,
            "--hostname-override",
            "node",
            "--cluster-cidr",
            "10.244.0.0/16,fd00:10:244::/48",
        ]
        .map(String::from)
        .into()
    }

    /// Starts to trace, and waits until it does.
    fn trace(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(binary().unwrap());
        command.arg("trace").args(arguments).args(self.flags());
        command.env("NO_COLOR", "1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.lab.node.spawn(command).unwrap();
        self.wait_for_table(true);
        child
    }

    fn tables(&self) -> Vec<String> {
        let text = self.lab.node.exec(&["nft", "list", "tables"]).unwrap();
        let tables = text.lines().filter(|line| line.contains("nftproxy-trace"));
        tables.map(str::to_owned).collect()
    }

    fn wait_for_table(&self, is_there: bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.tables().is_empty() == is_there {
            assert!(Instant::now() < end, "{:?}", self.tables());
            sleep(Duration::from_millis(20));
        }
    }

    fn connect(&self, to: &str) -> Outcome {
        let options = ProbeOptions {
            from: None,
            timeout: Duration::from_millis(500),
        };
        probe(
            &self.lab.client,
            Protocol::Tcp,
            to.parse().unwrap(),
            options,
        )
    }

    fn rules(&self) -> String {
        self.lab
            .node
            .exec(&["nft", "-s", "list", "ruleset"])
            .unwrap()
    }
}

fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), format!("{text}{complaint}"))
}

#[test]
fn packets_are_followed_to_where_they_come() {
    in_sandbox(|| {
        let bed = Bed::new();
        let before = bed.rules();
        let trace = bed.trace(&["outside", "shop/web", "--count", "8"]);
        for _ in 0..8 {
            let outcome = bed.connect("10.96.0.20:80");
            assert!(matches!(outcome, Outcome::Answer { .. }), "{outcome:?}");
        }
        let (code, text) = end(trace);
        assert_eq!(code, Some(0), "{text}");
        let heads = format!("{}:", CLIENT.v4);
        let is_head = |line: &&str| {
            line.starts_with(&heads) && line.ends_with("→ 10.96.0.20:80 (shop/web:http)")
        };
        assert_eq!(text.lines().filter(is_head).count(), 8, "{text}");
        let share = "as explained (1/2 of such connections)";
        let places = [
            format!("came to {}:8080 on node, {share}", PODS[0].v4),
            format!("came to {}:8080 on other, {share}", REMOTE_POD.v4),
        ];
        let n = places.iter().map(|place| text.matches(place).count());
        assert_eq!(n.sum::<usize>(), 8, "{text}");
        let step =
            "services rule 2: ip daddr . meta l4proto . th dport vmap @services → goto pick-2";
        assert_eq!(text.matches(step).count(), 8, "{text}");
        assert!(!text.contains("nftproxy-trace"), "{text}");
        bed.wait_for_table(false);
        assert_eq!(bed.rules(), before);

        let trace = bed.trace(&["outside", "[fd00:10:96::20]:80", "--count", "1"]);
        bed.connect("[fd00:10:96::20]:80");
        let (code, text) = end(trace);
        assert_eq!(code, Some(0), "{text}");
        let place = format!("came to [{}]:8080 on node, as explained (1 of", PODS[0].v6);
        assert!(text.contains(&place), "{text}");

        let client = CLIENT.v4.to_string();
        let trace = bed.trace(&[&client, "shop/idle", "--count", "1"]);
        bed.connect("10.96.0.50:80");
        let (code, text) = end(trace);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("was refused, as explained (1 of"), "{text}");
    });
}

/// What explanations do not know of is seen all the same.
#[test]
fn what_others_do_is_told() {
    in_sandbox(|| {
        let bed = Bed::new();
        let node = &bed.lab.node;
        let script = "add table ip fw; add chain ip fw early { type filter hook prerouting priority -150; }; add rule ip fw early ip daddr 10.96.0.20 drop";
        node.exec_with_input(&["nft", "-f", "-"], script).unwrap();
        let trace = bed.trace(&["outside", "10.96.0.20:80/tcp", "--count", "1"]);
        bed.connect("10.96.0.20:80");
        let (code, text) = end(trace);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("table ip fw, early rule 1 → drop"), "{text}");
        let verdict = "was dropped by table fw, chain early, but explained is: 10.244.1.11:8080";
        assert!(text.contains(verdict), "{text}");
    });
}

/// Nothing is left, however it ends.
#[test]
fn nothing_is_left_behind() {
    in_sandbox(|| {
        let bed = Bed::new();
        let before = bed.rules();
        for (signal, expected) in [
            (Signal::SIGKILL, None),
            (Signal::SIGINT, Some(2)),
            (Signal::SIGTERM, Some(2)),
        ] {
            let trace = bed.trace(&["outside", "10.96.0.20:80"]);
            kill(Pid::from_raw(trace.id().cast_signed()), signal).unwrap();
            let (code, text) = end(trace);
            assert_eq!(code, expected, "{signal}: {text}");
            bed.wait_for_table(false);
            assert_eq!(bed.rules(), before, "{signal}");
        }
        let trace = bed.trace(&["outside", "10.96.0.20:80", "--timeout", "1"]);
        let (code, text) = end(trace);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("no packet of this flow was seen"), "{text}");
        bed.wait_for_table(false);

        // As kernels leave it that know no owners.
        let node = &bed.lab.node;
        let stale = ["nft", "add", "table", "ip", "nftproxy-trace-99999999"];
        node.exec(&stale).unwrap();
        let address = format!("{}:80", NODE.v4);
        let trace = bed.trace(&["outside", &address, "--timeout", "1"]);
        end(trace);
        bed.wait_for_table(false);
        assert_eq!(bed.rules(), before);
    });
}
