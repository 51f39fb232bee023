//! The engine with made-up time: pace, retries, tidying, notes, filters, who waits for what. And
//! the driver, with real time, as far as no test has to wait long for it.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod damage;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bench::{Bench, MOMENT, NoFlows, PACE, SECOND, Shared, options};
use common::{mk_node, mk_service, mk_slice, port};
use nftproxy_core::apply::ApplyError;
use nftproxy_core::compile::{Liveness, Note};
use nftproxy_core::driver::{Driver, DriverError, WaitError};
use nftproxy_core::engine::flows::Flows;
use nftproxy_core::engine::{
    Engine, Event, FlowOption, HealthCheckAnswer, Kernels, Options, Outcome, Task,
};
use nftproxy_core::model::{
    EndpointSlice, EndpointView, Filter, IpFamily, Node, NodePortAddresses, PortName, Protocol,
    Service, ServiceAddress, ServiceName, V4, V6,
};

/// An IPv4-only Service.
fn service(number: u8) -> Service {
    let mut service = mk_service(
        &format!("service-{number}"),
        &format!("10.96.0.{number}"),
        &["80/tcp"],
    );
    service.cluster_ips.v6 = None;
    service
}

fn applied(number: u8) -> Event {
    Event::ServiceApplied(service(number))
}

fn slices_of(service: &str, endpoints: &[&str]) -> Vec<EndpointSlice> {
    vec![mk_slice::<V4>("slice", service, &["8080/tcp"], endpoints)]
}

/// O-91
#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let mut bench = Bench::new();
    bench.apply(applied(1));
    bench.apply(Event::ServicesListed([service(1).name].into()));
    bench.pass(3600 * SECOND);
    bench.engine.perform(Task::Sync, bench.now);
    assert_eq!(bench.commits(), (0, 0), "not even when asked to");
    bench.apply(Event::SlicesListed(BTreeSet::new()));
    bench.settle();
    assert_eq!(bench.commits(), (1, 1));
}

/// O-70: an absent Node object delays the first sync, but not for ever; one that comes ends the wait.
#[test]
fn an_unknown_node_delays_the_first_sync() {
    let patience = 30 * SECOND;
    let waiting = || Options {
        node_patience: patience,
        ..options()
    };
    let mut bench = Bench::with(waiting());
    bench.complete_lists();
    bench.pass(patience - SECOND);
    assert_eq!(bench.commits(), (0, 0));
    bench.pass(SECOND);
    assert_eq!(bench.commits(), (1, 1));

    let mut bench = Bench::with(waiting());
    bench.complete_lists();
    bench.pass(SECOND);
    bench.apply(Event::NodeChanged(mk_node()));
    bench.settle();
    assert_eq!(bench.commits(), (1, 1));
}

/// O-99
#[test]
fn a_lone_event_is_synced_at_once_and_a_burst_together() {
    let mut bench = Bench::new();
    bench.complete_lists();
    bench.settle();
    bench.pass(10 * SECOND);
    bench.apply(applied(1));
    bench.settle();
    assert_eq!(bench.v4.commits(), 2, "the first was of the empty lists");
    for number in 2..12 {
        bench.apply(applied(number));
        bench.pass(Duration::from_millis(20));
    }
    assert_eq!(bench.v4.commits(), 2, "the minimum period is not over");
    bench.pass(SECOND);
    assert_eq!(bench.v4.commits(), 3);
    assert_eq!(
        bench.v6.commits(),
        1,
        "there is nothing for it in that family"
    );
}

/// O-101, O-104
#[test]
fn a_failed_sync_is_retried_and_holds_the_other_family_not_up() {
    let mut bench = Bench::new();
    bench.v4.set_broken(true);
    bench.complete_lists();
    let outcomes = bench.settle();
    assert!(
        matches!(
            &*outcomes,
            [
                Outcome::Synced {
                    family: IpFamily::V6,
                    ..
                },
                Outcome::Failed {
                    family: IpFamily::V4,
                    ..
                },
            ]
        ),
        "{outcomes:?}"
    );
    assert_eq!(bench.commits(), (0, 1));
    assert!(!bench.engine.has_synced());
    bench.v4.set_broken(false);
    bench.pass(PACE.sync_period - SECOND);
    assert_eq!(bench.v4.commits(), 0);
    let outcomes = bench.pass(2 * SECOND);
    assert_eq!(bench.v4.commits(), 1);
    assert!(bench.engine.has_synced());
    let recovered = outcomes.iter().any(|outcome| {
        matches!(
            outcome,
            Outcome::Synced {
                family: IpFamily::V4,
                is_recovery: true,
                ..
            }
        )
    });
    assert!(recovered, "{outcomes:?}");
}

/// O-101: a change brings the retry forward.
#[test]
fn a_change_brings_the_retry_forward() {
    let mut bench = Bench::new();
    bench.v4.fake.lock().unwrap().fail_next(12);
    bench.complete_lists();
    bench.settle();
    bench.apply(applied(1));
    bench.pass(SECOND + MOMENT);
    assert_eq!(bench.v4.commits(), 1);
}

/// O-103, O-118: changes count against the health once they could be synced, the first too.
#[test]
fn a_family_that_cannot_be_synced_makes_the_proxy_unhealthy() {
    let mut bench = Bench::new();
    let is_healthy = |bench: &Bench| bench.engine.health().is_healthy(bench.now);
    bench.apply(applied(1));
    bench.pass(10 * PACE.sync_period);
    assert!(is_healthy(&bench), "the lists are not complete");
    bench.v4.set_broken(true);
    bench.complete_lists();
    bench.pass(2 * PACE.sync_period - SECOND);
    assert!(is_healthy(&bench));
    bench.pass(SECOND);
    assert!(!is_healthy(&bench));
    bench.v4.set_broken(false);
    bench.pass(PACE.sync_period);
    assert!(is_healthy(&bench));
}

/// O-120, O-122: what changed before a failed sync is handed over with the one that succeeds.
#[test]
fn changed_services_come_with_successful_syncs_only() {
    let mut bench = Bench::new();
    bench.complete_lists();
    let changed = |outcomes: Vec<Outcome>| -> Vec<usize> {
        outcomes
            .into_iter()
            .filter_map(|outcome| match outcome {
                Outcome::Synced {
                    family: IpFamily::V4,
                    changed,
                    ..
                } => Some(changed.len()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(changed(bench.settle()), [0], "there is no Service yet");
    bench.v4.set_broken(true);
    for number in [1, 2] {
        bench.apply(applied(number));
        assert_eq!(changed(bench.pass(2 * SECOND)), [0_usize; 0]);
    }
    bench.v4.set_broken(false);
    bench.apply(applied(3));
    assert_eq!(changed(bench.pass(2 * SECOND)), [3]);
    bench.apply(applied(4));
    assert_eq!(changed(bench.pass(2 * SECOND)), [1]);
}

/// O-105: pick chains that nothing needs go a second after the sync, not with it; then nothing is due for an hour.
#[test]
fn what_has_time_is_done_a_second_later() {
    let mut bench = Bench::new();
    let web = |endpoints: &[&str]| Event::Replaced {
        services: vec![service(1)],
        slices: slices_of("service-1", endpoints),
    };
    bench.apply(web(&["10.244.1.1", "10.244.1.2"]));
    bench.pass(5 * SECOND);
    bench.apply(web(&["10.244.1.1"]));
    let outcomes = bench.settle();
    let is_deletion = |outcome: &Outcome| matches!(outcome, Outcome::ChainsDeleted { .. });
    assert!(!outcomes.iter().any(is_deletion), "{outcomes:?}");
    assert_eq!(bench.next().map(|due| due.task), Some(Task::Tidy));
    let outcomes = bench.pass(SECOND + MOMENT);
    assert!(
        matches!(
            &*outcomes,
            [Outcome::ChainsDeleted {
                family: IpFamily::V4,
                count: 1
            }]
        ),
        "{outcomes:?}"
    );
    assert_eq!(bench.next().map(|due| due.task), Some(Task::Compare));
}

/// O-102: after a deletion of chains that failed, the next sync is a full one, and they go after it.
#[test]
fn a_failed_deletion_of_chains_is_followed_by_a_full_sync() {
    let mut bench = Bench::new();
    let web = |endpoints: &[&str]| Event::Replaced {
        services: vec![service(1)],
        slices: slices_of("service-1", endpoints),
    };
    let is_full = |outcomes: &[Outcome]| -> Vec<bool> {
        let full = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Synced {
                family: IpFamily::V4,
                report,
                ..
            } => Some(report.full),
            _ => None,
        });
        full.collect()
    };
    bench.apply(web(&["10.244.1.1", "10.244.1.2"]));
    bench.pass(5 * SECOND);
    bench.apply(web(&["10.244.1.1"]));
    assert_eq!(is_full(&bench.settle()), [false]);
    bench.v4.set_broken(true);
    let outcomes = bench.pass(SECOND + MOMENT);
    assert!(
        matches!(
            &*outcomes,
            [Outcome::ChainDeletionFailed {
                family: IpFamily::V4,
                ..
            }]
        ),
        "{outcomes:?}"
    );
    bench.v4.set_broken(false);
    bench.apply(applied(2));
    let outcomes = bench.pass(3 * SECOND);
    assert_eq!(is_full(&outcomes), [true]);
    let is_deletion = |outcome: &Outcome| matches!(outcome, Outcome::ChainsDeleted { .. });
    assert!(outcomes.iter().any(is_deletion), "{outcomes:?}");
    bench.apply(applied(3));
    assert_eq!(is_full(&bench.pass(3 * SECOND)), [false]);
}

/// What is applied again as it was is no work, and counts as being in the kernel.
#[test]
fn revisions_say_what_is_in_the_kernel() {
    let mut bench = Bench::new();
    let all = || Event::Replaced {
        services: vec![service(1), service(2)],
        slices: slices_of("service-1", &["10.244.1.1"]),
    };
    assert!(!bench.engine.has_synced());
    bench.apply(all());
    assert_eq!(bench.engine.synced_revision(), 0);
    bench.settle();
    assert_eq!(
        (bench.engine.revision(), bench.engine.synced_revision()),
        (1, 1)
    );
    let before = bench.commits();
    bench.apply(all());
    assert_eq!(bench.engine.synced_revision(), 2, "there is nothing to do");
    bench.pass(5 * SECOND);
    assert_eq!(bench.commits(), before);

    bench.v4.set_broken(true);
    bench.apply(applied(3));
    bench.pass(5 * SECOND);
    bench.apply(applied(3));
    assert_eq!(bench.engine.synced_revision(), 2, "the third failed");
    bench.v4.set_broken(false);
    bench.pass(PACE.sync_period);
    assert_eq!(bench.engine.synced_revision(), 4);
}

/// One note when it appears, one when it goes, and the list between.
#[test]
fn notes_appear_and_go_once() {
    let mut bench = Bench::new();
    let rival = |number: u8| Service {
        external_ips: Box::new(["198.51.100.1".parse().unwrap()]),
        created: number.into(),
        ..service(number)
    };
    let notes = |outcomes: Vec<Outcome>| -> Vec<(bool, Note)> {
        outcomes
            .into_iter()
            .filter_map(|outcome| match outcome {
                Outcome::NoteAppeared { note, .. } => Some((true, note)),
                Outcome::NoteWent { note, .. } => Some((false, note)),
                _ => None,
            })
            .collect()
    };
    bench.apply(Event::ServiceApplied(rival(1)));
    bench.apply(Event::ServiceApplied(rival(2)));
    bench.apply(Event::ServicesListed([rival(1).name, rival(2).name].into()));
    bench.apply(Event::SlicesListed(BTreeSet::new()));
    let said = notes(bench.settle());
    let [(true, note)] = &*said else {
        panic!("{said:?}")
    };
    let Note::Conflict {
        loser,
        winner,
        destination,
    } = note
    else {
        panic!("{note:?}")
    };
    assert_eq!(loser.service, rival(2).name);
    assert_eq!(winner.service, rival(1).name);
    assert_eq!(
        destination.ip,
        Some("198.51.100.1".parse::<IpAddr>().unwrap())
    );
    let in_force = |bench: &Bench| {
        bench
            .engine
            .notes()
            .map(|(_, note)| note.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(in_force(&bench), std::slice::from_ref(note));

    // Neither other changes nor full comparisons say it again.
    bench.apply(applied(3));
    assert_eq!(notes(bench.pass(2 * SECOND)), []);
    bench.apply(Event::Distrusted);
    assert_eq!(notes(bench.pass(2 * SECOND)), []);
    // Nor does it matter who has it, as long as somebody has; the list tells.
    bench.apply(Event::ServiceApplied(rival(0)));
    assert_eq!(
        notes(bench.pass(2 * SECOND))
            .iter()
            .map(|(has_appeared, note)| (*has_appeared, note.service_port().unwrap().to_string()))
            .collect::<Vec<_>>(),
        [(true, rival(1).name.to_string())]
    );
    let losers = in_force(&bench);
    let winners = losers.iter().map(|note| match note {
        Note::Conflict { winner, .. } => &winner.service,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        winners.collect::<Vec<_>>(),
        [&rival(0).name, &rival(0).name]
    );
    bench.apply(Event::ServiceDeleted(rival(0).name));
    let said = notes(bench.pass(2 * SECOND));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(!said[0].0, "the second in line has it now: {said:?}");
    assert_eq!(in_force(&bench), std::slice::from_ref(note));

    // Nor does an attempt that fails lose it.
    bench.v4.set_broken(true);
    bench.apply(Event::ServiceDeleted(rival(1).name));
    assert_eq!(notes(bench.pass(2 * SECOND)), []);
    assert_eq!(in_force(&bench), std::slice::from_ref(note));
    bench.v4.set_broken(false);
    assert_eq!(notes(bench.pass(PACE.sync_period)), [(false, note.clone())]);
    assert_eq!(in_force(&bench), []);
}

/// A table that somebody took away comes back with the next sync that is told to look.
#[test]
fn a_distrusted_table_is_repaired() {
    let mut bench = Bench::new();
    bench.apply(Event::Replaced {
        services: vec![service(1)],
        slices: Vec::new(),
    });
    bench.pass(5 * SECOND);
    let wanted = bench.v4.fake.lock().unwrap().ruleset();
    bench.v4.fake.lock().unwrap().flush();
    bench.apply(Event::Distrusted);
    let outcomes = bench.settle();
    assert_eq!(bench.v4.fake.lock().unwrap().ruleset(), wanted);
    let repaired: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Repaired { family, counts, .. } => Some((*family, counts.added_elements)),
            _ => None,
        })
        .collect();
    // The ClusterIP, the refusal, and that no NodePort has the address; the other family is well.
    assert_eq!(repaired, [(IpFamily::V4, 3)]);
}

/// Leaves a namespace to others, and forbids an endpoint, until told otherwise.
#[derive(Default)]
struct Policy {
    is_open: AtomicBool,
}

impl Filter for Policy {
    fn owns(&self, service: &Service) -> bool {
        self.is_open.load(Ordering::Relaxed) || !service.name.as_str().ends_with("-9")
    }

    fn allows(&self, _: &Service, endpoint: &EndpointView) -> bool {
        self.is_open.load(Ordering::Relaxed)
            || endpoint.address != "10.244.1.2".parse::<IpAddr>().unwrap()
    }
}

#[test]
fn a_filter_decides_over_services_and_endpoints() {
    let policy = Arc::new(Policy::default());
    let mut bench = Bench::with(Options {
        filter: Some(policy.clone()),
        ..options()
    });
    let filtered = slices_of("service-1", &["10.244.1.1", "10.244.1.2"]);
    bench.apply(Event::Replaced {
        services: vec![service(1), service(9)],
        slices: filtered.clone(),
    });
    bench.settle();
    let listed = |bench: &Bench| {
        let ruleset = bench.v4.fake.lock().unwrap().ruleset().unwrap();
        nftproxy_core::render::listing(&ruleset)
    };
    let before = listed(&bench);
    assert!(!before.contains("10.96.0.9"), "{before}");
    assert!(
        before.contains("10.96.0.1 . tcp . 80 comment \"default/service-1\" : goto pick-1"),
        "{before}"
    );
    assert!(!before.contains("10.244.1.2"), "{before}");

    // Its word changes nothing before it is asked again.
    policy.is_open.store(true, Ordering::Relaxed);
    bench.pass(5 * SECOND);
    assert_eq!(listed(&bench), before);
    bench.apply(Event::FilterChanged(None));
    bench.pass(5 * SECOND);
    let open = listed(&bench);
    assert!(open.contains("10.96.0.9 . tcp . 80"), "{open}");
    assert!(
        open.contains("10.96.0.1 . tcp . 80 comment \"default/service-1\" : goto pick-2"),
        "{open}"
    );

    // One by one.
    policy.is_open.store(false, Ordering::Relaxed);
    let names = BTreeSet::from([service(9).name]);
    bench.apply(Event::FilterChanged(Some(names)));
    bench.pass(5 * SECOND);
    let closed = listed(&bench);
    assert!(!closed.contains("10.96.0.9"), "{closed}");
    assert!(
        closed.contains("10.244.1.2"),
        "nobody asked about that one: {closed}"
    );
    // What is not owned is no part of a list either, and goes with it.
    bench.apply(Event::ServicesListed([service(1).name].into()));
    policy.is_open.store(true, Ordering::Relaxed);
    bench.apply(Event::FilterChanged(None));
    bench.pass(5 * SECOND);
    assert!(!listed(&bench).contains("10.96.0.9"));
}

/// A UDP Service that loses an endpoint leaves flows behind; who is to look for them is an option.
#[test]
fn flows_are_forgotten_handed_over_or_ignored() {
    let udp = |endpoints: &[&str]| {
        let mut service = service(1);
        service.ports[0].protocol = Protocol::Udp;
        let mut slices = slices_of("service-1", endpoints);
        slices
            .iter_mut()
            .flat_map(|slice| slice.ports.iter_mut())
            .for_each(|port| port.protocol = Protocol::Udp);
        Event::Replaced {
            services: vec![service],
            slices,
        }
    };
    for (flows, asks, hands_over) in [
        (FlowOption::Forget, true, false),
        (FlowOption::HandOver, false, true),
        (FlowOption::Ignore, false, false),
    ] {
        let mut bench = Bench::with(Options { flows, ..options() });
        bench.apply(udp(&["10.244.1.1", "10.244.1.2"]));
        bench.pass(5 * SECOND);
        let before = *bench.flows.0.lock().unwrap();
        bench.apply(udp(&["10.244.1.1"]));
        let outcomes = bench.pass(5 * SECOND);
        let left = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::FlowsLeft(Flows::V4(leftovers)) => Some(&leftovers.flows[0]),
            _ => None,
        });
        let left: Vec<_> = left.map(|flows| flows.keep.serving.len()).collect();
        assert_eq!(left, vec![1; hands_over.into()], "{flows:?}");
        let asked = *bench.flows.0.lock().unwrap() - before;
        assert_eq!(asked, usize::from(asks), "{flows:?}");
    }
}

fn address(ip: Option<&str>, number: u16) -> ServiceAddress {
    ServiceAddress {
        ip: ip.map(|ip| ip.parse().unwrap()),
        protocol: Protocol::Tcp,
        port: port(number),
    }
}

#[test]
fn owners_and_endpoints_can_be_asked_for() {
    let mut bench = Bench::new();
    let web = Service {
        ports: Box::new([nftproxy_core::model::ServicePort {
            name: PortName::new("http").unwrap(),
            node_port: Some(port(30080)),
            ..service(1).ports[0].clone()
        }]),
        ..service(1)
    };
    let mut slices = slices_of(
        "service-1",
        &["10.244.1.1", "10.244.1.2 terminating", "10.244.1.3 unready"],
    );
    slices
        .iter_mut()
        .flat_map(|slice| slice.ports.iter_mut())
        .for_each(|port| port.name = PortName::new("http").unwrap());
    bench.apply(Event::Replaced {
        services: vec![web],
        slices,
    });
    bench.settle();
    let owner = |ip, number| {
        let owner = bench.engine.owner(address(ip, number));
        owner.map(|owner| owner.to_string())
    };
    let name = Some("default/service-1:http".to_owned());
    assert_eq!(owner(Some("10.96.0.1"), 80), name);
    assert_eq!(owner(None, 30080), name);
    assert_eq!(owner(Some("10.96.0.1"), 81), None);
    assert_eq!(owner(Some("fd00::1"), 80), None);
    for destination in [address(Some("10.96.0.1"), 80), address(None, 30080)] {
        let liveness = |endpoint: &str| {
            bench
                .engine
                .liveness(destination, endpoint.parse().unwrap())
        };
        assert_eq!(liveness("10.244.1.1:8080"), Some(Liveness::Usable));
        assert_eq!(liveness("10.244.1.2:8080"), Some(Liveness::Draining));
        assert_eq!(liveness("10.244.1.3:8080"), Some(Liveness::Gone));
        assert_eq!(liveness("10.244.1.1:8081"), Some(Liveness::Gone));
    }
    let elsewhere = address(Some("10.96.0.2"), 80);
    let endpoint = "10.244.1.1:8080".parse().unwrap();
    assert_eq!(bench.engine.liveness(elsewhere, endpoint), None);
}

/// O-120, O-121
#[test]
fn health_checks_say_where_to_listen_and_what_to_answer() {
    let mut bench = Bench::with(Options {
        node: Node {
            node_port_addresses_v4: NodePortAddresses::Only(
                ["192.168.0.10".parse().unwrap()].into(),
            ),
            node_port_addresses_v6: NodePortAddresses::All,
            ..mk_node()
        },
        ..options()
    });
    let web = Service {
        health_check_node_port: Some(port(32000)),
        ..service(1)
    };
    let name = web.name.clone();
    bench.apply(Event::Replaced {
        services: vec![web],
        slices: slices_of("service-1", &["10.244.1.1", "10.244.2.1"]),
    });
    bench.settle();
    let names = BTreeSet::from([name.clone(), ServiceName::new("default", "gone").unwrap()]);
    let v4 = bench.engine.health_checks(IpFamily::V4, &names);
    assert_eq!(v4.addresses, ["192.168.0.10".parse().unwrap()].into());
    let [(gone, None), (_, Some(check))] = &*v4.changed else {
        panic!("{v4:?}")
    };
    assert_eq!(gone.as_str(), "default/gone");
    assert_eq!((check.port, check.n_local_ready), (port(32000), 1));
    let v6 = bench.engine.health_checks(IpFamily::V6, &names);
    assert_eq!(v6.addresses, ["::".parse().unwrap()].into());
    assert!(
        v6.changed.iter().all(|(_, check)| check.is_none()),
        "{v6:?}"
    );
    let answer = HealthCheckAnswer {
        service: &name,
        local_endpoints: check.n_local_ready,
        is_healthy: true,
    };
    assert_eq!((answer.status(), &*answer.headers()[2].1), (200, "1"));
}

/// One family is as good as two, and the other costs nothing.
#[test]
fn a_single_family_is_enough() {
    let v6 = Shared::<V6>::default();
    let kernels = Kernels {
        v4: None::<Shared<V4>>,
        v6: Some(v6.clone()),
        flows: None::<NoFlows>,
    };
    let now = Instant::now();
    let mut engine = Engine::new(kernels, options(), now);
    engine.apply(
        Event::Replaced {
            services: vec![mk_service("web", "10.96.0.1", &["80/tcp"])],
            slices: Vec::new(),
        },
        now,
    );
    let outcomes = engine.perform(Task::Sync, now);
    assert!(
        matches!(
            &*outcomes,
            [Outcome::Synced {
                family: IpFamily::V6,
                ..
            }]
        ),
        "{outcomes:?}"
    );
    assert!(engine.has_synced());
    assert_eq!(v6.commits(), 1);
    assert!(engine.health().is_healthy(now + 10 * PACE.sync_period));
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_driver_syncs_what_it_is_sent_and_says_when_it_is_there() {
    let bench = Bench::new();
    let (v4, seen) = (bench.v4.clone(), Arc::new(Mutex::new(0)));
    let counted = seen.clone();
    let driver = Driver::start(bench.engine, move |outcome| {
        if let Outcome::Synced { .. } = outcome {
            *counted.lock().unwrap() += 1;
        }
    })
    .unwrap();
    let handle = driver.handle();
    assert!(!handle.has_synced());
    let waited = handle.wait_until_synced(Duration::from_millis(20));
    assert_eq!(waited, Err(WaitError::TimedOut), "nothing was ever sent");
    let sender = handle.clone();
    std::thread::spawn(move || {
        sender.send(Event::Replaced {
            services: vec![service(1)],
            slices: Vec::new(),
        })
    })
    .join()
    .unwrap()
    .unwrap();
    handle.wait_until_synced(LONG).unwrap();
    assert!(handle.has_synced() && handle.is_healthy());
    assert_eq!(*seen.lock().unwrap(), 2, "both families");
    let owner = handle.ask(|engine| engine.owner(address(Some("10.96.0.1"), 80)));
    assert_eq!(owner.unwrap().unwrap().to_string(), "default/service-1");
    // It holds what it waited for, and not a second later.
    handle.send(applied(2)).unwrap();
    handle.wait_until_synced(LONG).unwrap();
    let ruleset = v4.fake.lock().unwrap().ruleset().unwrap();
    assert!(nftproxy_core::render::listing(&ruleset).contains("10.96.0.2 . tcp . 80"));
    driver.stop().unwrap();
    assert!(handle.send(applied(3)).is_err());
    let stopped = handle.wait_until_synced(LONG);
    assert!(matches!(stopped, Err(WaitError::Stopped(_))), "{stopped:?}");
}

#[test]
fn a_driver_ends_with_the_kernels_last_word() {
    let bench = Bench::new();
    bench.v4.is_forbidden.store(true, Ordering::Relaxed);
    let driver = Driver::start(bench.engine, |_| {}).unwrap();
    let everything = Event::Replaced {
        services: Vec::new(),
        slices: Vec::new(),
    };
    let handle = driver.handle();
    handle.send(everything).unwrap();
    let waited = handle.wait_until_synced(LONG);
    assert!(matches!(waited, Err(WaitError::Stopped(_))), "{waited:?}");
    let ended = driver.join();
    assert!(
        matches!(ended, Err(DriverError::Apply(ApplyError::NotPermitted))),
        "{ended:?}"
    );
}

#[test]
fn a_panic_of_the_observer_is_no_secret() {
    let bench = Bench::new();
    let driver = Driver::start(bench.engine, |_| panic!("this is a test")).unwrap();
    let handle = driver.handle();
    handle
        .send(Event::Replaced {
            services: Vec::new(),
            slices: Vec::new(),
        })
        .unwrap();
    let waited = handle.wait_until_synced(LONG);
    assert!(matches!(waited, Err(WaitError::Stopped(_))), "{waited:?}");
    assert!(matches!(driver.stop(), Err(DriverError::Panicked)));
}
