//! Others' hands in the tables of the real binary, as nft(8) does it: everything is mended at once,
//! the culprit is named, and what is saved can be loaded again.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, Output};
use integration::fixtures::recorded;
use integration::netns::{Namespace, in_sandbox, unsupported};
use integration::nft::loadable;
use integration::node::{RecordedNode, model};
use integration::traffic::patience;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::compile;
use nftproxy_core::model::{State, V4};
use nftproxy_core::ruleset::element::{Data, Element, Key};
use nftproxy_core::ruleset::name::SetName;

/// A node in step, with the recorded cluster.
struct Bed {
    node: RecordedNode,
    daemon: Daemon,
    state: State,
    _server: integration::apiserver::ApiServer,
}

impl Bed {
    fn new() -> Self {
        let node = RecordedNode::new().unwrap();
        let server = node.serve().unwrap();
        let daemon = node.start(&["--master", &server.url()]).unwrap();
        let state = recorded("all.yaml");
        let bed = Self {
            node,
            daemon,
            state,
            _server: server,
        };
        bed.wait();
        bed
    }

    fn wait(&self) {
        self.node
            .wait_for_rules(&self.daemon, &self.state, &model());
    }

    fn nft(&self, script: &str) {
        nft(&self.node.namespace, script);
    }

    fn list(&self, what: &str) -> String {
        let command: Vec<_> = ["nft", "list"].into_iter().chain(what.split(' ')).collect();
        self.node.namespace.exec(&command).unwrap()
    }

    /// The log lines that tell of repairs.
    fn repairs(&self) -> Vec<String> {
        let log = self.daemon.log();
        let told = |line: &&str| line.contains("somebody else changed the table");
        log.lines().filter(told).map(str::to_owned).collect()
    }
}

fn nft(namespace: &Namespace, script: &str) {
    namespace
        .exec_with_input(&["nft", "-f", "-"], script)
        .unwrap();
}

/// The names of the sets, or of the chains, of a table, as nft lists it.
fn names(listing: &str, kinds: &[&str]) -> Vec<String> {
    let name = |line: &str| {
        let (kind, rest) = line.trim().split_once(' ')?;
        let name = rest.strip_suffix(" {")?;
        kinds.contains(&kind).then(|| name.to_owned())
    };
    listing.lines().filter_map(name).collect()
}

/// Every chain and every set of both families, emptied one after the other: each is whole again, and
/// each time it is said who it was and what he did.
#[test]
fn whatever_is_emptied_is_filled_again() {
    in_sandbox(|| {
        let bed = Bed::new();
        let mut n_damages = 0;
        for family in ["ip", "ip6"] {
            let listing = bed.list(&format!("table {family} nftproxy"));
            let chains = names(&listing, &["chain"]);
            let sets = names(&listing, &["set", "map"]);
            assert!(chains.len() > 10 && sets.len() > 8, "{listing}");
            let chains = chains.iter().map(|chain| ("chain", chain));
            let sets = sets
                .iter()
                .filter(|set| *set != "affinity")
                .map(|set| ("set", set));
            for (kind, name) in chains.chain(sets) {
                let kind = if listing.contains(&format!("map {name} {{")) {
                    "map"
                } else {
                    kind
                };
                bed.nft(&format!("flush {kind} {family} nftproxy {name}"));
                bed.wait();
                n_damages += 1;
            }
        }
        // Some held nothing. Of many in a row, not each is worth a line, ten in each family are.
        let repairs = bed.repairs();
        assert!(n_damages > 40 && repairs.len() == 20, "{repairs:#?}");
        for line in repairs {
            assert!(line.contains("nft ("), "{line}");
            assert!(line.contains("deleted"), "{line}");
        }
        assert!(bed.daemon.log().contains("keeps changing the table"));
    });
}

/// Whatever else can be done to a table.
#[test]
fn all_kinds_of_damage_are_mended() {
    in_sandbox(|| {
        let bed = Bed::new();
        let service = bed
            .list("map ip nftproxy services")
            .lines()
            .find_map(|line| {
                let element = line.trim().trim_start_matches("elements = { ");
                Some(element.split_once(" comment ")?.0.to_owned())
            })
            .unwrap();
        let table = bed.list("table ip nftproxy");
        let chain = names(&table, &["chain"])
            .into_iter()
            .find(|chain| chain.starts_with("remember-"))
            .unwrap();
        let rules = bed.list(&format!("chain ip nftproxy {chain}"));
        let mut remembering_less = format!("flush chain ip nftproxy {chain}");
        for rule in rules.lines().filter(|line| line.contains("@affinity")) {
            let (before, after) = rule.rsplit_once(" :").unwrap();
            remembering_less +=
                &format!("; add rule ip nftproxy {chain} {before} limit rate 1/day :{after}");
        }
        let remembering_two = loadable(&table).replace("size 1000000", "size 2");
        assert!(remembering_two.contains("size 2\n"), "{table}");
        let remembering_two = format!("delete table ip nftproxy; {remembering_two}");
        let damages = [
            "delete table ip nftproxy".to_owned(),
            "delete table ip6 nftproxy".to_owned(),
            "flush table ip nftproxy".to_owned(),
            "flush ruleset".to_owned(),
            "flush ruleset ip6".to_owned(),
            // Another ruleset in its place.
            "flush ruleset; add table inet filter; \
             add chain inet filter input { type filter hook input priority 0; }"
                .to_owned(),
            // A table of our name that has nothing of ours.
            "delete table ip nftproxy; add table ip nftproxy".to_owned(),
            // One of ours leads elsewhere.
            format!(
                "delete element ip nftproxy services {{ {service} }}; \
                 add element ip nftproxy services {{ {service} : drop }}"
            ),
            format!("delete element ip nftproxy services {{ {service} }}"),
            // Things that are not ours.
            "add chain ip nftproxy foreign".to_owned(),
            "add set ip nftproxy foreign { type ipv4_addr; }".to_owned(),
            "add chain ip nftproxy foreign { type filter hook forward priority 0; policy drop; }"
                .to_owned(),
            "add rule ip nftproxy services counter drop".to_owned(),
            "insert rule ip6 nftproxy services accept".to_owned(),
            "add element ip nftproxy cluster-ips { 192.0.2.99 }".to_owned(),
            "add element ip nftproxy services { 192.0.2.99 . tcp . 80 : drop }".to_owned(),
            // What no rule of ours has learned, of one client and of all.
            format!(
                "add element ip nftproxy affinity \
                 {{ 192.0.2.99 . {service} timeout 1h : 10.9.9.9 . 80 }}"
            ),
            "add element ip nftproxy affinity { * timeout 1h : 10.9.9.9 . 80 }".to_owned(),
            "add table ip nftproxy { flags dormant; }".to_owned(),
            // One of a name that we could give.
            "add chain ip nftproxy remember-77".to_owned(),
            // Where no packet should come.
            "add chain ip nftproxy about; flush chain ip nftproxy about; \
             delete chain ip nftproxy about; \
             add chain ip nftproxy about { type filter hook forward priority 0; policy drop; }"
                .to_owned(),
            "add chain ip nftproxy about; add rule ip nftproxy about counter".to_owned(),
            // Objects that have a name.
            "add counter ip nftproxy foreign".to_owned(),
            "add quota ip nftproxy foreign { over 1 mbytes }".to_owned(),
            "add limit ip nftproxy foreign { rate 1/second }".to_owned(),
            // As we have it, and more.
            remembering_less,
            remembering_two,
        ];
        for damage in &damages {
            let before = bed.daemon.log().len();
            bed.nft(damage);
            bed.wait();
            // What is not ours is no part of the above.
            let listing = || bed.list("table ip nftproxy");
            let deadline = Instant::now() + 10 * patience();
            while [
                "foreign",
                "counter",
                "dormant",
                "policy drop",
                "remember-77",
                "limit",
                "size 2\n",
                "10.9.9.9",
            ]
            .iter()
            .any(|word| listing().contains(word))
            {
                assert!(Instant::now() < deadline, "{damage}: {}", listing());
                std::thread::sleep(Duration::from_millis(20));
            }
            bed.wait();
            let deadline = Instant::now() + 10 * patience();
            while !bed.daemon.log()[before..].contains("nft (") {
                // From the eleventh on in a family they are told with more care.
                if bed.repairs().len() >= 10 {
                    break;
                }
                assert!(Instant::now() < deadline, "{damage}: {}", bed.daemon.log());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
}

/// What clients got is remembered, though the table has to be made anew for what others put there.
#[test]
fn a_table_made_anew_remembers_clients() {
    in_sandbox(|| {
        let bed = Bed::new();
        let elements = compile(&bed.state, &model()).v4.elements;
        let (destination, endpoint) = elements
            .iter()
            .find_map(|element| {
                let Key::Destination(destination) = element.key() else {
                    return None;
                };
                let slots = elements.iter().filter(|slot| match slot.key() {
                    Key::Slot(of, _) => of == destination,
                    _ => false,
                });
                let mut endpoints = slots.filter_map(|slot| match slot.data() {
                    Data::Endpoint(endpoint) => Some(*endpoint),
                    _ => None,
                });
                let is_sticky = element.set() == SetName::Sticky;
                is_sticky
                    .then(|| endpoints.next())
                    .flatten()
                    .map(|it| (*destination, it))
            })
            .unwrap();
        let client = Ipv4Addr::new(192, 0, 2, 77);
        let learned = Element::<V4>::remembered(client, destination, endpoint).nft();
        let learned = learned.replace(" : ", " timeout 1h expires 30m : ");
        bed.nft(&format!("add element ip nftproxy affinity {{ {learned} }}"));
        bed.wait();
        let before = bed.list("map ip nftproxy affinity");
        assert!(before.contains("192.0.2.77"), "{before}");
        for damage in [
            "add chain ip nftproxy foreign",
            "add set ip nftproxy foreign { type ipv4_addr; }",
        ] {
            bed.nft(damage);
            let deadline = Instant::now() + 10 * patience();
            while bed.list("table ip nftproxy").contains("foreign") {
                assert!(Instant::now() < deadline, "{}", bed.daemon.log());
                std::thread::sleep(Duration::from_millis(10));
            }
            let after = bed.list("map ip nftproxy affinity");
            let remembered = after.lines().find(|line| line.contains("192.0.2.77"));
            let remembered = remembered.unwrap_or_else(|| panic!("{after}"));
            assert!(remembered.contains("timeout 1h"), "{remembered}");
            assert!(remembered.contains("expires 29m"), "{remembered}");
        }
    });
}

/// O-152: with `--hold-tables` nobody else can touch them; who starts while they are held waits and
/// says so; a kill leaves them in force, and the next takes them as they are, with what they remember.
#[test]
fn held_tables_are_left_alone() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let can_hold = node
            .namespace
            .run(|| Netlink::open().unwrap().hold().unwrap());
        if !can_hold {
            return unsupported("holding tables");
        }
        let server = node.serve().unwrap();
        let url = server.url();
        let state = recorded("all.yaml");
        let held = ["--master", &url, "--hold-tables"];
        // From a table that nobody holds.
        let plain = node.start(&["--master", &url]).unwrap();
        node.wait_for_rules(&plain, &state, &model());
        drop(plain);
        let first = node.start(&held).unwrap();
        node.wait_for_rules(&first, &state, &model());
        // It may take a moment until it is made anew.
        let deadline = Instant::now() + 10 * patience();
        while !node
            .namespace
            .exec(&["nft", "list", "ruleset"])
            .unwrap()
            .contains("flags owner")
        {
            assert!(Instant::now() < deadline, "{}", first.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let handle = handle_of_table(&node.namespace);
        for forbidden in [
            "flush chain ip nftproxy services",
            "delete table ip nftproxy",
            "add chain ip6 nftproxy foreign",
        ] {
            let command = ["nft", forbidden];
            let error = node.namespace.exec(&command).unwrap_err().to_string();
            assert!(error.contains("not permitted"), "{error}");
        }
        nft(&node.namespace, "flush ruleset");
        node.wait_for_rules(&first, &state, &model());
        let Output { code, err, .. } =
            integration::daemon::run(&node.namespace, &["cleanup"]).unwrap();
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("held by another process"), "{err}");

        let mut second = node.start(&held).unwrap();
        second.wait_for_log("held by another process").unwrap();
        // Killed, not told to end.
        drop(first);
        second.wait_for_log("SyncProxyRules complete").unwrap();
        node.wait_for_rules(&second, &state, &model());
        assert_eq!(
            handle_of_table(&node.namespace),
            handle,
            "it is the same table"
        );

        // And back to one that nobody holds.
        drop(second);
        let third = node.start(&["--master", &url]).unwrap();
        node.wait_for_rules(&third, &state, &model());
        let deadline = Instant::now() + 10 * patience();
        while handle_of_table(&node.namespace) == handle {
            assert!(Instant::now() < deadline, "{}", third.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        nft(&node.namespace, "add chain ip nftproxy allowed");
        drop(third);
        let Output { code, err, .. } =
            integration::daemon::run(&node.namespace, &["cleanup"]).unwrap();
        assert_eq!(code, Some(0), "{err}");
    });
}

/// The number that the kernel gave the table when it was made.
fn handle_of_table(namespace: &Namespace) -> String {
    let listing = namespace
        .exec(&["nft", "-a", "list", "table", "ip", "nftproxy"])
        .unwrap();
    let first = listing.lines().next().unwrap();
    first.rsplit_once("handle ").unwrap().1.to_owned()
}

/// What others do to tables of their own is none of our business, however much it is.
#[test]
fn others_tables_cost_no_repair() {
    in_sandbox(|| {
        let bed = Bed::new();
        let elements: Vec<_> = (0..60_000)
            .map(|n| format!("10.{}.{}.{}", n / 65536, n / 256 % 256, n % 256))
            .collect();
        let elements = elements.join(", ");
        bed.nft("add table ip other; add set ip other s { type ipv4_addr; }");
        bed.nft(&format!("add element ip other s {{ {elements} }}"));
        bed.nft("delete table ip other");
        std::thread::sleep(Duration::from_millis(500));
        bed.wait();
        assert_eq!(bed.repairs(), [""; 0]);
    });
}

/// A listing is loaded in one transaction: a line that nft does not take back would cost a host its
/// whole firewall. With session affinity, as text and as JSON.
#[test]
fn a_saved_listing_can_be_loaded_again() {
    in_sandbox(|| {
        let bed = Bed::new();
        let saved = bed.list("table ip nftproxy");
        assert!(saved.contains("update @affinity"), "{saved}");
        let other = Namespace::new("other").unwrap();
        nft(&other, &loadable(&saved));
        let list = |namespace: &Namespace| namespace.exec(&["nft", "list", "ruleset"]).unwrap();
        assert_eq!(loadable(&list(&other)), loadable(&saved));

        let command = ["nft", "-j", "list", "table", "ip", "nftproxy"];
        let saved_json = bed.node.namespace.exec(&command).unwrap();
        let third = Namespace::new("third").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("saved.json");
        std::fs::write(&file, saved_json).unwrap();
        match third.exec(&["nft", "-j", "-f", file.to_str().unwrap()]) {
            Ok(_) => assert_eq!(loadable(&list(&third)), loadable(&saved)),
            // nft 1.0.6 lists in JSON what it does not take back: maps whose data has two fields.
            Err(error) if error.to_string().contains("Invalid map type") => {
                unsupported("nft's own JSON of maps to an address and port");
            }
            Err(error) => panic!("{error}"),
        }
    });
}
