//! What `explain` says of connections, and what becomes of thousands of real ones.
//!
//! Clusters and connections are those of `sampled`, which compares with the contract; here each
//! share that `explain` gives is compared with how often that happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use integration::lab::{Dual, NODE, NODE_SECOND, POD_GATEWAY};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, probe};
use nftproxy_core::inspect::{Query, explain_ruleset};
use nftproxy_core::model::{DetectLocal, Node, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;

use crate::bed::Bed;
use crate::common::Twin;
use crate::oracle;
use crate::sampled::{Cluster, Dice, N_THREADS, Probe, SILENCE, known_node, list, sample_probes};

const SEEDS: [u64; 3] = [11, 12, 13];
/// Connections of a kind that is always answered.
const N_CONNECTIONS: u32 = 8;
const N_PACKETS_MIN: u32 = 2_000;
/// Chance exceeds so many standard deviations once in a million runs.
const DEVIATIONS: f64 = 5.0;

/// How many connections there were of what was said, and how often one of several endpoints was met.
#[derive(Default)]
struct Tally {
    n_packets: u32,
    /// Of connections that had a choice: how often the first one was met, was to be, and how far that
    /// may be off.
    met: f64,
    expected: f64,
    variance: f64,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.n_packets += other.n_packets;
        self.met += other.met;
        self.expected += other.expected;
        self.variance += other.variance;
        self.wrong.extend(other.wrong);
    }

    /// Makes connections of one kind, and compares them with what is explained.
    fn compare<F: Twin>(
        &mut self,
        probe: &Probe,
        cluster: &Cluster,
        bed: &Bed,
        rules: &FamilyRuleset<F>,
    ) {
        let packet = probe.packet::<F>();
        let query = Query {
            packet: packet.clone(),
            local: [NODE, NODE_SECOND, POD_GATEWAY]
                .into_iter()
                .flat_map(Dual::both)
                .collect(),
        };
        let ways = explain_ruleset(rules, &query).unwrap();
        let mut shares = BTreeMap::<String, f64>::new();
        for way in &ways {
            let share = way.share.to_string();
            let (parts, whole) = share.split_once('/').unwrap_or((&share, "1"));
            let share = parts.parse::<f64>().unwrap() / whole.parse::<f64>().unwrap();
            assert!(share > 0.0 && !way.steps.is_empty(), "{way:?}");
            *shares.entry(probe.text(&packet, &way.outcome)).or_default() += share;
        }
        let total: f64 = shares.values().sum();
        assert!((total - 1.0).abs() < 1e-9, "{probe}: {shares:?}");

        let is_silent = shares.contains_key(SILENCE);
        let n = if is_silent { 1 } else { N_CONNECTIONS };
        let options = ProbeOptions {
            from: None,
            timeout: Duration::from_millis(if is_silent { 200 } else { 3000 }),
        };
        let is_sticky = oracle::affinity(&cluster.state, &cluster.node, &packet).is_some();
        let first = shares
            .iter()
            .next()
            .map(|(text, share)| (text.clone(), *share));
        for _ in 0..n {
            let met = meet(probe, bed, options);
            self.n_packets += 1;
            if !shares.contains_key(&met) {
                self.wrong
                    .push(format!("{probe}: {met}, and explained is {shares:?}"));
                return;
            }
            if let (Some((text, share)), false, false) = (&first, is_sticky, is_silent) {
                self.met += f64::from(u8::from(met == *text));
                self.expected += share;
                self.variance += share * (1.0 - share);
            }
        }
    }
}

fn meet(of: &Probe, bed: &Bed, options: ProbeOptions) -> String {
    match probe(of.source.namespace(&bed.lab), of.protocol, of.to, options) {
        Outcome::Answer {
            server,
            seen_source,
        } => of.seen_text(&server, seen_source),
        other => other.to_string(),
    }
}

/// From each kind of source, in both families, several clusters: nothing happens that is not
/// explained, and what may happen in several ways does so as often as is said.
#[test]
fn thousands_of_connections_fare_as_explained() {
    in_sandbox(|| {
        let bed = Bed::new();
        let pods = ["10.244.0.0/16", "fd00:10:244::/48"];
        let mut all = Tally::default();
        for seed in SEEDS {
            let node = Node {
                detect_local: DetectLocal::Cidrs(pods.map(|cidr| cidr.parse().unwrap()).into()),
                ..known_node()
            };
            let mut dice = Dice(seed);
            let cluster = Cluster::sample(&mut dice, node);
            let probes = sample_probes(&mut dice, &cluster);
            cluster.write(&bed);
            let daemon = bed.start_proxy();
            // A port that is used again would meet a flow of the cluster before, until the proxy has
            // had that forgotten.
            bed.lab.node.exec(&["conntrack", "-F"]).unwrap();
            let (v4, v6) = (list::<V4>(&bed), list::<V6>(&bed));
            let compare = |probes: &[Probe]| {
                let mut tally = Tally::default();
                for probe in probes {
                    match probe.to {
                        SocketAddr::V4(_) => tally.compare(probe, &cluster, &bed, &v4),
                        SocketAddr::V6(_) => tally.compare(probe, &cluster, &bed, &v6),
                    }
                }
                tally
            };
            thread::scope(|scope| {
                let chunks = probes.chunks(probes.len().div_ceil(N_THREADS));
                let compare = &compare;
                let threads: Vec<_> = chunks
                    .map(|probes| scope.spawn(move || compare(probes)))
                    .collect();
                for thread in threads {
                    all.add(thread.join().unwrap());
                }
            });
            daemon.stop().unwrap();
        }
        assert_eq!(all.wrong, Vec::<String>::new());
        assert!(all.n_packets >= N_PACKETS_MIN, "{}", all.n_packets);
        assert!(
            all.variance > 100.0,
            "too few had a choice: {}",
            all.variance
        );
        let deviations = (all.met - all.expected).abs() / all.variance.sqrt();
        assert!(
            deviations < DEVIATIONS,
            "{} of {} connections, {} expected, {deviations} deviations off",
            all.met,
            all.n_packets,
            all.expected
        );
        println!(
            "{} packets, {} met where {:.1} were expected, {deviations:.2} deviations",
            all.n_packets, all.met, all.expected
        );
    });
}
