//! What holds for every cluster, whatever happened to it, in both families.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod balancing;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod flows;
mod memory;
mod oracle;
mod packet;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, FileFailurePersistence};

use cluster::{Event, cluster, event, many_endpoints, node, state_of};
use common::{Twin, is_local};
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::apply::{ApplyError, Committed, Kernel};
use nftproxy_core::compile::{Compiled, Features, compile, skeleton};
use nftproxy_core::diff::{Counts, Delta, Observed, diff};
use nftproxy_core::model::{Family, Node, ServiceName, State, V4, V6};
use nftproxy_core::provenance::{Digest, digest_in};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::element::{Data, Destination, Element, Key};
use nftproxy_core::ruleset::expr::Verdict;
use nftproxy_core::ruleset::name::{ChainName, Draw, Pick, SlotMap};
use nftproxy_core::sync::Syncer;
use nftproxy_core::trace::{possible, trace};
use packet::{PacketChoice, connection, packet};

fn config(cases: u32) -> Config {
    let regressions = "tests/properties/regressions.txt";
    Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..Config::with_cases(cases)
    }
}

/// A ruleset without what may differ: which endpoint has which slot, and pick chains left over.
fn normal<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for element in &ruleset.elements {
        match (SlotMap::of(element.set()), element.key(), element.data()) {
            (Some(map), Key::Slot(destination, slot), Data::Endpoint(endpoint)) => {
                let slots = slots.entry((map, *destination)).or_default();
                assert_eq!(
                    slots.len(),
                    *slot as usize,
                    "a gap in {map:?} {destination}"
                );
                slots.push(*endpoint);
            }
            _ => {
                lines.insert(format!("{} {}", element.set(), element.nft()));
            }
        }
    }
    let hashed = hashed(ruleset);
    for ((map, destination), mut slots) in slots {
        let draw = if hashed.contains(&(map, destination)) {
            Draw::Hash
        } else {
            // What nodes need not agree about.
            slots.sort();
            Draw::Random
        };
        let n = u32::try_from(slots.len()).unwrap().try_into().unwrap();
        assert!(
            ruleset.picks.contains(&Pick {
                map,
                draw,
                n,
                sticky: false
            }),
            "no pick of {n} in {map:?}"
        );
        lines.insert(format!("{map:?} {destination} {slots:?}"));
    }
    for (chain, rules) in &ruleset.skeleton.chains {
        let rules = rules.iter().enumerate();
        lines.extend(rules.map(|(number, rule)| format!("{chain} {number} {:?}", rule.exprs)));
    }
    lines
}

/// Where the client's address decides which slot it gets.
fn hashed<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<(SlotMap, Destination<F>)> {
    let elements = ruleset.elements.iter();
    let hashed = elements.filter_map(|element| match (element.key(), element.data()) {
        (Key::Destination(destination), Data::Verdict(Verdict::Goto(ChainName::Pick(pick)))) => {
            (pick.draw == Draw::Hash).then_some((pick.map, *destination))
        }
        _ => None,
    });
    hashed.collect()
}

fn assert_same<F: Family>(actual: &FamilyRuleset<F>, desired: &FamilyRuleset<F>) {
    let (actual, desired) = (normal(actual), normal(desired));
    let surplus: Vec<_> = actual.difference(&desired).collect();
    let missing: Vec<_> = desired.difference(&actual).collect();
    assert!(
        surplus.is_empty() && missing.is_empty(),
        "surplus {surplus:#?}, missing {missing:#?}"
    );
}

/// The desired ruleset with the chains that the actual one has left over: those of affinity, for
/// the next Service that wants them, and those of a node without a mark.
fn with_leftovers<F: Family>(
    desired: &FamilyRuleset<F>,
    actual: &FamilyRuleset<F>,
    state: &State,
    node: &Node,
) -> FamilyRuleset<F> {
    let mut desired = desired.clone();
    let chains = &mut desired.skeleton.chains;
    if actual.skeleton.chains.contains_key(&ChainName::Input) {
        let features = Features {
            source_ranges: chains.contains_key(&ChainName::PreroutingSourceRanges),
            affinity: timeouts(actual),
        };
        *chains = skeleton::<F>(node, &state.service_cidrs::<F>(), &features).chains;
    } else {
        // A restart took the base chains away, which are the ones that cost anything.
        let left = actual
            .skeleton
            .chains
            .iter()
            .filter(|(chain, _)| is_spare(**chain) && !is_for_want_of_a_mark(**chain));
        chains.extend(left.map(|(chain, rules)| (*chain, rules.clone())));
    }
    for (chain, rules) in &actual.skeleton.chains {
        if is_for_want_of_a_mark(*chain) {
            chains.entry(*chain).or_insert_with(|| rules.clone());
        }
    }
    desired
}

/// Whether a chain may be there though nothing leads to it.
fn is_spare(chain: ChainName) -> bool {
    matches!(chain, ChainName::Remember | ChainName::RememberFor(_)) || is_for_want_of_a_mark(chain)
}

/// Whether a chain is one of those that take the place of a mark.
fn is_for_want_of_a_mark(chain: ChainName) -> bool {
    matches!(
        chain,
        ChainName::Masquerading
            | ChainName::MasqueradeExternal
            | ChainName::MasqueradeExternalLocal
    )
}

/// For how long something may be remembered.
fn timeouts<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<NonZeroU32> {
    let seconds = |chain: &ChainName| match chain {
        ChainName::RememberFor(seconds) => Some(*seconds),
        _ => None,
    };
    ruleset.skeleton.chains.keys().filter_map(seconds).collect()
}

/// A kernel whose next operations can be made to fail.
#[derive(Debug, Default)]
struct Flaky<F: Family> {
    kernel: FakeKernel<F>,
    fail_lists: u32,
    fail_commits: u32,
}

fn fails(count: &mut u32) -> bool {
    let fails = *count > 0;
    *count = count.saturating_sub(1);
    fails
}

impl<F: Family> Kernel<F> for Flaky<F> {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        if fails(&mut self.fail_lists) {
            return Err(ApplyError::Unstable);
        }
        self.kernel.list()
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        self.kernel.list_affinity()
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if fails(&mut self.fail_commits) {
            return Err(ApplyError::Malformed {
                request: "a batch".into(),
            });
        }
        self.kernel.commit(delta)
    }
}

/// What happens between two syncs, beside events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    None,
    /// This many commits fail, of which a sync makes at most two.
    Commits(u32),
    /// The listing fails of the full sync that is asked for.
    List,
    /// Somebody deletes the table, and we hear of it.
    Flush,
    /// Unused picks are deleted.
    Cleanup,
    /// The proxy is started anew.
    Restart,
}

type Step = (Vec<Event>, Mishap);

fn steps(mishaps: &'static [Mishap]) -> impl Strategy<Value = Vec<Step>> {
    vec((vec(event(), 0..4), select(mishaps)), 1..16)
}

/// A cluster that lives, and a proxy that keeps up with it.
struct Life {
    state: State,
    node: Node,
    v4: Syncer<V4, Flaky<V4>>,
    v6: Syncer<V6, Flaky<V6>>,
}

impl Life {
    fn new(node: Node) -> Self {
        Self {
            state: State::default(),
            node,
            v4: Syncer::new(Flaky::default()),
            v6: Syncer::new(Flaky::default()),
        }
    }

    fn step(&mut self, (events, mishap): &Step) {
        for event in events {
            event.apply(&mut self.state, &mut self.node);
        }
        let dirty = self.state.take_dirty();
        let Compiled { v4, v6, notes } = compile(&self.state, &self.node);
        let (state, node) = (&self.state, &self.node);
        let has_synced = step_family(&mut self.v4, *mishap, state, node, &dirty, &v4)
            & step_family(&mut self.v6, *mishap, state, node, &dirty, &v6);
        if has_synced {
            let in_force = self.v4.notes().chain(self.v6.notes());
            assert_eq!(in_force.cloned().collect::<BTreeSet<_>>(), notes);
        }
    }
}

/// Whether the sync succeeded.
fn step_family<F: Family>(
    syncer: &mut Syncer<F, Flaky<F>>,
    mishap: Mishap,
    state: &State,
    node: &Node,
    dirty: &BTreeSet<ServiceName>,
    desired: &FamilyRuleset<F>,
) -> bool {
    match mishap {
        Mishap::None | Mishap::Cleanup => {}
        Mishap::Commits(commits) => syncer.kernel_mut().fail_commits = commits,
        Mishap::List => {
            syncer.kernel_mut().fail_lists = 1;
            syncer.distrust();
        }
        Mishap::Flush => {
            syncer.kernel_mut().kernel.flush();
            syncer.distrust();
        }
        Mishap::Restart => {
            let kernel = std::mem::take(syncer.kernel_mut());
            *syncer = Syncer::new(kernel);
        }
    }
    let result = syncer.sync(state, node, dirty);
    syncer.kernel_mut().fail_commits = 0;
    if let Err(error) = result {
        let may_fail = matches!(mishap, Mishap::Commits(_) | Mishap::List);
        assert!(may_fail, "{error}: {:?}", std::error::Error::source(&error));
        return false;
    }
    let actual = syncer.kernel().kernel.ruleset().unwrap();
    assert_same(&actual, &with_leftovers(desired, &actual, state, node));
    if mishap == Mishap::Cleanup {
        // A plain one goes after the sticky one that leads to it.
        while syncer.delete_unused_chains().unwrap() > 0 {}
        // Kept in step or added up anew, the digest in the table is that of its content.
        syncer.write_about().unwrap();
        let about = syncer.kernel().kernel.about().unwrap();
        let expected = Digest::of(&syncer.kernel().kernel.ruleset().unwrap()).to_string();
        assert_eq!(digest_in(about.as_str()), Some(&*expected));
        assert_eq!(Digest::of(desired).to_string(), expected);
        let actual = syncer.kernel().kernel.ruleset().unwrap();
        assert_eq!(actual.picks, desired.picks);
    }
    true
}

/// The kernel that holds a ruleset.
fn kernel_with<F: Family>(ruleset: &FamilyRuleset<F>) -> FakeKernel<F> {
    let mut kernel = FakeKernel::default();
    kernel.commit(&diff(None, ruleset)).unwrap();
    kernel
}

fn check_diff<F: Family>(from: &FamilyRuleset<F>, to: &FamilyRuleset<F>) {
    let mut kernel = kernel_with(from);
    let observed = kernel.list().unwrap();
    kernel.commit(&diff(observed.as_ref(), to)).unwrap();
    let mut actual = kernel.ruleset().unwrap();
    assert!(actual.picks.is_superset(&to.picks));
    actual.picks.clone_from(&to.picks);
    // Other chains and maps that nothing uses any more are left as well.
    actual.skeleton.sets.clone_from(&to.skeleton.sets);
    actual
        .skeleton
        .chains
        .retain(|chain, _| !is_spare(*chain) || to.skeleton.chains.contains_key(chain));
    assert_eq!(actual, *to);
    let observed = kernel.list().unwrap();
    assert!(diff(observed.as_ref(), to).is_empty());
}

fn check_packets<F: Twin>(
    state: &State,
    node: &Node,
    ruleset: &FamilyRuleset<F>,
    picked: &[PacketChoice],
) {
    for choice in picked {
        let packet = choice.packet::<F>();
        let actual = possible(&trace(ruleset, &packet, &is_local::<F>).unwrap());
        let expected = oracle::outcomes(state, node, &packet);
        assert_eq!(actual, expected, "{packet:?}");
    }
}

/// Starts the proxy anew, which must find nothing to do but for chains that were left over.
fn restart<F: Family>(
    syncer: &Syncer<F, Flaky<F>>,
    state: &State,
    node: &Node,
    desired: &FamilyRuleset<F>,
) {
    let kernel = syncer.kernel().kernel.clone();
    let before = kernel.ruleset().unwrap();
    let mut syncer = Syncer::new(kernel);
    let counts = syncer.sync(state, node, &BTreeSet::new()).unwrap().counts;
    let after = syncer.kernel().ruleset().unwrap();
    assert_eq!(after.elements, before.elements);
    if timeouts(&before) == timeouts(desired) {
        assert_eq!(counts, Counts::default());
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// S-19: whatever happens on the way, the kernel ends up with what the state compiles to.
    #[test]
    fn the_kernel_keeps_up(
        node in node(),
        steps in steps(&[
            Mishap::None,
            Mishap::None,
            Mishap::Cleanup,
            Mishap::Commits(1),
            Mishap::Commits(2),
            Mishap::Flush,
            Mishap::Restart,
        ]),
    ) {
        let mut life = Life::new(node);
        for step in &steps {
            life.step(step);
        }
        life.step(&(Vec::new(), Mishap::Cleanup));
    }

    /// The same with listings that fail.
    #[test]
    fn failing_lists_lose_nothing(
        node in node(),
        steps in steps(&[Mishap::None, Mishap::List]),
    ) {
        let mut life = Life::new(node);
        for step in &steps {
            life.step(step);
        }
        life.step(&(Vec::new(), Mishap::Cleanup));
    }

    #[test]
    fn a_delta_leads_from_any_ruleset_to_any_other(from in cluster(), to in cluster()) {
        let from = compile(&state_of(&from.0), &from.1);
        let to = compile(&state_of(&to.0), &to.1);
        check_diff(&from.v4, &to.v4);
        check_diff(&from.v6, &to.v6);
    }

    /// S-100: a restart changes nothing, not even which slot an endpoint has.
    #[test]
    fn a_restart_sends_nothing(node in node(), steps in steps(&[Mishap::None])) {
        let mut life = Life::new(node);
        for step in &steps {
            life.step(step);
        }
        let Compiled { v4, v6, .. } = compile(&life.state, &life.node);
        restart(&life.v4, &life.state, &life.node, &v4);
        restart(&life.v6, &life.state, &life.node, &v6);
    }

    /// The table of section 4C, for any cluster and packet.
    #[test]
    fn packets_fare_as_the_contract_says(cluster in cluster(), packets in vec(packet(), 100)) {
        let (events, node) = cluster;
        let state = state_of(&events);
        let Compiled { v4, v6, .. } = compile(&state, &node);
        check_packets(&state, &node, &v4, &packets);
        check_packets(&state, &node, &v6, &packets);
    }

    /// S-96 to S-101: who comes back gets the endpoint it had, as long as that may be.
    #[test]
    fn clients_come_back_to_their_endpoint(
        node in node(),
        episodes in vec(
            (
                vec(event(), 0..4),
                prop_oneof![5 => Just(false), 1 => Just(true)],
                vec((connection(&[6, 6, 17]), any::<Index>()), 0..8),
            ),
            1..10,
        ),
    ) {
        let mut v4 = memory::World::<V4>::new(node.clone());
        let mut v6 = memory::World::<V6>::new(node);
        for episode in &episodes {
            v4.go_through(episode);
            v6.go_through(episode);
        }
    }

    /// S-117 to S-124: UDP flows go on unless they lead astray.
    #[test]
    fn flows_that_lead_astray_are_forgotten(
        node in node(),
        episodes in vec(
            (
                vec(event(), 0..4),
                select(&[Mishap::None, Mishap::None, Mishap::Commits(2), Mishap::Restart][..]),
                vec((connection(&[17]), any::<Index>(), any::<bool>()), 0..8),
            ),
            1..10,
        ),
    ) {
        let mut v4 = flows::World::<V4>::new(node.clone());
        let mut v6 = flows::World::<V6>::new(node);
        for episode in &episodes {
            v4.go_through(episode);
            v6.go_through(episode);
        }
    }
}

proptest! {
    #![proptest_config(config(50))]

    /// The same for large Services, of which only those endpoints are looked at that have changed.
    #[test]
    fn the_kernel_keeps_up_with_large_services(
        node in node(),
        steps in steps(&[Mishap::None, Mishap::None, Mishap::Commits(2), Mishap::Cleanup]),
    ) {
        let mut life = Life::new(node);
        life.step(&(many_endpoints(), Mishap::None));
        for step in &steps {
            life.step(step);
        }
    }
}
