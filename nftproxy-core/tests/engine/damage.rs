//! Others' hands in our tables: what is looked at, what is mended, what is said of it, and when.

use std::sync::atomic::Ordering;

use nftproxy_core::apply::{Change, Culprit, Incident, Object};
use nftproxy_core::engine::{Cause, Event, Outcome, Task};
use nftproxy_core::model::{Family, IpFamily};
use nftproxy_core::ruleset::element::Element;
use nftproxy_core::ruleset::name::{ChainName, SetName};

use crate::bench::{Bench, PACE, SECOND, Shared, options};
use crate::{applied, service, slices_of};

/// A bench in step, with some Services, of which everybody has said everything.
fn in_step() -> Bench {
    let mut bench = Bench::new();
    fill(&mut bench);
    bench
}

fn fill(bench: &mut Bench) {
    bench.complete_lists();
    for number in 1..=20 {
        bench.apply(applied(number));
    }
    bench.apply(Event::ServiceApplied(service(21)));
    for slice in slices_of("service-21", &["10.244.1.1", "10.244.1.2"]) {
        bench.apply(Event::SliceApplied(slice));
    }
    bench.pass(10 * SECOND);
}

fn culprit() -> Culprit {
    Culprit {
        pid: 4711,
        name: "nft".into(),
    }
}

fn deleted(object: Object) -> Change {
    Change {
        is_addition: false,
        object,
    }
}

/// What the kernel tells of elements that were deleted.
fn elements_deleted<F: Family>(elements: &[Element<F>]) -> Incident {
    let mut incident = Incident::new(F::FAMILY);
    incident.blame(culprit());
    for element in elements {
        let set = element.set();
        let mut key = Vec::new();
        element.write_key(&mut key);
        incident.scope.add_key(set, &key);
        incident.add(deleted(Object::Element(set.to_string())), 1);
    }
    incident
}

/// Deletes the elements of a set, and tells what the kernel would tell.
fn delete_elements<F: Family>(kernel: &Shared<F>, set: SetName) -> Incident {
    let mut fake = kernel.fake.lock().unwrap();
    let mut elements: Vec<_> = fake.ruleset().unwrap().elements.into_iter().collect();
    elements.retain(|element| element.set() == set);
    fake.delete_elements(|element| element.set() == set);
    elements_deleted(&elements)
}

fn table_deleted(family: IpFamily) -> Incident {
    let mut incident = Incident::unknown(family);
    incident.is_lost = false;
    incident.blame(culprit());
    incident.add(deleted(Object::Table), 1);
    incident
}

fn repairs(outcomes: &[Outcome]) -> Vec<(IpFamily, &Cause)> {
    let repaired = |outcome| match outcome {
        &Outcome::Repaired {
            family, ref cause, ..
        } => Some((family, cause)),
        _ => None,
    };
    outcomes.iter().filter_map(repaired).collect()
}

/// It is mended at once, though a sync has just been, and costs what was damaged: the table is not
/// read, and one batch puts back what went.
#[test]
fn damaged_elements_are_put_back_at_once_and_alone() {
    let mut bench = in_step();
    bench.apply(applied(22));
    bench.settle();
    let before = bench.v4.fake.lock().unwrap().ruleset();
    let lists = bench.v4.fake.lock().unwrap().lists;
    let commits = bench.commits();

    let incident = delete_elements(&bench.v4, SetName::ClusterIps);
    bench.apply(Event::Touched(incident.clone()));
    assert_eq!(bench.next().unwrap().task, Task::Repair);
    let outcomes = bench.settle();

    assert_eq!(
        repairs(&outcomes),
        [(IpFamily::V4, &Cause::Touched(incident))]
    );
    let fake = bench.v4.fake.lock().unwrap();
    assert_eq!(fake.ruleset(), before);
    assert_eq!((fake.lists, fake.partial_lists), (lists, 1));
    assert_eq!(fake.commits.last().unwrap().added_elements, 22);
    drop(fake);
    assert_eq!(bench.commits(), (commits.0 + 1, commits.1));
}

/// And what changes in the cluster at the same time is neither lost nor hurried.
#[test]
fn a_repair_and_a_change_do_not_hinder_each_other() {
    let mut bench = in_step();
    let incident = delete_elements(&bench.v4, SetName::ClusterIps);
    bench.apply(applied(22));
    bench.apply(Event::Touched(incident));
    let outcomes = bench.settle();
    assert_eq!(repairs(&outcomes).len(), 1);
    let fake = bench.v4.fake.lock().unwrap();
    let elements = fake.ruleset().unwrap().elements;
    let n_ips = elements
        .iter()
        .filter(|element| element.set() == SetName::ClusterIps)
        .count();
    assert_eq!(n_ips, 22);
}

/// Rules are always looked at, those of pick chains too, and that does not cost the table.
#[test]
fn flushed_chains_get_their_rules_back() {
    for is_pick in [false, true] {
        let mut bench = in_step();
        let mut fake = bench.v4.fake.lock().unwrap();
        let before = fake.ruleset().unwrap();
        let chain = if is_pick {
            ChainName::Pick(*before.picks.first().unwrap())
        } else {
            *before.skeleton.chains.keys().next().unwrap()
        };
        fake.flush_chain(chain);
        let lists = fake.lists;
        drop(fake);
        let mut incident = Incident::new(IpFamily::V4);
        incident.add(deleted(Object::Rule(chain.to_string())), 2);
        bench.apply(Event::Touched(incident));
        let outcomes = bench.settle();
        assert_eq!(repairs(&outcomes).len(), 1, "{outcomes:?}");
        let fake = bench.v4.fake.lock().unwrap();
        assert_eq!(fake.ruleset().as_ref(), Some(&before), "{chain}");
        assert_eq!(fake.lists, lists);
    }
}

/// What turns out to be as it should be is not repaired, and not called so.
#[test]
fn a_touch_that_did_no_harm_is_told_as_such() {
    let mut bench = in_step();
    let mut incident = Incident::new(IpFamily::V4);
    incident.add(deleted(Object::Chain("foreign".into())), 1);
    let commits = bench.commits();
    bench.apply(Event::Touched(incident.clone()));
    let outcomes = bench.settle();
    assert!(
        matches!(&outcomes[..], [Outcome::Harmless { incident: harmless, streak: 1 }] if *harmless == incident),
        "{outcomes:?}"
    );
    assert_eq!(bench.commits(), commits);
}

/// What one family finds out concerns both, whichever is first.
#[test]
fn when_one_table_is_gone_the_other_is_looked_at() {
    for family in [IpFamily::V4, IpFamily::V6] {
        let mut bench = in_step();
        bench.v4.fake.lock().unwrap().flush();
        bench.v6.fake.lock().unwrap().flush();
        bench.apply(Event::Touched(table_deleted(family)));
        let outcomes = bench.pass(SECOND);
        let families: Vec<_> = repairs(&outcomes)
            .iter()
            .map(|(family, _)| *family)
            .collect();
        assert_eq!(families.len(), 2, "{outcomes:?}");
        assert!(bench.v4.fake.lock().unwrap().ruleset().is_some());
        assert!(bench.v6.fake.lock().unwrap().ruleset().is_some());
    }
}

/// The same when nobody tells, and an ordinary change finds out.
#[test]
fn a_failing_sync_has_both_tables_looked_at() {
    let mut bench = in_step();
    bench.v4.fake.lock().unwrap().flush();
    bench.v6.fake.lock().unwrap().flush();
    bench.apply(applied(30));
    bench.pass(SECOND);
    assert!(bench.v4.fake.lock().unwrap().ruleset().is_some());
    assert!(bench.v6.fake.lock().unwrap().ruleset().is_some());
}

/// Whoever does it again and again is told from a lone incident; after a minute of peace it is one
/// again.
#[test]
fn a_fight_is_counted() {
    let mut bench = in_step();
    let mut streaks = Vec::new();
    for _ in 0..100 {
        let incident = delete_elements(&bench.v4, SetName::ClusterIps);
        bench.apply(Event::Touched(incident));
        for outcome in bench.pass(SECOND / 10) {
            if let Outcome::Repaired { streak, .. } = outcome {
                streaks.push(streak);
            }
        }
    }
    let expected: Vec<_> = (1..=100).collect();
    assert_eq!(streaks, expected);
    bench.pass(61 * SECOND);
    let incident = delete_elements(&bench.v4, SetName::ClusterIps);
    bench.apply(Event::Touched(incident));
    let outcomes = bench.pass(SECOND);
    let is_first = |outcome: &Outcome| matches!(outcome, Outcome::Repaired { streak: 1, .. });
    assert!(outcomes.iter().any(is_first), "{outcomes:?}");
}

/// A repair that had to wait for the machine's other work has used little, and the next is not put
/// off for it.
#[test]
fn a_repair_that_waited_puts_off_none() {
    let mut bench = in_step();
    bench.v4.is_slow.store(true, Ordering::Relaxed);
    for streak in 1..=2 {
        let incident = delete_elements(&bench.v4, SetName::ClusterIps);
        bench.apply(Event::Touched(incident));
        let outcomes = bench.pass(3 * SECOND);
        let is_next = |outcome: &Outcome| matches!(outcome, Outcome::Repaired { streak: n, .. } if *n == streak);
        assert!(outcomes.iter().any(is_next), "{outcomes:?}");
    }
}

/// A refusal is tried again soon, and less and less often.
#[test]
fn a_failed_repair_is_tried_again() {
    let mut bench = in_step();
    bench.v4.set_broken(true);
    let incident = delete_elements(&bench.v4, SetName::ClusterIps);
    bench.apply(Event::Touched(incident));
    let outcomes = bench.pass(10 * SECOND);
    let n_failures = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Failed { .. }))
        .count();
    assert!((3..=10).contains(&n_failures), "{n_failures}");
    // O-118: a table that stays damaged serves nobody, though nothing changes in the cluster.
    assert!(bench.engine.health().is_healthy(bench.now));
    bench.pass(2 * PACE.sync_period);
    assert!(!bench.engine.health().is_healthy(bench.now));
    bench.v4.set_broken(false);
    let outcomes = bench.pass(PACE.sync_period);
    assert_eq!(repairs(&outcomes).len(), 1, "{outcomes:?}");
    assert!(bench.engine.health().is_healthy(bench.now));
}

/// Whoever fights for the table hides nobody else.
#[test]
fn each_culprit_is_counted_by_itself() {
    let mut bench = in_step();
    let mut touch = |name: &str| {
        let mut incident = delete_elements(&bench.v4, SetName::ClusterIps);
        incident.culprits.clear();
        incident.blame(Culprit {
            pid: 1,
            name: name.into(),
        });
        bench.apply(Event::Touched(incident));
        let outcomes = bench.pass(SECOND / 10);
        let mut outcomes = outcomes.iter();
        outcomes.find_map(|outcome| match outcome {
            Outcome::Repaired { streak, .. } => Some(*streak),
            _ => None,
        })
    };
    for n in 1..=20 {
        assert_eq!(touch("firewalld"), Some(n));
    }
    assert_eq!(touch("evil-firewall"), Some(1));
    assert_eq!(touch("firewalld"), Some(21));
}

/// Nobody tells, so it is looked each sync period; if nobody committed anything, that is one
/// question and no more.
#[test]
fn without_notifications_the_generation_is_asked_for() {
    let mut bench = Bench::new();
    bench.apply(Event::Watched(false));
    fill(&mut bench);
    let lists = bench.v4.fake.lock().unwrap().lists;
    bench.pass(10 * PACE.sync_period);
    assert_eq!(
        bench.v4.fake.lock().unwrap().lists,
        lists,
        "nobody did anything"
    );

    delete_elements(&bench.v4, SetName::ClusterIps);
    let outcomes = bench.pass(PACE.sync_period);
    assert_eq!(repairs(&outcomes), [(IpFamily::V4, &Cause::Comparison)]);

    // What we commit ourselves in between hides nothing.
    delete_elements(&bench.v4, SetName::ClusterIps);
    bench.apply(applied(40));
    let outcomes = bench.pass(PACE.sync_period);
    assert_eq!(repairs(&outcomes), [(IpFamily::V4, &Cause::Comparison)]);
}

/// O-100, O-102: what nobody has heard of is found once an hour.
#[test]
fn tables_are_compared_as_a_whole_now_and_then() {
    let mut bench = Bench::with(options());
    fill(&mut bench);
    let lists = bench.v4.fake.lock().unwrap().lists;
    delete_elements(&bench.v4, SetName::ClusterIps);
    let outcomes = bench.pass(PACE.comparison_period / 2);
    assert!(repairs(&outcomes).is_empty());
    assert_eq!(bench.v4.fake.lock().unwrap().lists, lists);
    let outcomes = bench.pass(PACE.comparison_period / 2);
    assert_eq!(repairs(&outcomes), [(IpFamily::V4, &Cause::Comparison)]);
    assert_eq!(bench.v4.fake.lock().unwrap().lists, lists + 1);
}

/// Before anything was written there is nothing that could be damaged.
#[test]
fn what_others_do_before_the_first_sync_is_their_business() {
    let mut bench = Bench::new();
    bench.apply(Event::Touched(table_deleted(IpFamily::V4)));
    assert_eq!(bench.next(), None);
}
