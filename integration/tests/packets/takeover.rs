//! In kube-proxy's place, and back: no connection fails or is moved on the way, and clients keep
//! their endpoints.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, binary, run};
use integration::kube_proxy::{self, affinity_set};
use integration::lab::{CLIENT, Dual};
use integration::manifest::{SERVICE_PORT, cluster_ip, load_balancer_ip};
use integration::netns::{Namespace, in_sandbox, skip};
use integration::traffic::{Flow, Protocol, Stream, probe_many};
use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, POD3, REMOTE, Source, destinations};

/// With session affinity, and without.
const STICKY: u8 = 1;
const PLAIN: u8 = 2;
const TIMEOUT: u32 = 600;
const SOURCES: [Source; 4] = [Source::Client, Source::Pod3, Source::Host, Source::Node2];

const SERVICES: [kube_proxy::Service<'static>; 2] = [
    kube_proxy::Service {
        name: "sticky",
        number: STICKY,
        endpoints: &[POD1.address, POD2.address, REMOTE.address],
        affinity: Some(TIMEOUT),
    },
    kube_proxy::Service {
        name: "plain",
        number: PLAIN,
        endpoints: &[POD1.address, POD3.address],
        affinity: None,
    },
];

/// The servers of the endpoints of both Services.
fn servers(number: u8) -> &'static [&'static str] {
    match number {
        STICKY => &["pod1", "pod2", "remote"],
        _ => &["pod1", "pod3"],
    }
}

impl Bed {
    fn put_both(&self) {
        self.put("sticky", STICKY, &[POD1, POD2, REMOTE], |service| {
            service["spec"]["sessionAffinity"] = json!("ClientIP");
            service["spec"]["sessionAffinityConfig"] =
                json!({"clientIP": {"timeoutSeconds": TIMEOUT}});
        });
        self.put("plain", PLAIN, &[POD1, POD3], |_| {});
    }

    fn load(&self, script: &str) {
        let node = &self.lab.node;
        node.exec_with_input(&["nft", "-f", "-"], script).unwrap();
    }

    fn tables(&self) -> String {
        self.lab.node.exec(&["nft", "list", "tables"]).unwrap()
    }

    /// Connections that are kept open, from all sources to all kinds of destinations.
    fn open_flows(&self) -> Vec<(Flow, String)> {
        let mut flows = Vec::new();
        for source in SOURCES {
            for to in all_destinations() {
                let mut flow = Flow::open(source.namespace(&self.lab), to).unwrap();
                let server = flow.ping().unwrap();
                flows.push((flow, server));
            }
        }
        flows
    }

    /// New connections all the time, from outside, a pod and the node.
    fn start_streams(&self) -> Vec<(Stream, u8, String)> {
        let mut streams = Vec::new();
        for source in [Source::Client, Source::Pod3, Source::Host] {
            for number in [STICKY, PLAIN] {
                let address = cluster_ip(number).both();
                for (ip, protocol) in address.into_iter().zip([Protocol::Tcp, Protocol::Udp]) {
                    let to = SocketAddr::new(ip, SERVICE_PORT);
                    let stream = Stream::start(source.namespace(&self.lab), protocol, to);
                    let what = format!("{protocol} from {source:?} to {to}");
                    streams.push((stream, number, what));
                }
            }
        }
        streams
    }
}

fn all_destinations() -> Vec<SocketAddr> {
    let at = |(address, port): (Dual, u16)| address.both().map(|ip| (ip, port).into());
    [STICKY, PLAIN]
        .into_iter()
        .flat_map(destinations)
        .flat_map(at)
        .collect()
}

#[track_caller]
fn assert_alive(flows: &mut [(Flow, String)]) {
    for (flow, server) in flows {
        assert_eq!(flow.ping().unwrap(), *server);
    }
}

/// Ends the streams; all that they asked was answered by an endpoint, and there was much.
#[track_caller]
fn assert_no_gap(streams: Vec<(Stream, u8, String)>) {
    for (stream, number, what) in streams {
        let counts = stream.stop();
        let n: usize = counts.values().sum();
        assert!(n >= 50, "{what}: {counts:?}");
        let is_server = |server: &String| servers(number).contains(&server.as_str());
        assert!(counts.keys().all(is_server), "{what}: {counts:?}");
    }
}

/// What the kernel tells of changes, as `nft monitor` puts it.
struct Monitor {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Monitor {
    fn start(namespace: &Namespace) -> Self {
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("nft");
        command.arg("monitor").stdout(output.reopen().unwrap());
        let child = namespace.spawn(command).unwrap();
        let monitor = Self { child, output };
        // It is listening once it tells of something.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !monitor.text().contains("trial") {
            assert!(Instant::now() < deadline, "nft monitor says nothing");
            namespace.exec(&["nft", "add table ip trial"]).unwrap();
            namespace.exec(&["nft", "delete table ip trial"]).unwrap();
            sleep(Duration::from_millis(50));
        }
        monitor
    }

    fn text(&self) -> String {
        let mut text = String::new();
        File::open(self.output.path())
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    /// The transactions with this in them.
    fn transactions(&self, needle: &str) -> Vec<String> {
        let text = self.text();
        let all = text.split("# new generation");
        all.filter(|it| it.contains(needle))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended already, or is ended now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// O-152, O-154: in one transaction per family, kube-proxy's table goes and ours comes. New
/// connections never fail, those that exist stay, and clients keep their endpoints for as long as
/// they would have, at all destinations of the Service port.
#[test]
fn a_takeover_from_nftables_mode_is_not_noticed() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_both();
        // It may have to be built, which would outlast what is remembered.
        binary().unwrap();
        bed.load(&kube_proxy::nftables(&SERVICES));
        let mut flows = bed.open_flows();
        let (mut kept, mut silent) = (Vec::new(), 0);
        for source in SOURCES {
            for (index, ip) in cluster_ip(STICKY).both().into_iter().enumerate() {
                for protocol in &bed.protocols {
                    let to = SocketAddr::new(ip, SERVICE_PORT);
                    let counts = probe_many(source.namespace(&bed.lab), *protocol, to, 10);
                    assert_eq!(counts.len(), 1, "kube-proxy's own affinity: {counts:?}");
                    let server = counts.into_keys().next().unwrap();
                    kept.push((source, *protocol, index, server));
                }
            }
        }
        // Somebody who was there long ago, and somebody whose endpoint is none any more.
        for (client, endpoint) in [("192.0.2.201", POD2.address), ("192.0.2.202", POD3.address)] {
            let set = affinity_set("sticky", "tcp", endpoint.v4.into());
            if endpoint == POD3.address {
                bed.load(&format!(
                    "add set ip kube-proxy {set} {{ type ipv4_addr; flags dynamic,timeout; timeout {TIMEOUT}s; }}"
                ));
            }
            bed.load(&format!(
                "add element ip kube-proxy {set} {{ {client} timeout {TIMEOUT}s expires 60s }}"
            ));
            silent += 1;
        }
        assert_eq!(silent, 2);
        let monitor = Monitor::start(&bed.lab.node);
        let streams = bed.start_streams();
        sleep(Duration::from_millis(300));
        let mut daemon = bed.start_proxy_with(&["--take-over"]);
        daemon.wait_for_log("removed table ip6 kube-proxy").unwrap();
        sleep(Duration::from_millis(300));
        assert_no_gap(streams);
        assert_alive(&mut flows);
        let tables = bed.tables();
        assert!(!tables.contains("kube-proxy"), "{tables}");
        for family in ["ip", "ip6"] {
            let gone = format!("delete table {family} kube-proxy\n");
            let [transaction] = &monitor.transactions(&gone)[..] else {
                panic!("{family}: {}", monitor.text());
            };
            let come = format!("create table {family} nftproxy\n");
            assert!(transaction.contains(&come), "{transaction}");
        }
        for (source, protocol, index, server) in &kept {
            for (address, port) in destinations(STICKY) {
                let to = SocketAddr::new(address.both()[*index], port);
                let counts = probe_many(source.namespace(&bed.lab), *protocol, to, 5);
                assert!(
                    counts.len() == 1 && counts.contains_key(server),
                    "{protocol} from {source:?} to {to}: {counts:?}, not {server}"
                );
            }
        }
        let list = ["nft", "list", "map", "ip", "nftproxy", "affinity"];
        let remembered = bed.lab.node.exec(&list).unwrap();
        let of_client = |ip: &str| {
            let elements = remembered
                .split(',')
                .filter(|it| it.contains(&format!("{ip} .")));
            elements.map(str::to_owned).collect::<Vec<_>>()
        };
        let old = of_client("192.0.2.201");
        // ClusterIP, external IP, load-balancer IP, and the NodePort at two addresses or one.
        assert!(old.len() >= 4, "{remembered}");
        for element in old {
            let expires = element.split("expires ").nth(1).unwrap();
            let seconds: u32 = expires.split('s').next().unwrap().parse().unwrap();
            assert!((1..=60).contains(&seconds), "{element}");
            assert!(element.contains("timeout 10m"), "{element}");
        }
        assert_eq!(of_client("192.0.2.202"), [""; 0]);
        assert!(!of_client(&CLIENT.v4.to_string()).is_empty());
        daemon.stop().unwrap();
    });
}

/// O-154: nor is it where only some sources may come, though the kernel shows ranges of a large
/// batch long after all else of it.
#[test]
fn ranges_of_sources_are_there_from_the_first_packet_on() {
    const N_OTHERS: usize = 3_000;
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("plain", PLAIN, &[POD1, POD3], |service| {
            service["spec"]["loadBalancerSourceRanges"] = json!([format!("{}/32", CLIENT.v4)]);
        });
        let others: Vec<_> = (0..N_OTHERS).flat_map(plain_service).collect();
        bed.manifests.put("others", &others).unwrap();
        binary().unwrap();
        bed.load(&kube_proxy::nftables(&SERVICES));
        let to = SocketAddr::new(load_balancer_ip(PLAIN).v4.into(), SERVICE_PORT);
        let client = Source::Client.namespace(&bed.lab);
        let streams: Vec<_> = (0..4)
            .map(|n| {
                let stream = Stream::start(client, Protocol::Udp, to);
                (stream, PLAIN, format!("stream {n}"))
            })
            .collect();
        let mut daemon = bed.start_proxy_with(&["--take-over"]);
        daemon.wait_for_log("removed table ip kube-proxy").unwrap();
        sleep(Duration::from_millis(100));
        assert_no_gap(streams);
        daemon.stop().unwrap();
    });
}

/// A Service at an address of its own, and its slice with five endpoints.
fn plain_service(number: usize) -> [Value; 2] {
    let name = format!("other-{number}");
    let (high, low) = (number / 250, number % 250 + 1);
    let endpoints = (1..=5).map(|n| json!({"addresses": [format!("10.{}.{high}.{low}", 100 + n)]}));
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "others"},
        "spec": {
            "clusterIP": format!("10.97.{high}.{low}"),
            "ports": [{"port": SERVICE_PORT}],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "others",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"port": 8080}],
    });
    [service, slice]
}

/// kube-proxy's modes that this system can have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nftables,
    Iptables,
}

fn modes() -> Vec<Mode> {
    if Command::new("iptables-nft")
        .arg("--version")
        .output()
        .is_ok()
    {
        return vec![Mode::Nftables, Mode::Iptables];
    }
    skip("iptables is not installed");
    vec![Mode::Nftables]
}

impl Bed {
    /// Makes what kube-proxy has in this mode.
    fn load_mode(&self, mode: Mode) {
        let node = &self.lab.node;
        match mode {
            Mode::Nftables => self.load(&kube_proxy::nftables(&SERVICES)),
            Mode::Iptables => {
                for (program, is_v4) in [
                    ("iptables-nft-restore", true),
                    ("ip6tables-nft-restore", false),
                ] {
                    let rules = kube_proxy::iptables(is_v4, &SERVICES);
                    node.exec_with_input(&[program], &rules).unwrap();
                }
            }
        }
    }

    fn has_mode(&self, mode: Mode) -> bool {
        let needle = match mode {
            Mode::Nftables => "table ip kube-proxy {",
            Mode::Iptables => "KUBE-SERVICES",
        };
        let ruleset = self.lab.node.exec(&["nft", "list", "ruleset"]).unwrap();
        ruleset.contains(needle)
    }
}

/// O-144, O-146, O-152: from each mode and back to it, under traffic. What exists goes on, and what
/// comes new never fails: our rules serve until kube-proxy's do, and the other way round.
#[test]
fn there_and_back_from_each_mode() {
    in_sandbox(|| {
        binary().unwrap();
        for mode in modes() {
            let bed = Bed::new();
            bed.put_both();
            bed.load_mode(mode);
            let mut flows = bed.open_flows();
            let streams = bed.start_streams();
            sleep(Duration::from_millis(200));
            let daemon = bed.start_proxy_with(&["--take-over=true"]);
            let deadline = Instant::now() + Duration::from_secs(20);
            while bed.has_mode(mode) {
                assert!(Instant::now() < deadline, "{mode:?}\n{}", daemon.log());
                sleep(Duration::from_millis(20));
            }
            assert_alive(&mut flows);
            flows.extend(bed.open_flows());
            daemon.stop().unwrap();
            bed.load_mode(mode);
            let cleanup = run(&bed.lab.node, &["cleanup", "--only-ours"]).unwrap();
            assert_eq!(cleanup.code, Some(0), "{}", cleanup.err);
            sleep(Duration::from_millis(200));
            assert_no_gap(streams);
            assert_alive(&mut flows);
            let tables = bed.tables();
            assert!(!tables.contains("nftproxy"), "{tables}");
            assert!(bed.has_mode(mode));
            // Their rules alone serve.
            flows.extend(bed.open_flows());
            assert_alive(&mut flows);
        }
    });
}

/// O-147, O-151: with all rules gone, of ours and of kube-proxy's, connections go on, if anybody has
/// a rule still that translates, as CNI plugins that masquerade have: the kernel goes on with it for
/// as long as there is one.
#[test]
fn connections_outlive_a_cleanup() {
    const OTHERS: &str = "table inet other {
        chain c {
            type nat hook postrouting priority 100;
            oifname nowhere masquerade
        }
    }";
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_both();
        bed.start_proxy().stop().unwrap();
        let mut flows = bed.open_flows();
        bed.load_mode(Mode::Nftables);
        bed.load(OTHERS);
        let cleanup = run(&bed.lab.node, &["cleanup"]).unwrap();
        assert_eq!(cleanup.code, Some(0), "{}", cleanup.err);
        assert_eq!(bed.tables(), "table inet other\n");
        assert_alive(&mut flows);
        let to = (cluster_ip(PLAIN).v4, SERVICE_PORT).into();
        assert!(Flow::open(Source::Pod3.namespace(&bed.lab), to).is_err());
    });
}

/// The shadow mode computes everything and programs nothing, and tells what a takeover would change:
/// nothing while kube-proxy does the same, in either mode; and what differs, once and no more.
#[test]
fn a_dry_run_changes_nothing_and_tells_what_would() {
    in_sandbox(|| {
        binary().unwrap();
        for mode in modes() {
            let bed = Bed::new();
            bed.put_both();
            bed.load_mode(mode);
            let ruleset = || {
                bed.lab
                    .node
                    .exec(&["nft", "-s", "list", "ruleset"])
                    .unwrap()
            };
            let before = ruleset();
            let monitor = Monitor::start(&bed.lab.node);
            let n_before = monitor.transactions("\n").len();
            let folder = bed.manifests.path().to_str().unwrap();
            let arguments = [
                "run",
                "--dry-run",
                "--dry-run-healthz=127.0.0.1:20256",
                "--dry-run-metrics=127.0.0.1:20249",
                "--manifests",
                folder,
                "--hostname-override=node",
                "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
                "-v=2",
            ];
            let mut daemon = Daemon::start(&bed.lab.node, &arguments).unwrap();
            for family in ["IPv4", "IPv6"] {
                let nothing = format!(
                    "a takeover from kube-proxy would change no destination and no endpoint\" \
                     ipFamily=\"{family}\""
                );
                daemon.wait_for_log(&nothing).unwrap();
            }
            // A Service more, one less, and an endpoint less.
            bed.put("new", 3, &[POD1], |_| {});
            bed.put("plain", PLAIN, &[POD1], |service| {
                service["spec"]["sessionAffinity"] = "ClientIP".into();
            });
            bed.manifests.remove("sticky").unwrap();
            let new = format!("{}:{SERVICE_PORT}", cluster_ip(3).v4);
            let gone = format!("{}:{SERVICE_PORT}", cluster_ip(STICKY).v4);
            for line in [
                format!("tcp {new} of default/new:tcp is not caught now, and would be served"),
                format!("udp {gone} is served now, and would be not caught"),
                "endpoints of default/plain:tcp: 10.244.1.13:8080 would lose their clients".into(),
            ] {
                daemon.wait_for_log(&format!("dry run: {line}")).unwrap();
            }
            let kept = "clients of default/plain:tcp keep their endpoint not at all now, and would \
                        for 10800 s";
            if matches!(mode, Mode::Nftables) {
                daemon.wait_for_log(kept).unwrap();
            }
            for page in ["127.0.0.1:20256/healthz", "127.0.0.1:20249/metrics"] {
                let ask = ["curl", "-sf", page];
                assert!(!bed.lab.node.exec(&ask).unwrap().is_empty(), "{page}");
            }
            assert_eq!(ruleset(), before);
            assert_eq!(
                monitor.transactions("\n").len(),
                n_before,
                "{}",
                monitor.text()
            );
            let log = daemon.log();
            assert!(
                !log.contains("Set sysctl") && !log.contains("repaired"),
                "{log}"
            );
            assert_eq!(daemon.stop().unwrap(), Some(0));
            if matches!(mode, Mode::Nftables) {
                compare_details(&bed, &arguments);
            } else {
                assert!(
                    log.contains("notCompared=\"masquerading, source ranges, session affinity")
                );
            }
        }
    });
}

/// What kube-proxy's rules do beside leading to endpoints is compared, too.
fn compare_details(bed: &Bed, arguments: &[&str]) {
    bed.put_both();
    let ip = load_balancer_ip(PLAIN);
    let firewall = |protocol: &str, ranges: &str| {
        let chain = format!("firewall-ULMVA6XW-default/plain/{protocol}/{protocol}");
        format!(
            "table ip kube-proxy {{\n chain {chain} {{ ip saddr != {ranges} drop; }}\n}}\n\
             add element ip kube-proxy firewall-ips \
             {{ {} . {protocol} . {SERVICE_PORT} : goto {chain} }}\n",
            ip.v4
        )
    };
    // Nobody is masqueraded from outside, and fewer may come there.
    let script = firewall("tcp", "{ 198.51.100.0/24, 10.0.0.0/9, 10.128.0.0/9 }")
        + &firewall("udp", "192.0.2.0/25")
        + &firewall("sctp", "{ 10.0.0.0/8 }")
        + "flush chain ip kube-proxy external-ULMVA6XW-default/plain/tcp/tcp\n\
           flush chain ip kube-proxy service-ULMVA6XW-default/plain/udp/udp\n";
    let node = &bed.lab.node;
    node.exec_with_input(&["nft", "-f", "-"], &script).unwrap();
    bed.put("sticky", STICKY, &[POD1, POD2, REMOTE], |_| {});
    let mut daemon = Daemon::start(node, arguments).unwrap();
    let (ip, cluster_ip) = (ip.v4, cluster_ip(PLAIN).v4);
    for line in [
        format!(
            "tcp {ip}:{SERVICE_PORT} of default/plain:tcp is open to 10.0.0.0/8 198.51.100.0/24 now, and would be to everybody"
        ),
        format!(
            "udp {ip}:{SERVICE_PORT} of default/plain:udp is open to 192.0.2.0/25 now, and would be to everybody"
        ),
        format!(
            "sctp {ip}:{SERVICE_PORT} of default/plain:sctp is open to 10.0.0.0/8 now, and would be to everybody"
        ),
        format!(
            "tcp {ip}:{SERVICE_PORT} of default/plain:tcp: nobody is masqueraded now, and everybody would be"
        ),
        format!(
            "udp {cluster_ip}:{SERVICE_PORT} of default/plain:udp: nobody is masqueraded now, and all but pods would be"
        ),
        "clients of default/sticky:tcp keep their endpoint for 600 s now, and would not at all"
            .to_owned(),
    ] {
        daemon.wait_for_log(&format!("dry run: {line}")).unwrap();
    }
    daemon
        .wait_for_log("notCompared=\"hairpins, health-check node ports\"")
        .unwrap();
}
