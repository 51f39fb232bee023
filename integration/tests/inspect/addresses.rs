//! NodePorts at other addresses than the node's own, as the proxy, the kernel and commands see them.

use integration::daemon::{Daemon, Output, run};
use integration::netns::{Namespace, in_sandbox};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/example.yaml");

/// A node with an address that only its interface says, and the flags of its proxy.
struct Node {
    host: Namespace,
    flags: Vec<String>,
}

impl Node {
    /// The rules of NodePorts at these addresses are in the kernel, and the program has stopped.
    fn new(node_port_addresses: &str) -> Self {
        let host = Namespace::new("node").unwrap();
        for address in ["172.18.0.2/32", "169.254.1.1/32"] {
            host.exec(&["ip", "addr", "add", address, "dev", "lo"])
                .unwrap();
        }
        let flags = [
            "--manifests",
            MANIFESTS,
            "--cluster-cidr",
            "10.244.0.0/16",
            "--nodeport-addresses",
            node_port_addresses,
        ];
        let flags: Vec<String> = flags.map(String::from).into();
        let mut arguments = vec!["run"];
        arguments.extend(flags.iter().map(String::as_str));
        let mut daemon = Daemon::start(&host, &arguments).unwrap();
        daemon.wait_for_log("ipFamily=\"IPv4\" full=true").unwrap();
        daemon.stop().unwrap();
        Self { host, flags }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let flags = self.flags.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.iter().copied().chain(flags).collect();
        run(&self.host, &arguments).unwrap()
    }
}

#[test]
fn the_addresses_of_interfaces_are_the_nodes() {
    in_sandbox(|| {
        for addresses in ["169.254.0.0/16", "0.0.0.0/0", "all"] {
            let node = Node::new(addresses);
            let to = "169.254.1.1:30020/tcp";
            for by in [&[][..], &["--by", "desired"], &["--by", "kernel"]] {
                let Output { code, out, err } =
                    node.run(&[&["explain", "outside", to], by].concat());
                assert_eq!(code, Some(0), "{addresses} {by:?}: {out}{err}");
                assert!(
                    out.contains("10.244.2.20:8080"),
                    "{addresses} {by:?}: {out}"
                );
            }
            let digest = |more: &[&str]| {
                let Output { out, err, .. } =
                    node.run(&[&["digest", "--family", "ipv4"], more].concat());
                let line = out.split(", ").next().unwrap_or_default().trim().to_owned();
                assert!(line.starts_with("IPv4 "), "{out}{err}");
                line
            };
            assert_eq!(digest(&[]), digest(&["--from", "kernel"]), "{addresses}");
        }
    });
}

/// What is said of a node counts more than where it is asked.
#[test]
fn another_node_is_at_the_addresses_that_are_said_of_it() {
    in_sandbox(|| {
        let node = Node::new("169.254.0.0/16");
        let to = "169.254.1.1:30020/tcp";
        for more in [
            ["--node-ip", "192.0.2.10"],
            ["--hostname-override", "worker-1"],
        ] {
            let Output { out, err, .. } =
                node.run(&[&["explain", "outside", to, "--by", "desired"], &more[..]].concat());
            assert!(!out.contains("10.244.2.20:8080"), "{more:?}: {out}{err}");
        }
    });
}

/// Who has no destination is not named for its number.
#[test]
fn a_nodes_port_elsewhere_belongs_to_nobody() {
    in_sandbox(|| {
        let node = Node::new("169.254.0.0/16");
        for by in ["kernel", "desired"] {
            for to in ["255.255.255.255", "127.0.0.1", "198.51.100.9"] {
                let to = format!("{to}:30020/tcp");
                let Output { code, out, err } = node.run(&["explain", "outside", &to, "--by", by]);
                assert_eq!(code, Some(0), "{by} {to}: {out}{err}");
                assert!(!out.contains("shop/api"), "{by} {to}: {out}");
                assert!(out.contains("so it is left alone"), "{by} {to}: {out}");
            }
        }
        let Output { out, .. } = node.run(&[
            "explain",
            "outside",
            "169.254.1.1:30020/tcp",
            "--by",
            "kernel",
        ]);
        assert!(out.contains("(shop/api:http)"), "{out}");
    });
}

/// On loopback the program serves, and not a rule.
#[test]
fn what_the_program_relays_is_told() {
    in_sandbox(|| {
        for addresses in ["localhost", "all"] {
            let node = Node::new(addresses);
            let explain = |to: &str, more: &[&str]| {
                let Output { code, out, err } =
                    node.run(&[&["explain", "node", to], more].concat());
                assert_eq!(code, Some(0), "{addresses} {to}: {out}{err}");
                out
            };
            let out = explain("127.0.0.1:30020/tcp", &[]);
            assert!(out.contains("(shop/api:http)"), "{addresses}: {out}");
            let to = "the proxy itself listens at 127.0.0.1:30020, and relays to the ClusterIP of shop/api:http, 10.96.0.20:80";
            assert!(out.contains(to), "{addresses}: {out}");
            let out = explain("127.0.0.1:30020/tcp", &["--by", "kernel"]);
            assert!(out.contains("the proxy itself listens there"), "{out}");
            // Nobody has that one, and nobody listens there for others.
            let out = explain("127.0.0.1:30021/tcp", &[]);
            assert!(out.contains("so it is left alone"), "{addresses}: {out}");
            let out = explain("127.0.0.2:30020/tcp", &[]);
            assert!(out.contains("so it is left alone"), "{addresses}: {out}");
        }
    });
}

/// Whoever asks for both gets both, from manifests too.
#[test]
fn both_are_followed_where_both_are_asked_for() {
    in_sandbox(|| {
        let node = Node::new("169.254.0.0/16");
        let script = "flush chain ip nftproxy node-ports\n";
        node.host
            .exec_with_input(&["nft", "-f", "-"], script)
            .unwrap();
        let explain = |more: &[&str]| {
            let command = ["explain", "outside", "169.254.1.1:30020/tcp"];
            node.run(&[&command, more].concat())
        };
        let Output { code, out, err } = explain(&["--by", "both"]);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(out.contains("by the rules that are there:"), "{out}");
        assert!(out.contains("but the cluster asks for:"), "{out}");
        let Output { code, out, err } = explain(&[]);
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(out.contains("by the rules that are desired:"), "{out}");
    });
}
