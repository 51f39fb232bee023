//! What kube-proxy leaves in the kernel in its modes iptables and ipvs is taken away, by both
//! backends of iptables, and nothing else is. `make kernels` runs this on kernels that have all of
//! it.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::process::Command;

use integration::daemon::{Daemon, Output, binary, run};
use integration::netns::{Namespace, in_sandbox, unsupported};

/// The kubelet's and others' rules, which stay, in each backend and family.
const OTHERS: &str = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m comment --comment \"kubernetes is mentioned\" -m tcp --dport 22 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:OTHERS - [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j OTHERS
-A OTHERS -p tcp -m comment --comment \"KUBE-SVC-OTHERS\" -j REDIRECT --to-ports 80
-A POSTROUTING -m comment --comment others -j MASQUERADE
COMMIT
";

/// What mode iptables adds, as kube-proxy 1.36 names and comments it.
const MODE_IPTABLES: &str = "\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-NODEPORTS -p tcp -m comment --comment \"a/b health check node port\" -m tcp --dport 30999 -j ACCEPT
-A KUBE-SERVICES -p tcp -m comment --comment \"a/c has no endpoints\" -m tcp --dport 81 -j REJECT
COMMIT
*nat
:KUBE-EXT-ABC - [0:0]
:KUBE-FW-ABC - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-ABC - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-SVL-ABC - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-EXT-ABC -j KUBE-MARK-MASQ
-A KUBE-EXT-ABC -j KUBE-SVC-ABC
-A KUBE-FW-ABC -m comment --comment \"a/b loadbalancer IP\" -j KUBE-EXT-ABC
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment \"a/b\" -m tcp --dport 30080 -j KUBE-EXT-ABC
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-SEP-ABC -p tcp -m comment --comment \"a/b\" -m tcp -j REDIRECT --to-ports 8080
-A KUBE-SERVICES -p tcp -m comment --comment \"a/b cluster IP\" -m tcp --dport 80 -j KUBE-SVC-ABC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-ABC -m statistic --mode random --probability 0.5 -j KUBE-SEP-ABC
-A KUBE-SVL-ABC -j KUBE-SEP-ABC
COMMIT
";

/// What mode ipvs adds; SET stands for the family's set of ClusterIPs.
const MODE_IPVS: &str = "\
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-I INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER
-I INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-I INPUT -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I OUTPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-OUT-FILTER
-A KUBE-IPVS-FILTER -m set --match-set SET dst,dst -j RETURN
-A KUBE-PROXY-FIREWALL -m set --match-set SET dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
COMMIT
*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -m set --match-set SET dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
COMMIT
";

/// All of kube-proxy's kinds of sets, by IPv4's names and the longest of IPv6's.
const SETS: &str = "\
create KUBE-CLUSTER-IP hash:ip,port
create KUBE-LOOP-BACK hash:ip,port,ip
create KUBE-LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
create KUBE-NODE-PORT-SCTP-HASH hash:ip,port
create KUBE-IPVS-IPS hash:ip
create KUBE-6-CLUSTER-IP hash:ip,port family inet6
create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6
add KUBE-CLUSTER-IP 10.96.0.10,6:80
add KUBE-6-CLUSTER-IP fd00:96::a,6:80
";

const OTHER_SETS: &str = "\
create KUBE-OF-OTHERS hash:ip
create others hash:ip
add others 192.0.2.1
";

const LEGACY: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];
const NFT: [&str; 2] = ["iptables-nft", "ip6tables-nft"];

/// A node with others' rules, or none if this kernel or this system lacks a part.
struct Node {
    namespace: Namespace,
    backends: Vec<&'static str>,
}

impl Node {
    fn new(name: &str, backends: &[&'static str]) -> Option<Self> {
        // Where the lock is that the backends share.
        fs::create_dir_all("/run").unwrap();
        let node = Self {
            namespace: Namespace::new(name).unwrap(),
            backends: backends.to_vec(),
        };
        for backend in backends {
            if let Err(error) = node.restore(backend, OTHERS) {
                unsupported(&format!("{backend}: {error:#}"));
                return None;
            }
        }
        Some(node)
    }

    fn restore(&self, backend: &str, rules: &str) -> anyhow::Result<()> {
        let program = format!("{backend}-restore");
        self.namespace
            .exec_with_input(&[&program, "--noflush"], rules)
            .map(drop)
    }

    fn add(&self, rules: &str) {
        for backend in &self.backends {
            let set = if backend.starts_with("ip6") {
                "KUBE-6-CLUSTER-IP"
            } else {
                "KUBE-CLUSTER-IP"
            };
            self.restore(backend, &rules.replace("SET", set)).unwrap();
        }
    }

    /// All that could be taken away, without counters.
    fn snapshot(&self) -> String {
        let mut text = String::new();
        for backend in &self.backends {
            let saved = self.namespace.exec(&[&format!("{backend}-save")]).unwrap();
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            for line in lines {
                text += line.split(" [").next().unwrap();
                text += "\n";
            }
        }
        text
    }
}

/// O-143, O-145 to O-147: mode iptables, in iptables-legacy and in iptables-nft.
#[test]
fn chains_of_both_backends_go_and_others_stay() {
    in_sandbox(|| {
        for backends in [LEGACY.as_slice(), &NFT, &[LEGACY, NFT].concat()] {
            let Some(node) = Node::new("iptables", backends) else {
                return;
            };
            let before = node.snapshot();
            node.add(MODE_IPTABLES);
            assert_ne!(node.snapshot(), before);
            let Output { code, err, .. } = run(&node.namespace, &["cleanup"]).unwrap();
            assert_eq!(code, Some(0), "{err}");
            assert_eq!(node.snapshot(), before, "{backends:?}");

            // The same by a takeover; modules take their time to load in an emulated machine.
            run(&node.namespace, &["check", "--allow-warnings"]).unwrap();
            node.add(MODE_IPTABLES);
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().to_str().unwrap();
            let arguments = ["run", "--manifests", folder, "--take-over=true"];
            let mut daemon = Daemon::start(&node.namespace, &arguments).unwrap();
            daemon
                .wait_for_log("removed kube-proxy's iptables chains")
                .unwrap();
            daemon.stop().unwrap();
            assert_eq!(node.snapshot(), before, "{backends:?}");
        }
    });
}

/// O-145: rules that nobody here can take away are warned of.
#[test]
fn rules_are_missed_where_iptables_is_not_installed() {
    in_sandbox(|| {
        let Some(node) = Node::new("warned", &LEGACY) else {
            return;
        };
        node.add(MODE_IPTABLES);
        let before = node.snapshot();
        let mut command = Command::new(binary().unwrap());
        command.arg("cleanup").env("PATH", "/nonexistent");
        let output: Output = node
            .namespace
            .run(|| command.output())
            .map(Output::from)
            .unwrap();
        let warning = "iptables is not installed here, and this node has tables of iptables-legacy";
        for family in ["\"ip\"", "\"ip6\""] {
            let mut lines = output.err.lines();
            let found = lines.find(|line| line.contains(warning) && line.ends_with(family));
            assert!(found.is_some(), "{family}: {}", output.err);
        }
        assert_eq!(node.snapshot(), before);
    });
}

/// An IPVS node: sets, links and virtual servers beside the rules.
struct IpvsNode(Node);

impl IpvsNode {
    fn new(backends: &[&'static str]) -> Option<Self> {
        let node = Self(Node::new("ipvs", backends)?);
        let link = node.exec(&["ip", "link", "add", "others", "type", "dummy"]);
        let servers = "-A -t 192.0.2.50:80 -s rr\n-a -t 192.0.2.50:80 -r 198.51.100.1:80 -m\n\
                       -A -f 7 -s rr\n";
        for (what, tried) in [
            ("links of type dummy", link),
            ("ipset", node.input(&["ipset", "restore"], OTHER_SETS)),
            ("IPVS", node.input(&["ipvsadm", "--restore"], servers)),
        ] {
            if let Err(error) = tried {
                unsupported(&format!("{what}: {error:#}"));
                return None;
            }
        }
        node.exec(&["ip", "address", "add", "192.0.2.50/32", "dev", "others"])
            .unwrap();
        Some(node)
    }

    fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        self.0.namespace.exec(command)
    }

    fn input(&self, command: &[&str], input: &str) -> anyhow::Result<String> {
        self.0.namespace.exec_with_input(command, input)
    }

    /// What kube-proxy does.
    fn leave(&self) {
        self.exec(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
            .unwrap();
        for address in ["10.96.0.10/32", "10.96.0.11/32", "fd00:96::a/128"] {
            self.exec(&["ip", "address", "add", address, "dev", "kube-ipvs0"])
                .unwrap();
        }
        let servers = "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 1\n\
                       -A -u 10.96.0.11:53 -s rr -p 10800\n-A -t [fd00:96::a]:80 -s rr\n\
                       -a -t [fd00:96::a]:80 -r [fd00:244::2]:8080 -m -w 1\n";
        self.input(&["ipvsadm", "--restore"], servers).unwrap();
        self.input(&["ipset", "restore"], SETS).unwrap();
        self.0.add(MODE_IPVS);
    }

    fn snapshot(&self) -> String {
        let parts = [
            &["ipset", "list", "-n"][..],
            &["ipvsadm", "--save", "-n"],
            &["ip", "-brief", "address"],
        ];
        let parts = parts.map(|command| {
            let text = self.exec(command).unwrap();
            let mut lines: Vec<_> = text.lines().map(str::trim_end).collect();
            lines.sort_unstable();
            lines.join("\n")
        });
        self.0.snapshot() + &parts.join("\n")
    }
}

/// O-143, O-148 to O-150: mode ipvs; virtual servers, links, sets and chains of others stay.
#[test]
fn ipvs_goes_and_others_stay() {
    in_sandbox(|| {
        for backends in [LEGACY, NFT] {
            let Some(node) = IpvsNode::new(&backends) else {
                return;
            };
            let before = node.snapshot();
            node.leave();
            let left = node.snapshot();
            for there in [
                "10.96.0.10:80",
                "KUBE-6-LOAD-BALANCER-SOURCE-CID",
                "kube-ipvs0",
            ] {
                assert!(left.contains(there), "{there}: {left}");
            }
            let Output { code, err, .. } = run(&node.0.namespace, &["cleanup"]).unwrap();
            assert_eq!(code, Some(0), "{err}");
            assert_eq!(node.snapshot(), before, "{backends:?}: {err}");
            assert!(err.contains("IPVS virtual servers"), "{err}");
            let Output { code, err, .. } = run(&node.0.namespace, &["cleanup"]).unwrap();
            assert_eq!(code, Some(0), "{err}");
            assert_eq!(node.snapshot(), before, "once more: {err}");
        }
    });
}
