//! The state of the cluster: what is in it depends on the last word about each object, not on the
//! order in which things were said; which changes mean work; and what health checks make of it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::BTreeSet;

use common::{mk_node, mk_service, mk_slice, port, service_name, slice_name};
use nftproxy_core::compile::{compile, health_check};
use nftproxy_core::model::{EndpointSlice, Family, Service, State, V4, V6};

fn web_slice(name: &str, endpoints: &[&str]) -> EndpointSlice {
    mk_slice::<V4>(name, "web", &["8080/tcp"], endpoints)
}

fn web() -> nftproxy_core::model::Service {
    mk_service("web", "10.96.0.10", &["80/tcp"])
}

/// The names of the Services marked as dirty since the last call.
fn dirty(state: &mut State) -> Vec<String> {
    let is_dirty = state.is_dirty();
    let dirty: Vec<_> = state.take_dirty().iter().map(ToString::to_string).collect();
    assert_eq!(is_dirty, !dirty.is_empty());
    assert!(!state.is_dirty());
    dirty
}

fn slices_of(state: &State, service: &str) -> Vec<String> {
    let service = service_name(service);
    let slices = state.slices(&service);
    slices.iter().map(|slice| slice.name.to_string()).collect()
}

/// S-19
#[test]
fn s19_any_order_ends_in_the_same_state() {
    let steps: [fn(&mut State); 6] = [
        |state| state.apply_service(web()),
        |state| state.apply_service(mk_service("api", "10.96.0.11", &["80/tcp", "x 81/udp"])),
        |state| state.apply_slice(web_slice("web-1", &["10.244.1.5"])),
        |state| {
            state.apply_slice(web_slice(
                "web-2",
                &["10.244.1.5 terminating", "10.244.2.5"],
            ))
        },
        |state| {
            state.apply_slice(mk_slice::<V6>(
                "api-1",
                "api",
                &["8080/tcp"],
                &["10.244.2.6"],
            ))
        },
        |state| state.apply_service_cidr("kubernetes", common::both_ranges("10.96.0.0/16")),
    ];
    let in_order = |order: &[usize]| {
        let mut state = State::default();
        order.iter().for_each(|step| steps[*step](&mut state));
        compile(&state, &mk_node())
    };
    let expected = in_order(&[0, 1, 2, 3, 4, 5]);
    let orders = permutations(&[0, 1, 2, 3, 4, 5]);
    assert_eq!(orders.len(), 720);
    for order in orders {
        assert!(in_order(&order) == expected, "{order:?}");
    }
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let starting_with = |first: &usize| {
        let first = *first;
        let rest: Vec<_> = items
            .iter()
            .copied()
            .filter(|item| *item != first)
            .collect();
        permutations(&rest).into_iter().map(move |mut order| {
            order.insert(0, first);
            order
        })
    };
    items.iter().flat_map(starting_with).collect()
}

/// S-19
#[test]
fn s19_only_changes_mark_services_as_dirty() {
    let mut state = State::default();
    state.apply_service(web());
    assert_eq!(dirty(&mut state), ["default/web"]);
    state.apply_service(web());
    assert_eq!(dirty(&mut state), [""; 0]);

    state.apply_slice(web_slice("web-1", &["10.244.1.5"]));
    assert_eq!(dirty(&mut state), ["default/web"]);
    state.apply_slice(web_slice("web-1", &["10.244.1.5"]));
    assert_eq!(dirty(&mut state), [""; 0]);
    state.apply_slice(web_slice("web-1", &["10.244.1.5 unready"]));
    assert_eq!(dirty(&mut state), ["default/web"]);

    state.delete_slice(&slice_name("web-1"));
    assert_eq!(dirty(&mut state), ["default/web"]);
    state.delete_slice(&slice_name("web-1"));
    state.delete_service(&service_name("other"));
    assert_eq!(dirty(&mut state), [""; 0]);

    state.delete_service(&service_name("web"));
    assert_eq!(dirty(&mut state), ["default/web"]);
}

/// A Service that went and came back between two syncs has still to be looked at.
#[test]
fn marks_last_until_they_are_taken() {
    let mut state = State::default();
    state.apply_service(web());
    state.take_dirty();
    state.delete_service(&service_name("web"));
    state.apply_service(web());
    assert_eq!(dirty(&mut state), ["default/web"]);

    state.mark_all_dirty();
    assert_eq!(dirty(&mut state), ["default/web"]);
}

/// S-37
#[test]
fn s37_slices_outlive_their_service() {
    let mut state = State::default();
    state.apply_slice(web_slice("web-1", &["10.244.1.5"]));
    assert_eq!(slices_of(&state, "web"), ["default/web-1"]);
    state.apply_service(web());
    let with_both = compile(&state, &mk_node());
    state.delete_service(&service_name("web"));
    assert_eq!(state.services().count(), 0);
    assert_eq!(slices_of(&state, "web"), ["default/web-1"]);
    state.apply_service(web());
    assert_eq!(compile(&state, &mk_node()), with_both);
}

/// S-38: it leaves the old one, and both are looked at.
#[test]
fn s38_a_slice_may_move_to_another_service() {
    let mut state = State::default();
    state.apply_slice(web_slice("moving", &["10.244.1.5"]));
    state.apply_slice(web_slice("staying", &["10.244.1.6"]));
    state.take_dirty();
    state.apply_slice(EndpointSlice {
        service: service_name("api"),
        ..web_slice("moving", &["10.244.1.5"])
    });
    assert_eq!(dirty(&mut state), ["default/api", "default/web"]);
    assert_eq!(slices_of(&state, "web"), ["default/staying"]);
    assert_eq!(slices_of(&state, "api"), ["default/moving"]);

    state.delete_slice(&slice_name("moving"));
    assert_eq!(dirty(&mut state), ["default/api"]);
    assert_eq!(slices_of(&state, "api"), [""; 0]);
}

/// S-39: seen in both slices, or moved at once, it is there.
#[test]
fn s39_an_endpoint_that_moves_between_slices_is_not_lost() {
    let at_rest = |slices: &[EndpointSlice]| {
        let mut state = State::default();
        state.apply_service(web());
        slices
            .iter()
            .for_each(|slice| state.apply_slice(slice.clone()));
        compile(&state, &mk_node())
    };
    let expected = at_rest(&[web_slice("1", &["10.244.1.5"])]);
    let in_both = [
        web_slice("1", &["10.244.1.5"]),
        web_slice("2", &["10.244.1.5"]),
    ];
    assert_eq!(at_rest(&in_both), expected);
    assert_eq!(
        at_rest(&[web_slice("1", &[]), web_slice("2", &["10.244.1.5"])]),
        expected
    );
}

#[test]
fn complete_lists_remove_what_they_do_not_hold() {
    let mut state = State::default();
    for (name, cluster_ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2")] {
        state.apply_service(mk_service(name, cluster_ip, &["80/tcp"]));
        state.apply_slice(mk_slice::<V4>(name, name, &["8080/tcp"], &["10.244.1.5"]));
        state.apply_service_cidr(name, [format!("{cluster_ip}/32").parse().unwrap()]);
    }
    state.take_dirty();

    state.retain_services(|name| *name == service_name("a"));
    assert_eq!(dirty(&mut state), ["default/b"]);
    let left: Vec<_> = state
        .services()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(left, ["default/a"]);

    state.retain_slices(|name| *name == slice_name("b"));
    assert_eq!(dirty(&mut state), ["default/a"]);
    assert_eq!(slices_of(&state, "a"), [""; 0]);
    assert_eq!(slices_of(&state, "b"), ["default/b"]);

    state.retain_service_cidrs(|name| name == "a");
    assert_eq!(state.service_cidrs::<V4>(), [([10, 96, 0, 1].into(), 32)]);
}

/// S-115
#[test]
fn s115_service_cidrs_are_counted_by_object() {
    let mut state = State::default();
    let apply = |state: &mut State, name: &str, ranges: &[&str]| {
        state.apply_service_cidr(name, ranges.iter().map(|range| range.parse().unwrap()));
    };
    apply(&mut state, "first", &["10.96.0.0/16", "fd00:10:96::/112"]);
    apply(&mut state, "same", &["10.96.0.0/16"]);
    state.delete_service_cidr("same");
    assert_eq!(state.service_cidrs::<V4>(), [([10, 96, 0, 0].into(), 16)]);
    assert_eq!(state.service_cidrs::<V6>().len(), 1);

    apply(&mut state, "within", &["10.96.128.0/20"]);
    apply(&mut state, "beside", &["10.97.0.0/16"]);
    assert_eq!(state.service_cidrs::<V4>(), [([10, 96, 0, 0].into(), 15)]);
    assert_eq!(
        state.take_dirty(),
        BTreeSet::new(),
        "no Service's elements depend on it"
    );
}

/// A Service with two ports and a health-check node port.
fn web_with_health_check() -> Service {
    Service {
        health_check_node_port: Some(port(30123)),
        ..mk_service("web", "10.96.0.10", &["http 80/tcp", "dns 53/udp"])
    }
}

/// What the health check of Service `web` counts in a family.
fn n_local_ready<F: Family>(state: &State) -> usize {
    let check = health_check::<F>(state, &service_name("web")).unwrap();
    assert_eq!(check.port, port(30123));
    check.n_local_ready
}

#[test]
fn s59_o122_health_checks_count_local_ready_endpoints() {
    for (expected, endpoints) in [
        (0, &[][..]),
        (2, &["10.244.1.5", "10.244.1.6"]),
        (1, &["10.244.1.5", "10.244.2.5"]),
        (0, &["10.244.1.5 no-node"]),
        (0, &["10.244.1.5 unready", "10.244.1.6 unready-but-serving"]),
        // They get traffic where there are no others (S-66), and are not counted for all that.
        (0, &["10.244.1.5 terminating"]),
        (1, &["10.244.1.5", "10.244.1.6 terminating"]),
        // Whatever is ready counts, and hints do not.
        (1, &["10.244.1.5 terminating-but-ready"]),
        (1, &["10.244.1.5 for-another-node zone-b"]),
    ] {
        let mut state = State::default();
        state.apply_service(web_with_health_check());
        common::apply_slices(&mut state, "web", "web", &["http 8080/tcp"], endpoints);
        assert_eq!(n_local_ready::<V4>(&state), expected, "{endpoints:?}");
        assert_eq!(n_local_ready::<V6>(&state), expected, "{endpoints:?}");
    }
}

/// S-6
#[test]
fn o122_health_checks_count_each_address_once_per_family() {
    let mut state = State::default();
    state.apply_service(web_with_health_check());
    let mut apply = |name: &str, ports: &[&str], endpoints: &[&str]| {
        state.apply_slice(mk_slice::<V4>(name, "web", ports, endpoints));
        n_local_ready::<V4>(&state)
    };
    let (both, http) = (["http 8080/tcp", "dns 53/udp"], ["http 8080/tcp"]);
    assert_eq!(apply("1", &both, &["10.244.1.5", "10.244.1.6"]), 2);
    assert_eq!(apply("2", &http, &["10.244.1.6", "10.244.1.7"]), 3);
    assert_eq!(apply("3", &["http 8081/tcp"], &["10.244.1.5"]), 3);
    assert_eq!(apply("4", &["dns 53/udp"], &["10.244.1.8"]), 4);
    assert_eq!(
        apply("5", &["metrics 9090/tcp"], &["10.244.1.9"]),
        4,
        "the Service has no such port"
    );
    assert_eq!(n_local_ready::<V6>(&state), 0);
}

/// S-30: the copy that does not terminate is believed, in whatever slice it is.
#[test]
fn s30_health_checks_believe_the_same_copy_as_rules_do() {
    let copies = ["10.244.1.5 terminating-but-ready", "10.244.1.5 unready"];
    for (first, second) in [(copies[0], copies[1]), (copies[1], copies[0])] {
        let mut state = State::default();
        state.apply_service(web_with_health_check());
        let ports = ["http 8080/tcp"];
        state.apply_slice(mk_slice::<V4>("1", "web", &ports, &[first]));
        state.apply_slice(mk_slice::<V4>("2", "web", &ports, &[second]));
        assert_eq!(n_local_ready::<V4>(&state), 0, "{first}, then {second}");
    }
}

/// S-5, S-59
#[test]
fn s5_a_family_without_cluster_ip_has_no_health_check() {
    let mut state = State::default();
    let name = service_name("web");
    assert_eq!(health_check::<V4>(&state, &name), None);
    state.apply_service(web());
    assert_eq!(health_check::<V4>(&state, &name), None);
    let mut service = web_with_health_check();
    service.cluster_ips.v6 = None;
    state.take_dirty();
    state.apply_service(service);
    assert_eq!(dirty(&mut state), ["default/web"], "it is work to do");
    assert!(health_check::<V4>(&state, &name).is_some());
    assert_eq!(health_check::<V6>(&state, &name), None);
}
