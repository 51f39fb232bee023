//! What traffic notices of others' hands in the table, and of a proxy that is killed: new
//! connections fail in the moments until the repair only, and those that exist never.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, Output, run};
use integration::lab::NODE;
use integration::manifest::{SERVICE_PORT, cluster_ip, node_port, service, slices};
use integration::netns::in_sandbox;
use integration::nft::loadable;
use integration::traffic::{Flow, ProbeOptions, Protocol, probe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bed::{Bed, POD1, POD2, POD3, REMOTE, Source};

const STEADY: u8 = 1;
const PATIENCE: Duration = Duration::from_secs(10);
/// Where probes come from, in turn: nothing listens there, and the kernel hands none of it out.
const PORTS: RangeInclusive<u16> = 11_000..=29_000;

/// What happened between two moments.
struct Span {
    from: Instant,
    to: Instant,
    what: String,
}

impl Span {
    fn meets(&self, other: &Span) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Probes a Service that does not change from all sides while `work` runs. Returns how many probes
/// there were, and those that no endpoint answered.
fn while_probing(bed: &Bed, work: impl FnOnce()) -> (usize, Vec<Span>) {
    let [cluster_v4, cluster_v6] = cluster_ip(STEADY).both();
    let node_port = (NODE.v4, node_port(STEADY)).into();
    let watches: [(Source, Protocol, SocketAddr); 5] = [
        (
            Source::Pod3,
            Protocol::Tcp,
            (cluster_v4, SERVICE_PORT).into(),
        ),
        (
            Source::Pod3,
            Protocol::Udp,
            (cluster_v6, SERVICE_PORT).into(),
        ),
        (
            Source::Host,
            Protocol::Tcp,
            (cluster_v6, SERVICE_PORT).into(),
        ),
        (Source::Client, Protocol::Tcp, node_port),
        (Source::Client, Protocol::Udp, node_port),
    ];
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = |(source, protocol, to): (Source, Protocol, SocketAddr)| {
            let namespace = source.namespace(&bed.lab);
            let (mut n_probes, mut failures) = (0, Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                let from = Instant::now();
                // What began without a table stays untranslated for a while, and whoever gets its port
                // meets that. So none is used again.
                let port = PORTS.start() + (n_probes % PORTS.len()) as u16;
                let options = ProbeOptions {
                    from: Some((unspecified(to.ip()), port).into()),
                    ..ProbeOptions::default()
                };
                let outcome = probe(namespace, protocol, to, options).to_string();
                n_probes += 1;
                if !outcome.starts_with("pod") {
                    failures.push(Span {
                        from,
                        to: Instant::now(),
                        what: format!("{protocol} from {source:?} to {to}: {outcome}"),
                    });
                }
                sleep(Duration::from_millis(3));
            }
            (n_probes, failures)
        };
        let threads = watches.map(|which| scope.spawn(move || watch(which)));
        // Nobody waits for them for ever, should the work panic.
        let over = Over(&is_over);
        work();
        drop(over);
        let results = threads.map(|thread| thread.join().unwrap());
        results
            .into_iter()
            .fold((0, Vec::new()), |(n, mut all), (n_probes, failures)| {
                all.extend(failures);
                (n + n_probes, all)
            })
    })
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Our tables, as far as they are there, without what they say of themselves a second later.
fn list(bed: &Bed) -> String {
    let table = |family| {
        let command = ["nft", "-s", "list", "table", family, "nftproxy"];
        bed.lab.node.exec(&command).unwrap_or_default()
    };
    let both = table("ip") + &table("ip6");
    let mut is_about = false;
    let lines = both.lines().filter(|line| {
        let was_about = is_about;
        is_about = line.contains("chain about {") || is_about && !line.starts_with("\t}");
        !was_about && !is_about && !line.is_empty()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn nft(bed: &Bed, script: &str) {
    let command = ["nft", "-f", "-"];
    bed.lab.node.exec_with_input(&command, script).unwrap();
}

/// New connections fail only if they overlap the time from a damage to its repair; those that exist
/// never do, whatever is taken away. `DAMAGE_ROUNDS` says how many times over, for long runs by hand.
#[test]
fn only_what_begins_while_the_table_is_damaged_fails() {
    let n_rounds = std::env::var("DAMAGE_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    in_sandbox(move || {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1, POD2], |_| {});
        let daemon = bed.start_proxy();
        let whole = list(&bed);
        let saved = loadable(&list(&bed));
        let damages = [
            "flush chain ip nftproxy services; flush chain ip6 nftproxy services".to_owned(),
            "flush ruleset".to_owned(),
            "flush map ip nftproxy services; flush map ip6 nftproxy services".to_owned(),
            "flush map ip nftproxy endpoints".to_owned(),
            "insert rule ip nftproxy services drop; insert rule ip6 nftproxy services drop"
                .to_owned(),
            "delete table ip nftproxy".to_owned(),
            "add chain ip nftproxy foreign { type filter hook forward priority 0; policy drop; }"
                .to_owned(),
            // What a distribution's script does at its start.
            format!("flush ruleset\n{saved}"),
        ];
        let mut flows: Vec<_> = cluster_ip(STEADY)
            .both()
            .into_iter()
            .map(|ip| Flow::open(&bed.lab.pods[2], (ip, SERVICE_PORT).into()).unwrap())
            .collect();
        let mut windows = Vec::new();
        let (n_probes, failures) = while_probing(&bed, || {
            for damage in damages.iter().cycle().take(n_rounds * damages.len()) {
                let from = Instant::now();
                nft(&bed, damage);
                while list(&bed) != whole {
                    assert!(
                        from.elapsed() < PATIENCE,
                        "{damage} is not repaired: {}\n{}",
                        list(&bed),
                        daemon.log()
                    );
                }
                windows.push(Span {
                    from,
                    to: Instant::now(),
                    what: damage.clone(),
                });
                for flow in &mut flows {
                    flow.ping().unwrap();
                }
                // Some that succeed, too.
                sleep(Duration::from_millis(50));
            }
        });
        let unexplained: Vec<_> = failures
            .iter()
            .filter(|failure| !windows.iter().any(|window| window.meets(failure)))
            .map(|failure| {
                let before = windows.iter().rev().find(|window| window.to < failure.from);
                let after = before.map(|window| (failure.from - window.to, &window.what));
                format!("{}, after {after:?}", failure.what)
            })
            .collect();
        assert!(unexplained.is_empty(), "{unexplained:#?}");
        // Or nothing was tried.
        assert!(n_probes > 100 * n_rounds, "{n_probes}");
        let damaged: Duration = windows.iter().map(|window| window.to - window.from).sum();
        println!(
            "{} of {n_probes} probes failed, while {} damages were there for {damaged:?} in all",
            failures.len(),
            windows.len(),
        );
    });
}

/// Connections of TCP that nobody has answered while there was no table are led right when they ask
/// again.
#[test]
fn connections_that_nobody_answered_without_a_table_succeed_after_the_repair() {
    const EXTERNAL: [u8; 4] = [198, 51, 100, 77];
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1], |service| {
            service["spec"]["externalIPs"] = json!([IpAddr::from(EXTERNAL)]);
        });
        let daemon = bed.start_proxy();
        signal(&daemon, Signal::SIGSTOP);
        // Who is told that there is no way gives up.
        let silent = "flush ruleset
            table inet silent {
                chain forward {
                    type filter hook forward priority 0
                    ct state new accept
                    meta l4proto { icmp, icmpv6 } drop
                }
                chain output {
                    type filter hook output priority 0
                    icmp type destination-unreachable drop
                    icmpv6 type destination-unreachable drop
                }
            }";
        nft(&bed, silent);
        let ips = [cluster_ip(STEADY).both().as_slice(), &[EXTERNAL.into()]].concat();
        let outcomes = thread::scope(|scope| {
            let connect = |ip: IpAddr| {
                let options = ProbeOptions {
                    timeout: PATIENCE,
                    ..ProbeOptions::default()
                };
                probe(
                    &bed.lab.pods[2],
                    Protocol::Tcp,
                    (ip, SERVICE_PORT).into(),
                    options,
                )
            };
            let threads: Vec<_> = ips
                .iter()
                .map(|ip| scope.spawn(move || connect(*ip)))
                .collect();
            sleep(Duration::from_millis(300));
            signal(&daemon, Signal::SIGCONT);
            let outcomes = threads
                .into_iter()
                .map(|thread| thread.join().unwrap().to_string());
            outcomes.collect::<Vec<_>>()
        });
        assert_eq!(outcomes, ["pod1"; 3], "{}", daemon.log());
    });
}

/// UDP flows that begin while something is missing lead nowhere for as long as they send, or come
/// from where nobody can answer, unless they are forgotten after the repair.
#[test]
fn flows_that_began_under_damage_are_led_right_after_the_repair() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1], |_| {});
        let daemon = bed.start_proxy();
        let whole = list(&bed);
        let [v4, v6] = cluster_ip(STEADY)
            .both()
            .map(|ip| SocketAddr::from((ip, SERVICE_PORT)));
        let node_port = SocketAddr::from((NODE.v4, node_port(STEADY)));
        let cases = [
            ("flush ruleset", Source::Pod3, v4),
            ("flush ruleset", Source::Pod3, v6),
            (
                "flush set ip nftproxy node-port-ips",
                Source::Client,
                node_port,
            ),
            ("flush chain ip6 nftproxy postrouting", Source::Pod1, v6),
            ("flush set ip nftproxy hairpin", Source::Pod1, v4),
        ];
        for (damage, source, to) in cases {
            signal(&daemon, Signal::SIGSTOP);
            nft(&bed, damage);
            let socket = source.namespace(&bed.lab).run(|| {
                let socket = UdpSocket::bind((unspecified(to.ip()), 0)).unwrap();
                socket.connect(to).unwrap();
                socket
            });
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            let ask = || {
                let mut buffer = [0; 100];
                // What a router says of the address is no answer.
                socket.send(b"probe\n").is_ok() && socket.recv(&mut buffer).is_ok()
            };
            assert!(!ask(), "{damage} did no harm");
            signal(&daemon, Signal::SIGCONT);
            let deadline = Instant::now() + PATIENCE;
            // One family may be there before the other.
            while !ask() || list(&bed) != whole {
                assert!(Instant::now() < deadline, "{damage}: {}", daemon.log());
            }
        }
    });
}

/// What the kernel could not tell, as nobody read, is found by comparison.
#[test]
fn damage_that_nobody_could_be_told_of_is_found() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1, POD2], |_| {});
        let daemon = bed.start_proxy();
        let whole = list(&bed);
        signal(&daemon, Signal::SIGSTOP);
        // More than may wait to be read.
        let elements: Vec<_> = (0..200_000)
            .map(|n| format!("10.{}.{}.{}", n / 65536, n / 256 % 256, n % 256))
            .collect();
        let elements = elements.join(", ");
        nft(
            &bed,
            "add table ip other; add set ip other s { type ipv4_addr; }",
        );
        nft(&bed, &format!("add element ip other s {{ {elements} }}"));
        nft(&bed, "delete table ip other");
        nft(&bed, "flush map ip nftproxy services");
        assert_ne!(list(&bed), whole);
        signal(&daemon, Signal::SIGCONT);
        let deadline = Instant::now() + PATIENCE;
        while list(&bed) != whole {
            assert!(Instant::now() < deadline, "{}", daemon.log());
        }
        assert!(
            daemon.log().contains("lost notifications"),
            "{}",
            daemon.log()
        );
    });
}

/// A proxy that is killed at whatever moment of a large sync leaves rules that serve everybody who
/// was served before.
#[test]
fn a_proxy_killed_at_any_moment_cuts_nobody_off() {
    const N_SERVICES: u8 = 200;
    const N_KILLS: u64 = 12;
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("steady", STEADY, &[POD1, POD2], |_| {});
        let put = |round: u64| {
            let endpoints = [&[POD1, POD2][..], &[POD3], &[POD2, POD3, REMOTE], &[]];
            let endpoints = endpoints[round as usize % endpoints.len()];
            let objects: Vec<_> = (2..2 + N_SERVICES)
                // Not all of them are there each time.
                .filter(|number| !(u64::from(*number) + round).is_multiple_of(5))
                .flat_map(|number| {
                    let name = format!("other-{number}");
                    let [v4, v6] = slices(&name, endpoints);
                    [service(&name, number), v4, v6]
                })
                .collect();
            bed.manifests.put("others", &objects).unwrap();
        };
        put(0);
        let mut daemon = Some(bed.start_proxy());
        let (n_probes, failures) = while_probing(&bed, || {
            for round in 1..=N_KILLS {
                put(round);
                // A sync of this size, reading the files included, takes some tens of milliseconds
                // after the watch has noticed.
                sleep(Duration::from_millis(round * 17 % 150));
                drop(daemon.take());
                daemon = Some(bed.start_proxy());
            }
        });
        let failures: Vec<_> = failures.iter().map(|failure| &failure.what).collect();
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(n_probes > 500, "{n_probes}");
        // What is there in the end is what is wanted.
        let folder = bed.manifests.path().to_str().unwrap();
        let audit = [
            "audit",
            "--manifests",
            folder,
            "--hostname-override",
            "node",
        ];
        let cidr = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Output { code, out, err } =
                run(&bed.lab.node, &[&audit[..], &[cidr]].concat()).unwrap();
            if code == Some(0) {
                break;
            }
            assert!(Instant::now() < deadline, "{code:?} {out}{err}");
        }
    });
}

fn signal(daemon: &Daemon, signal: Signal) {
    kill(Pid::from_raw(daemon.id().cast_signed()), signal).unwrap();
}
