//! Where our chains sit among those of others, and what they leave to others: section 4D of the
//! contract. What nft and the kernel make of it is the matter of tests with real packets.

use nftproxy_core::compile::compile;
use nftproxy_core::model::{State, TrafficPolicy, V4};
use nftproxy_core::render;
use nftproxy_core::ruleset::Rule;
use nftproxy_core::ruleset::expr::{Expr, Statement};
use nftproxy_core::ruleset::name::ChainName;
use nftproxy_core::ruleset::name::SetName;
use nftproxy_core::ruleset::schema::{AFFINITY_MAX_CLIENTS, BaseChain, Hook, base_chain, schema};

use crate::common::{mk_node, mk_service};
use crate::{HERE, every_address};

/// S-77, S-78: destinations are translated at dstnat (-100) of prerouting and output, sources at
/// srcnat (100) of postrouting. S-83: source ranges come before anybody's DNAT, and refusals and
/// drops after it.
#[test]
fn s77_s78_s83_hooks_and_priorities() {
    for (chain, hook, priority) in [
        (ChainName::PreroutingSourceRanges, Hook::Prerouting, -110),
        (ChainName::OutputSourceRanges, Hook::Output, -110),
        (ChainName::Prerouting, Hook::Prerouting, -100),
        (ChainName::Output, Hook::Output, -100),
        (ChainName::PreroutingGuard, Hook::Prerouting, -90),
        (ChainName::OutputGuard, Hook::Output, -90),
        (ChainName::Input, Hook::Input, 100),
        (ChainName::Postrouting, Hook::Postrouting, 100),
    ] {
        assert_eq!(
            base_chain(chain),
            Some(BaseChain { hook, priority }),
            "{chain}"
        );
    }
}

/// S-96: all base chains have type nat, so that rules see the first packet of a connection alone.
/// S-149, S-170: none judges packets that connection tracking takes for invalid.
#[test]
fn s96_all_base_chains_are_of_type_nat() {
    let state = every_address(TrafficPolicy::Cluster, TrafficPolicy::Cluster, &[HERE]);
    let script = render::ruleset(&compile(&state, &mk_node()).v4);
    let types: Vec<_> = script
        .lines()
        .filter(|line| line.contains(" hook "))
        .collect();
    assert!(types.len() >= 5);
    for line in types {
        assert!(line.contains("type nat hook "), "{line}");
    }
}

/// S-93: every masquerade rule draws the source port at random. S-84: there is one even in an empty
/// table, as nothing else switches connection tracking on.
#[test]
fn s84_s93_masquerading_is_always_there_and_fully_random() {
    let ruleset = compile(&State::default(), &mk_node()).v4;
    let rules = &ruleset.skeleton.chains[&ChainName::Postrouting];
    let masquerading: Vec<_> = rules
        .iter()
        .filter(|rule| rule.exprs.contains(&Expr::Masquerade))
        .collect();
    assert!(!masquerading.is_empty());
    for Rule { text, .. } in masquerading {
        assert!(text.ends_with("masquerade fully-random"), "{text}");
    }
    assert_eq!(Statement::<V4>::Masquerade.nft(), "masquerade fully-random");
}

/// S-102: what is remembered is bounded, as the documents say.
#[test]
fn s102_the_size_of_affinity() {
    assert_eq!(AFFINITY_MAX_CLIENTS, 1_000_000);
    let declared = schema(SetName::Affinity).nft::<V4>();
    assert!(declared.contains("size 1000000"), "{declared}");
}

/// S-35: an endpoint is drawn at random among all, by a number below how many there are.
#[test]
fn s35_each_connection_draws_at_random() {
    let endpoints = ["10.244.1.5", "10.244.1.6", "10.244.2.7"];
    let state = every_address(TrafficPolicy::Cluster, TrafficPolicy::Cluster, &endpoints);
    let script = render::ruleset(&compile(&state, &mk_node()).v4);
    assert!(script.contains("numgen random mod 3"), "{script}");
    for other in ["numgen inc", "jhash", "symhash"] {
        assert!(!script.contains(other), "{other}");
    }
}

/// S-171: refusals are in one place, which no kernel is too old for.
#[test]
fn s171_refusals_are_in_one_chain() {
    let mut state = State::default();
    state.apply_service(mk_service("web", "10.96.0.10", &["80/tcp 30080"]));
    let ruleset = compile(&state, &mk_node()).v4;
    for (chain, rules) in &ruleset.skeleton.chains {
        let refuses = rules
            .iter()
            .flat_map(|rule| &rule.exprs)
            .any(|expr| matches!(expr, Expr::Reject(_)));
        assert_eq!(refuses, *chain == ChainName::Refuse, "{chain}");
    }
}
