//! The library against a real kernel: what it commits is what `nft` would, and what it lists is
//! what it committed.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Instant;

use integration::fixtures::recorded;
use integration::netns::{Namespace, in_sandbox, unsupported};
use integration::nft::{can_load_all, loadable};
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::apply::{ApplyError, Kernel, Refusal};
use nftproxy_core::compile::{Compiled, Keep, StaleFlows, compile};
use nftproxy_core::diff::{Counts, Delta, diff};
use nftproxy_core::engine::{Engine, Event, Families, Options, Outcome, Task};
use nftproxy_core::model::{
    Balancing, ClusterIps, DetectLocal, Endpoint, EndpointAddress, EndpointSlice, Family,
    InterfaceName, IpFamily, Locality, Method, Node, NodePortAddresses, PortName, Protocol,
    Service, ServiceName, ServicePort, SliceEndpoints, SliceName, SlicePort, State, V4, V6,
};
use nftproxy_core::render;
use nftproxy_core::ruleset::element::{Data, Element, Key};
use nftproxy_core::ruleset::name::SlotMap;
use nftproxy_core::ruleset::{FamilyRuleset, Table};
use nftproxy_core::sync::Syncer;

/// `n_services` Services with `n_endpoints` each, all dual-stack.
fn large(n_services: u32, n_endpoints: u32) -> State {
    let mut state = State::default();
    for number in 0..n_services {
        let name = ServiceName::new("load", &format!("service-{number}")).unwrap();
        let v4 = Ipv4Addr::from(0x0a60_0000 + number + 1);
        let v6 = Ipv6Addr::from(0xfd00_0010_0096_0000_0000_0000_0000_0000 + u128::from(number) + 1);
        state.apply_service(Service {
            cluster_ips: ClusterIps {
                v4: Some(v4),
                v6: Some(v6),
            },
            ports: Box::new([ServicePort {
                name: PortName::new("http").unwrap(),
                protocol: Protocol::Tcp,
                port: 80.try_into().unwrap(),
                node_port: None,
            }]),
            ..Service::new(name.clone())
        });
        let first = number * n_endpoints;
        let v4 = |index| Ipv4Addr::from(0x0af4_0000 + first + index);
        let v6 = |index| {
            Ipv6Addr::from(0xfd00_0010_0244_0000_0000_0000_0000_0000 + u128::from(first + index))
        };
        let v4 = SliceEndpoints::V4((0..n_endpoints).map(v4).map(endpoint::<V4>).collect());
        let v6 = SliceEndpoints::V6((0..n_endpoints).map(v6).map(endpoint::<V6>).collect());
        for (suffix, endpoints) in [("v4", v4), ("v6", v6)] {
            state.apply_slice(EndpointSlice {
                name: SliceName::new("load", &format!("service-{number}-{suffix}")).unwrap(),
                service: name.clone(),
                ports: Box::new([SlicePort {
                    name: PortName::new("http").unwrap(),
                    protocol: Protocol::Tcp,
                    port: 8080.try_into().unwrap(),
                }]),
                endpoints,
            });
        }
    }
    state
}

fn endpoint<F: Family>(address: F::Address) -> Endpoint<F> {
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        locality: Locality::Remote,
        hints: None,
    }
}

/// The recorded cluster, with every way of choosing endpoints.
fn balanced() -> State {
    let mut state = recorded("all.yaml");
    let services: Vec<_> = state.services().cloned().collect();
    let methods = [Method::SourceHash, Method::Maglev, Method::Random];
    for (mut service, method) in services.into_iter().zip(methods.into_iter().cycle()) {
        let endpoints = state.slices(&service.name).iter().flat_map(|slice| {
            let (v4, v6) = (
                V4::endpoints(&slice.endpoints),
                V6::endpoints(&slice.endpoints),
            );
            let v4 = v4
                .into_iter()
                .flatten()
                .map(|endpoint| IpAddr::V4(endpoint.address));
            let v6 = v6
                .into_iter()
                .flatten()
                .map(|endpoint| IpAddr::V6(endpoint.address));
            v4.chain(v6).collect::<Vec<_>>()
        });
        let heavy: BTreeSet<_> = endpoints.step_by(2).collect();
        let mut balancing = Balancing::new(method);
        balancing.weights = heavy.into_iter().map(|address| (address, 3)).collect();
        service.balancing = Some(Box::new(balancing));
        state.apply_service(service);
    }
    state
}

fn nodes() -> Vec<(&'static str, Node)> {
    let cidrs = DetectLocal::Cidrs(vec![
        "10.244.0.0/16".parse().unwrap(),
        "10.96.0.0/11".parse().unwrap(),
        "fd00:10:244::/49".parse().unwrap(),
    ]);
    let only = |ips: &[&str]| {
        NodePortAddresses::Only(ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect())
    };
    vec![
        (
            "cidrs",
            Node {
                detect_local: cidrs,
                ..Node::default()
            },
        ),
        (
            "bridge",
            Node {
                detect_local: DetectLocal::BridgeInterface(InterfaceName::new("cni0").unwrap()),
                node_port_addresses_v4: only(&["192.0.2.10", "192.0.2.11"]),
                node_port_addresses_v6: only(&["2001:db8::10"]),
                masquerade_mark: Some(1),
                ..Node::default()
            },
        ),
        (
            "prefix",
            Node {
                detect_local: DetectLocal::InterfaceNamePrefix(InterfaceName::new("veth").unwrap()),
                masquerade_mark: Some(1 << 31),
                ..Node::default()
            },
        ),
        (
            "all",
            Node {
                masquerade_all: true,
                ..Node::default()
            },
        ),
        (
            "no mark",
            Node {
                detect_local: DetectLocal::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]),
                node_port_addresses_v4: only(&["192.0.2.10"]),
                masquerade_mark: None,
                ..Node::default()
            },
        ),
        (
            "no mark at all, of an interface",
            Node {
                detect_local: DetectLocal::BridgeInterface(InterfaceName::new("cni0").unwrap()),
                masquerade_mark: None,
                masquerade_all: true,
                ..Node::default()
            },
        ),
    ]
}

fn commit<F: Family>(netlink: &mut Netlink, ruleset: &FamilyRuleset<F>) {
    netlink.commit(&diff(None, ruleset)).unwrap();
}

/// What we commit and what `nft -f` makes of our script must list identically, as text and JSON.
#[test]
fn netlink_and_nft_agree() {
    in_sandbox(|| {
        let mut states = vec![
            ("recorded", recorded("all.yaml")),
            ("empty", State::default()),
        ];
        let mut several = recorded("after.yaml");
        several.apply_service_cidr("odd", ["10.97.0.0/20".parse().unwrap()]);
        states.push(("several service CIDRs", several));
        states.push(("balanced", balanced()));
        for (name, state) in &states {
            for (node_name, node) in nodes() {
                let Compiled { v4, v6, .. } = compile(state, &node);
                let ours = Namespace::new("ours").unwrap();
                ours.run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    commit(&mut netlink, &v4);
                    commit(&mut netlink, &v6);
                });
                let theirs = Namespace::new("theirs").unwrap();
                let script = render::ruleset(&v4) + &render::ruleset(&v6);
                theirs
                    .exec_with_input(&["nft", "-f", "-"], &loadable(&script))
                    .unwrap();
                let mut commands = vec![&["nft", "list", "ruleset"][..]];
                // It has the rules' numbers, and each on one line.
                if can_load_all() {
                    commands.push(&["nft", "-j", "list", "ruleset"]);
                }
                for command in commands {
                    let (ours, theirs) =
                        (ours.exec(command).unwrap(), theirs.exec(command).unwrap());
                    pretty_assert(&ours, &theirs, &format!("{name}, {node_name}"));
                }
            }
        }
    });
}

fn pretty_assert(ours: &str, theirs: &str, what: &str) {
    let (ours, theirs) = (loadable(ours), loadable(theirs));
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs, "{what}");
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{what}");
}

/// What is listed is what was committed, so that a restart sends nothing.
#[test]
fn listing_gives_back_what_was_committed() {
    in_sandbox(|| {
        let states = [recorded("all.yaml"), balanced()];
        let each =
            |(name, node): (_, Node)| states.iter().map(move |state| (name, node.clone(), state));
        for (name, node, state) in nodes().into_iter().flat_map(each) {
            Namespace::new("node").unwrap().run(|| {
                let Compiled { v4, v6, .. } = compile(state, &node);
                check_round_trip(&v4, name);
                check_round_trip(&v6, name);
            });
        }
    });
}

fn check_round_trip<F: Family>(desired: &FamilyRuleset<F>, what: &str) {
    let mut netlink = Netlink::open().unwrap();
    assert_eq!(Kernel::<F>::list(&mut netlink).unwrap(), None, "{what}");
    commit(&mut netlink, desired);
    let observed = Kernel::<F>::list(&mut netlink).unwrap().unwrap();
    assert_eq!(observed.foreign, Vec::<String>::new(), "{what}");
    assert_eq!(observed.ruleset, *desired, "{what}");
}

/// Another table, at other priorities, in a namespace that is named by a descriptor, is what `nft`
/// makes of the script for it; and it is found again beside a default one.
#[test]
fn another_table_in_another_namespace() {
    in_sandbox(|| {
        let table = Table::new("second-proxy", -7).unwrap();
        let (_, node) = nodes().remove(0);
        let Compiled { v4, v6, .. } = compile(&recorded("all.yaml"), &node);
        let (ours, theirs) = (
            Namespace::new("ours").unwrap(),
            Namespace::new("theirs").unwrap(),
        );
        let file = ours.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let mut netlink = Netlink::open_table(table.clone(), Some(file.as_fd())).unwrap();
        ours.run(|| commit(&mut Netlink::open().unwrap(), &v4));
        commit(&mut netlink, &v4);
        commit(&mut netlink, &v6);
        let script = render::ruleset(&v4)
            + &render::ruleset_in(&table, &v4)
            + &render::ruleset_in(&table, &v6);
        theirs
            .exec_with_input(&["nft", "-f", "-"], &loadable(&script))
            .unwrap();
        let list = ["nft", "list", "ruleset"];
        let listed = ours.exec(&list).unwrap();
        pretty_assert(&listed, &theirs.exec(&list).unwrap(), "ruleset");
        assert!(
            listed.contains("hook prerouting priority dstnat - 7;"),
            "{listed}"
        );
        let observed = Kernel::<V4>::list(&mut netlink).unwrap().unwrap();
        assert_eq!(observed.foreign, Vec::<String>::new());
        assert_eq!(observed.ruleset, v4);
    });
}

/// A whole engine in a namespace that its thread is not in: tables, flows and all.
#[test]
fn an_engine_works_in_another_namespace() {
    in_sandbox(|| {
        let (inside, outside) = (
            Namespace::new("inside").unwrap(),
            Namespace::new("outside").unwrap(),
        );
        let file = inside.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let state = recorded("all.yaml");
        outside.run(|| {
            let options = Options {
                namespace: Some(file.into()),
                families: Families::V4,
                ..Options::default()
            };
            let mut engine = Engine::open(options, Instant::now()).unwrap();
            let slices = state
                .services()
                .flat_map(|service| state.slices(&service.name));
            let everything = Event::Replaced {
                services: state.services().cloned().collect(),
                slices: slices.map(|slice| slice.as_ref().clone()).collect(),
            };
            engine.apply(everything, Instant::now());
            while let Some(due) = engine.next(Instant::now()) {
                if due.task == Task::Tidy {
                    break;
                }
                for outcome in engine.perform(due.task, due.at) {
                    if let Outcome::Failed { error, .. } | Outcome::FlowsFailed { error } = outcome
                    {
                        panic!("{error}");
                    }
                }
            }
            assert!(engine.has_synced());
        });
        let tables = ["nft", "list", "tables"];
        assert_eq!(inside.exec(&tables).unwrap(), "table ip nftproxy\n");
        assert_eq!(outside.exec(&tables).unwrap(), "");
        let services = ["nft", "list", "map", "ip", "nftproxy", "services"];
        assert!(inside.exec(&services).unwrap().contains("goto pick-"));
    });
}

/// The delta of a live change, through `nft -f` on one side and netlink on the other.
#[test]
fn rendered_deltas_do_the_same() {
    in_sandbox(|| {
        let (_, node) = nodes().remove(0);
        let before = compile(&recorded("all.yaml"), &node).v4;
        let mut later = recorded("after.yaml");
        later.apply_service_cidr("second", ["10.200.0.0/16".parse().unwrap()]);
        let after = compile(&later, &node).v4;

        let ours = Namespace::new("ours").unwrap();
        let delta = ours.run(|| {
            let mut netlink = Netlink::open().unwrap();
            commit(&mut netlink, &before);
            let observed = Kernel::<V4>::list(&mut netlink).unwrap();
            let delta = diff(observed.as_ref(), &after);
            netlink.commit(&delta).unwrap();
            delta
        });
        let theirs = Namespace::new("theirs").unwrap();
        theirs
            .exec_with_input(&["nft", "-f", "-"], &loadable(&render::ruleset(&before)))
            .unwrap();
        theirs
            .exec_with_input(&["nft", "-f", "-"], &loadable(&render::delta(&delta)))
            .unwrap();
        let list = ["nft", "list", "ruleset"];
        pretty_assert(
            &ours.exec(&list).unwrap(),
            &theirs.exec(&list).unwrap(),
            "after the delta",
        );
        assert!(
            delta.counts().elements() > 0 && delta.counts().rules > 0,
            "{:?}",
            delta.counts()
        );
    });
}

/// A batch of which one operation fails leaves nothing behind, and the error names the culprit.
#[test]
fn a_failing_batch_leaves_nothing() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        let Compiled { v4, .. } = compile(&recorded("all.yaml"), &Node::default());
        namespace.run(|| {
            let mut netlink = Netlink::open().unwrap();
            commit(&mut netlink, &v4);
        });
        let list = ["nft", "list", "ruleset"];
        let before = namespace.exec(&list).unwrap();
        let error = namespace.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let delta = Delta::<V4> {
                add_elements: vec![
                    Element::cluster_ip([10, 99, 0, 1].into()),
                    Element::cluster_ip([10, 99, 0, 2].into()),
                    // It exists, and elements are added exclusively.
                    Element::cluster_ip([10, 96, 0, 1].into()),
                    Element::cluster_ip([10, 99, 0, 3].into()),
                ],
                ..Delta::default()
            };
            netlink.commit(&delta).unwrap_err()
        });
        assert_eq!(
            error.to_string(),
            "the kernel refused adding element { 10.96.0.1 } of cluster-ips in table ip nftproxy"
        );
        assert_eq!(error.culprit(), Some(2));
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.errno(), nix::libc::EEXIST);
        assert_eq!(namespace.exec(&list).unwrap(), before);
    });
}

/// 10,000 Services of 5 endpoints, in both families: over message limits, in a bounded number of
/// messages, and nothing is sent the second time, by the same process or the next.
#[test]
fn a_large_cluster_loads_and_a_second_sync_sends_nothing() {
    in_sandbox(|| {
        if !nix_is_initial_root() {
            return integration::netns::skip(
                "a batch of this size needs CAP_NET_ADMIN in the initial user namespace",
            );
        }
        let state = large(10_000, 5);
        Namespace::new("node").unwrap().run(|| {
            check_large::<V4>(&state);
            check_large::<V6>(&state);
        });
    });
}

fn check_large<F: Family>(state: &State) {
    let node = Node::default();
    let nothing = BTreeSet::new();
    let mut syncer = Syncer::<F, _>::new(Netlink::open().unwrap());
    let report = syncer.sync(state, &node, &nothing).unwrap();
    // A ClusterIP, a verdict and five slots each.
    assert_eq!(report.counts.added_elements, 70_000);
    assert!(report.committed.messages < 300, "{:?}", report.committed);

    let again = syncer.sync(state, &node, &nothing).unwrap();
    assert_eq!((again.full, again.counts), (false, Counts::default()));

    let mut restarted = Syncer::<F, _>::new(Netlink::open().unwrap());
    let report = restarted.sync(state, &node, &nothing).unwrap();
    assert_eq!((report.full, report.counts), (true, Counts::default()));
}

/// A map that is full is made anew in the batch that needs the room. What clients have learned stays,
/// and so does the table.
#[test]
fn a_full_map_is_made_anew() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        let nft = |script: &str| {
            namespace
                .exec_with_input(&["nft", "-f", "-"], script)
                .unwrap()
        };
        let list = |what: &str| {
            let command = format!("nft -a list {what}");
            let words: Vec<_> = command.split(' ').collect();
            namespace.exec(&words).unwrap()
        };
        let node = Node::default();
        let netlink = || namespace.run(|| Netlink::open().unwrap());
        let mut syncer = Syncer::<V4, _>::new(netlink());
        let mut state = State::default();
        let mut sync_at = |size: u32, syncer: &mut Syncer<V4, Netlink>| {
            let larger = large(size, 3);
            larger.services().for_each(|service| {
                let mut service = service.clone();
                let is_sticky = service.name.as_str() == "load/service-0";
                service.session_affinity = is_sticky.then_some(10_800.try_into().unwrap());
                state.apply_service(service);
            });
            for service in larger.services() {
                let slices = larger.slices(&service.name).iter();
                slices.for_each(|slice| state.apply_slice(slice.as_ref().clone()));
            }
            let dirty = state.take_dirty();
            let report = syncer.sync(&state, &node, &dirty).unwrap();
            let mut other = netlink();
            let observed = Kernel::<V4>::list(&mut other).unwrap().unwrap();
            assert_eq!(observed.foreign, Vec::<String>::new());
            let desired = compile(&state, &node).v4;
            assert!(
                diff(Some(&observed), &desired).is_empty(),
                "{size} Services"
            );
            report
        };
        sync_at(1_000, &mut syncer);
        let table = list("table ip nftproxy").lines().next().map(str::to_owned);
        assert!(list("map ip nftproxy services").contains("size 2048"));
        nft("add element ip nftproxy affinity \
             { 192.0.2.1 . 10.96.0.1 . tcp . 80 timeout 1h : 10.244.0.1 . 8080 }");
        // Slots outgrow their map, then verdicts and addresses do, and slots once more.
        for size in [1_500, 2_100, 3_000] {
            let report = sync_at(size, &mut syncer);
            assert!(!report.full && report.counts.rules > 0, "{report:?}");
        }
        assert!(list("map ip nftproxy services").contains("size 4096"));
        assert!(list("map ip nftproxy endpoints").contains("size 16384"));
        assert!(list("map ip nftproxy affinity").contains("192.0.2.1"));
        let table_now = list("table ip nftproxy").lines().next().map(str::to_owned);
        assert_eq!(table_now, table);

        // Who fills it up hinders nobody for long.
        let garbage = (0..5_000_u32).map(|n| {
            let [a, b, c, d] = (0xc000_0000 + n).to_be_bytes();
            format!("{a}.{b}.{c}.{d} . tcp . 80 : return")
        });
        let garbage: Vec<_> = garbage.take(4_096 - 3_000).collect();
        nft(&format!(
            "add element ip nftproxy services {{ {} }}",
            garbage.join(",")
        ));
        let report = sync_at(3_001, &mut syncer);
        assert!(report.full && report.is_repair, "{report:?}");
        // A restart takes the sizes as they are.
        let mut syncer = Syncer::<V4, _>::new(netlink());
        let report = sync_at(3_001, &mut syncer);
        assert_eq!(report.counts, Counts::default());
        assert!(sync_at(4_100, &mut syncer).counts.rules > 0);
        assert!(list("map ip nftproxy services").contains("size 8192"));
    });
}

/// A map that is too large to be dumped in good time is read slot by slot, which hides nothing that
/// somebody else did to it.
#[test]
fn a_large_map_is_read_as_it_is() {
    in_sandbox(|| {
        if !nix_is_initial_root() {
            return integration::netns::skip(
                "a batch of this size needs CAP_NET_ADMIN in the initial user namespace",
            );
        }
        let state = large(100, 650);
        let Compiled { v4, v6, .. } = compile(&state, &Node::default());
        Namespace::new("node").unwrap().run(|| {
            check_round_trip(&v4, "65,000 slots");
            check_round_trip(&v6, "65,000 slots");
            let mut netlink = Netlink::open().unwrap();
            let mut meddle = |delete: &[Element<V4>], add: &[Element<V4>]| {
                let delta = Delta {
                    delete_elements: delete.to_vec(),
                    add_elements: add.to_vec(),
                    ..Delta::default()
                };
                netlink.commit(&delta).unwrap();
                let observed = Kernel::<V4>::list(&mut netlink).unwrap().unwrap();
                let found = diff(Some(&observed), &v4);
                assert_eq!(found.add_elements, delete);
                assert_eq!(found.delete_elements, add);
                netlink.commit(&found).unwrap();
            };
            let is_slot = |element: &&Element<V4>| matches!(element.key(), Key::Slot(..));
            let ours = v4.elements.iter().find(is_slot).unwrap().clone();
            let (Key::Slot(destination, _), Data::Endpoint(endpoint)) = (ours.key(), ours.data())
            else {
                panic!("{ours:?}")
            };
            let foreign = Element::slot(SlotMap::Endpoints, *destination, 1000, *endpoint);
            meddle(&[], std::slice::from_ref(&foreign));
            meddle(std::slice::from_ref(&ours), &[]);
            meddle(&[ours], &[foreign]);
        });
    });
}

/// Whether root is the machine's, rather than that of a user namespace.
fn nix_is_initial_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// S-173: tables of others may hold anything, under the same names in another family too; they are
/// neither taken for ours nor touched.
#[test]
fn tables_of_others_do_not_matter() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        let others = "table ip other {
            quota some { over 1 mbytes }
            set services {
                type ipv4_addr . inet_service
                flags interval, timeout
                elements = { 10.96.0.0/16 . 1-80 timeout 1h comment \"range\" }
            }
            map endpoints {
                type ipv4_addr : counter
            }
            chain services {
                ip saddr . tcp dport @services quota name \"some\" drop
            }
        }
        table inet nftproxy {
            chain services {
                counter accept
            }
        }";
        namespace
            .exec_with_input(&["nft", "-f", "-"], others)
            .unwrap();
        let list_others = || {
            let tables = [["ip", "other"], ["inet", "nftproxy"]];
            tables.map(|[family, name]| {
                let list = ["nft", "list", "table", family, name];
                namespace.exec(&list).unwrap()
            })
        };
        let before = list_others();
        let Compiled { v4, v6, .. } = compile(&recorded("all.yaml"), &Node::default());
        namespace.run(|| {
            check_round_trip(&v4, "beside others");
            check_round_trip(&v6, "beside others");
        });
        let after = list_others();
        // The time that is left of an element goes on.
        let without_times = |listings: [String; 2]| {
            listings.map(|text| {
                let words = text.split_whitespace();
                let mut is_time = false;
                words
                    .filter(|word| !std::mem::replace(&mut is_time, *word == "expires"))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        assert_eq!(without_times(after), without_times(before));
    });
}

/// What others put into our table is removed by a full sync, in the same batch that restores ours.
#[test]
fn a_foreign_object_or_a_flush_is_mended() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        let state = recorded("all.yaml");
        let node = Node::default();
        let nothing = BTreeSet::new();
        let mut syncer = namespace.run(|| Syncer::<V4, _>::new(Netlink::open().unwrap()));
        syncer.sync(&state, &node, &nothing).unwrap();
        let list = ["nft", "list", "table", "ip", "nftproxy"];
        let good = namespace.exec(&list).unwrap();
        for vandalism in [
            "flush ruleset",
            "add chain ip nftproxy intruder",
            "add set ip nftproxy intruder { type mark; }",
            "add rule ip nftproxy services counter drop",
            "flush chain ip nftproxy services",
            "flush map ip nftproxy services",
            "add element ip nftproxy cluster-ips { 1.2.3.4 }",
            "delete element ip nftproxy endpoints { 10.96.0.1 . tcp . 443 . 0 }",
            "flush chain ip nftproxy pick-1",
        ] {
            namespace
                .exec_with_input(&["nft", "-f", "-"], vandalism)
                .unwrap();
            assert_ne!(
                namespace.exec(&list).ok(),
                Some(good.clone()),
                "{vandalism}"
            );
            syncer.distrust();
            syncer.sync(&state, &node, &nothing).unwrap();
            let mended = namespace.exec(&list).unwrap();
            // Elements of a hash set come in any order after a rebuild.
            let sorted = |text: &str| {
                let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
                words.sort();
                words
            };
            assert_eq!(sorted(&mended).len(), sorted(&good).len(), "{vandalism}");
            let observed = Kernel::<V4>::list(syncer.kernel_mut()).unwrap().unwrap();
            assert_eq!(observed.ruleset, compile(&state, &node).v4, "{vandalism}");
        }
    });
}

/// O-105: pick chains that are no longer needed go in a batch of their own.
#[test]
fn unused_picks_are_deleted_later() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        let mut syncer = namespace.run(|| Syncer::<V4, _>::new(Netlink::open().unwrap()));
        let node = Node::default();
        let mut state = large(1, 7);
        let dirty = state.take_dirty();
        syncer.sync(&state, &node, &dirty).unwrap();
        let smaller = large(1, 3);
        let slices = smaller.slices(&ServiceName::new("load", "service-0").unwrap());
        state.apply_slice(slices[0].as_ref().clone());
        let dirty = state.take_dirty();
        syncer.sync(&state, &node, &dirty).unwrap();
        let chains = || namespace.exec(&["nft", "list", "chains", "ip"]).unwrap();
        assert!(chains().contains("pick-7") && chains().contains("pick-3"));
        assert_eq!(syncer.delete_unused_chains().unwrap(), 1);
        assert!(!chains().contains("pick-7") && chains().contains("pick-3"));
    });
}

/// What a kernel can do is found out without a trace, beside a table that is there.
#[test]
fn trying_leaves_nothing_behind() {
    in_sandbox(|| {
        let namespace = Namespace::new("trying").unwrap();
        let mut netlink = namespace.run(|| Netlink::open().unwrap());
        let Compiled { v4, .. } = compile(&large(2, 3), &Node::default());
        commit(&mut netlink, &v4);
        let list = || namespace.exec(&["nft", "list", "ruleset"]).unwrap();
        let before = list();
        let lacks = netlink.try_rules(&[IpFamily::V4, IpFamily::V6]).unwrap();
        assert!(lacks.is_empty(), "{lacks:?}");
        netlink.can_destroy().unwrap();
        assert_eq!(list(), before);
    });
}

/// What is found out by trying is what the kernel then does.
#[test]
fn deleting_what_is_not_there_works_where_it_was_found_to() {
    in_sandbox(|| {
        let namespace = Namespace::new("destroy").unwrap();
        let mut netlink = namespace.run(|| Netlink::open().unwrap());
        let Compiled { v4, .. } = compile(&large(2, 3), &Node::default());
        commit(&mut netlink, &v4);
        let delta = Delta::<V4> {
            forget: vec![Element::cluster_ip(Ipv4Addr::new(192, 0, 2, 99))],
            ..Delta::default()
        };
        let can_destroy = netlink.can_destroy().unwrap();
        match netlink.commit(&delta) {
            Ok(_) => assert!(can_destroy),
            Err(error) => {
                assert!(!can_destroy, "{error}");
                assert!(
                    error.refusal().is_some_and(Refusal::is_not_found),
                    "{error}"
                );
            }
        }
    });
}

/// Without CAP_NET_ADMIN the error says what is missing.
#[test]
fn an_unprivileged_process_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        let error = Kernel::<V4>::list(&mut Netlink::open().unwrap()).unwrap_err();
        assert!(matches!(error, ApplyError::NotPermitted), "{error}");
    }
}

/// nft 1.0.6 cannot take the rules that remember an endpoint in `ip6`, whatever their form: it
/// aborts on any update of a map whose key is wider than one address. It lists ours all the same.
#[test]
fn affinity_in_both_families_can_be_listed() {
    in_sandbox(|| {
        let mut state = large(2, 3);
        let mut service = state
            .service(&ServiceName::new("load", "service-0").unwrap())
            .unwrap()
            .clone();
        service.session_affinity = std::num::NonZeroU32::new(10800);
        state.apply_service(service);
        let namespace = Namespace::new("node").unwrap();
        let Compiled { v4, v6, .. } = compile(&state, &Node::default());
        namespace.run(|| {
            check_round_trip(&v4, "ip");
            check_round_trip(&v6, "ip6");
        });
        let listing = namespace
            .exec(&["nft", "list", "chain", "ip6", "nftproxy", "remember-10800"])
            .unwrap();
        for protocol in ["tcp", "udp", "sctp"] {
            let rule = format!(
                "update @affinity {{ ip6 saddr . ct original ip6 daddr . meta l4proto . \
                 ct original proto-dst timeout 3h : ip6 daddr . {protocol} dport }}"
            );
            assert!(listing.contains(&rule), "{listing}");
        }
        namespace.exec(&["nft", "-j", "list", "ruleset"]).unwrap();
        // In `ip` they go both ways.
        let again = Namespace::new("again").unwrap();
        again
            .exec_with_input(&["nft", "-f", "-"], &loadable(&render::ruleset(&v4)))
            .unwrap();
        let list = ["nft", "list", "table", "ip", "nftproxy"];
        pretty_assert(
            &namespace.exec(&list).unwrap(),
            &again.exec(&list).unwrap(),
            "ip",
        );
    });
}

/// S-119: of the flows to one port, those to one address are found, whatever this kernel makes of an
/// address that it is asked for, and whatever was asked before.
#[test]
fn flows_to_one_address_are_found() {
    in_sandbox(|| {
        let namespace = Namespace::new("node").unwrap();
        check_flows::<V4>(&namespace, "192.0.2.1", ["198.51.100.1", "198.51.100.2"]);
        check_flows::<V6>(
            &namespace,
            "2001:db8::1",
            ["2001:db8:51::1", "2001:db8:51::2"],
        );
    });
}

fn check_flows<F: Family>(namespace: &Namespace, client: &str, servers: [&str; 2]) {
    let add = |server: &str, port: &str| {
        let command = "conntrack -I -p udp --timeout 600 --sport 4000 --status ASSURED,SEEN_REPLY";
        let mut command: Vec<_> = command.split(' ').collect();
        command.extend(["-s", client, "-d", server, "--dport", port]);
        namespace.exec(&command).unwrap();
    };
    let mut conntrack = namespace.run(|| Conntrack::open().unwrap());
    let find = |conntrack: &mut Conntrack, destinations: &[(&str, u16)]| {
        let stale = destinations.iter().map(|(server, port)| StaleFlows::<F> {
            address: F::address(server.parse().unwrap()).unwrap(),
            port: (*port).try_into().unwrap(),
            // Something serves, so that flows which led nowhere are to be forgotten.
            keep: Keep {
                serving: Box::new([EndpointAddress {
                    address: F::address(client.parse().unwrap()).unwrap(),
                    port: (*port).try_into().unwrap(),
                }]),
                sources: None,
                answered_only: false,
            },
        });
        let found = conntrack.find_stale(&stale.collect::<Vec<_>>()).unwrap();
        let found = found.iter().map(|flow| flow.destination);
        let mut found: Vec<_> = found
            .map(|(address, port)| (address.to_string(), port.get()))
            .collect();
        found.sort();
        found
    };
    let [first, second] = servers;
    let flow = |server: &str, port| (server.to_owned(), port);
    assert_eq!(find(&mut conntrack, &[(first, 53)]), []);
    // There are none but those asked for.
    add(first, "53");
    assert_eq!(find(&mut conntrack, &[(first, 53)]), [flow(first, 53)]);
    // There are none that are asked for.
    assert_eq!(find(&mut conntrack, &[(second, 53)]), []);
    add(second, "53");
    add(second, "54");
    for _ in 0..2 {
        for server in servers {
            assert_eq!(find(&mut conntrack, &[(server, 53)]), [flow(server, 53)]);
        }
        assert_eq!(find(&mut conntrack, &[(first, 54)]), []);
    }
    // Several at once are found in one walk: of one port, and of several.
    let both = [flow(first, 53), flow(second, 53)];
    assert_eq!(find(&mut conntrack, &[(first, 53), (second, 53)]), both);
    let two = [flow(first, 53), flow(second, 54)];
    let asked = [(first, 53), (first, 54), (second, 54)];
    assert_eq!(find(&mut conntrack, &asked), two);
    match (F::FAMILY, conntrack.filters_ipv6_addresses()) {
        (IpFamily::V4, known) => assert_eq!(known, None),
        (IpFamily::V6, Some(true)) => {}
        (IpFamily::V6, Some(false)) => unsupported("asking for the flows to one IPv6 address"),
        (IpFamily::V6, None) => panic!("after all these answers it must be known"),
    }
}
