//! Elements: those that should be there, and those that are.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;

use super::finding::{Finding, Kind, Severity};
use super::owners::Owners;
use crate::model::{EndpointAddress, Family};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::expr::Verdict;
use crate::ruleset::name::{ChainName, Draw, Pick, SetName, SlotMap};
use crate::ruleset::schema::{DataType, schema};

/// Compares all elements.
pub(super) fn compare<F: Family>(
    desired: &FamilyRuleset<F>,
    observed: &FamilyRuleset<F>,
    owners: &Owners<'_, F>,
    mut found: impl FnMut(Finding),
) {
    let is_plain = |element: &&Element<F>| SlotMap::of(element.set()).is_none();
    let mut wanted = desired.elements.iter().filter(is_plain).peekable();
    let mut there = observed.elements.iter().filter(is_plain).peekable();
    loop {
        let pair = match (wanted.peek(), there.peek()) {
            (None, None) => break,
            (Some(wanted), Some(there)) => wanted.identity().cmp(&there.identity()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
        };
        match pair {
            std::cmp::Ordering::Equal => {
                let (Some(wanted), Some(there)) = (wanted.next(), there.next()) else {
                    break;
                };
                if wanted != there {
                    found(differs(wanted, there, owners));
                }
            }
            std::cmp::Ordering::Less => found(missing(wanted.next(), owners)),
            std::cmp::Ordering::Greater => found(extra(there.next(), owners)),
        }
    }
    slots(desired, observed, owners, found);
}

/// A grave finding about an element, yet without words.
pub(super) fn finding<F: Family>(
    element: &Element<F>,
    kind: Kind,
    owners: &Owners<'_, F>,
) -> Finding {
    Finding {
        severity: Severity::Error,
        kind,
        family: Some(F::FAMILY),
        service_port: owners.of(element),
        object: object(element.set()),
        message: String::new(),
        effect: String::new(),
    }
}

fn object(set: SetName) -> String {
    let kind = match schema(set).data {
        DataType::None => "set",
        DataType::Verdict | DataType::Endpoint => "map",
    };
    format!("{kind} {set}")
}

fn differs<F: Family>(wanted: &Element<F>, there: &Element<F>, owners: &Owners<'_, F>) -> Finding {
    let comment_only = wanted.data() == there.data();
    Finding {
        severity: if comment_only {
            Severity::Warning
        } else {
            Severity::Error
        },
        message: format!(
            "it has {{ {} }}, and should have {{ {} }}",
            there.nft(),
            wanted.nft()
        ),
        effect: if comment_only {
            "only the comment is wrong, which misleads readers".into()
        } else {
            "new connections do not go where they should".into()
        },
        ..finding(wanted, Kind::Different, owners)
    }
}

fn missing<F: Family>(element: Option<&Element<F>>, owners: &Owners<'_, F>) -> Finding {
    let element = element.expect("it has just been looked at");
    let effect = match element.set() {
        SetName::ClusterIps => {
            "connections from outside of the pods keep their source, and ports that the Service lacks are not refused"
        }
        SetName::NodePortIps => "NodePorts are not reached at this address",
        SetName::Hairpin => "an endpoint that connects to its own Service gets no answer",
        SetName::Restricted => "everybody may reach the address",
        SetName::AllowedSources => "these sources are dropped",
        SetName::Services | SetName::NodePorts => "connections are not translated",
        SetName::External | SetName::ExternalNodePorts => {
            "connections that count as of the cluster are not translated"
        }
        SetName::ExternalLocal | SetName::ExternalLocalNodePorts => {
            "connections are masqueraded, and led to endpoints on other nodes, as if the policy were Cluster"
        }
        SetName::Local | SetName::LocalNodePorts => "connections from outside are not translated",
        SetName::Unavailable | SetName::UnavailableNodePorts => {
            "connections are not refused or dropped as they should be"
        }
        SetName::Sticky | SetName::StickyNodePorts => "clients are not remembered",
        SetName::Masqueraded | SetName::MasqueradedNodePorts => {
            "connections keep their source, so answers may not come back this way"
        }
        _ => "",
    };
    Finding {
        message: format!("it lacks {{ {} }}", element.nft()),
        effect: effect.into(),
        ..finding(element, Kind::Missing, owners)
    }
}

fn extra<F: Family>(element: Option<&Element<F>>, owners: &Owners<'_, F>) -> Finding {
    let element = element.expect("it has just been looked at");
    let effect = match element.set() {
        SetName::Hairpin => "connections of this address to itself are masqueraded",
        SetName::AllowedSources => "these sources may reach the address",
        SetName::Restricted => "only some sources may reach the address",
        SetName::Unavailable | SetName::UnavailableNodePorts => {
            "connections that nobody translates are refused or dropped"
        }
        SetName::ExternalLocal | SetName::ExternalLocalNodePorts => {
            "connections from outside get endpoints of this node only, as if the policy were Local"
        }
        _ => "connections to it are taken for those of a Service",
    };
    Finding {
        message: format!("{{ {} }} should not be there", element.nft()),
        effect: effect.into(),
        ..finding(element, Kind::Extra, owners)
    }
}

/// The slots of one destination in one map, by number.
type Slots<F> = BTreeMap<u32, EndpointAddress<F>>;
type Place<F> = (SetName, Destination<F>);

/// Hands out the slots of one destination after the other, in order.
struct Runs<'a, F: Family, I: Iterator<Item = &'a Element<F>>> {
    elements: Peekable<I>,
}

impl<'a, F: Family, I: Iterator<Item = &'a Element<F>>> Runs<'a, F, I> {
    fn new(elements: I) -> Self {
        Self {
            elements: elements.peekable(),
        }
    }

    fn place(element: &Element<F>) -> Option<Place<F>> {
        match element.key() {
            Key::Slot(destination, _) => Some((element.set(), *destination)),
            _ => None,
        }
    }

    fn peek(&mut self) -> Option<Place<F>> {
        while let Some(element) = self.elements.peek() {
            match Self::place(element) {
                Some(place) => return Some(place),
                None => self.elements.next(),
            };
        }
        None
    }

    fn take(&mut self) -> Slots<F> {
        let place = self.peek();
        let mut slots = Slots::new();
        while let Some(element) = self
            .elements
            .next_if(|element| Self::place(element) == place)
        {
            if let (Key::Slot(_, slot), Data::Endpoint(endpoint)) = (element.key(), element.data())
            {
                slots.insert(*slot, *endpoint);
            }
        }
        slots
    }
}

/// How verdicts draw slots, by map and destination.
fn drawn<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeMap<Place<F>, Pick> {
    let verdicts =
        ruleset
            .elements
            .iter()
            .filter_map(|element| match (element.key(), element.data()) {
                (
                    Key::Destination(destination),
                    Data::Verdict(Verdict::Goto(ChainName::Pick(pick))),
                ) => Some(((pick.map.set(), *destination), *pick)),
                _ => None,
            });
    verdicts.collect()
}

fn slots<F: Family>(
    desired: &FamilyRuleset<F>,
    observed: &FamilyRuleset<F>,
    owners: &Owners<'_, F>,
    mut found: impl FnMut(Finding),
) {
    let drawn = drawn(observed);
    let mut wanted = Runs::new(desired.elements.iter());
    let mut there = Runs::new(observed.elements.iter());
    loop {
        let (want, have) = (wanted.peek(), there.peek());
        let place = match (want, have) {
            (None, None) => break,
            (Some(place), None) | (None, Some(place)) => place,
            (Some(want), Some(have)) => want.min(have),
        };
        let want = if want == Some(place) {
            wanted.take()
        } else {
            Slots::new()
        };
        let have = if have == Some(place) {
            there.take()
        } else {
            Slots::new()
        };
        let pick = drawn.get(&place).copied();
        if want == have && pick.is_some_and(|pick| pick.n.get() == want.len() as u32) {
            continue;
        }
        compare_slots(place, &want, &have, pick, owners, &mut found);
    }
}

fn text<F: Family>(endpoint: &EndpointAddress<F>) -> String {
    let address = endpoint.address.into();
    std::net::SocketAddr::new(address, endpoint.port.get()).to_string()
}

fn compare_slots<F: Family>(
    (set, destination): Place<F>,
    want: &Slots<F>,
    have: &Slots<F>,
    pick: Option<Pick>,
    owners: &Owners<'_, F>,
    found: &mut impl FnMut(Finding),
) {
    let mut tell = |severity, kind, message: String, effect: String| {
        found(Finding {
            severity,
            kind,
            family: Some(F::FAMILY),
            service_port: owners.of_destination(&destination),
            object: object(set),
            message: format!("{destination}: {message}"),
            effect,
        });
    };
    let n = pick.map(|pick| pick.n.get());
    // Slots that nobody draws do nothing.
    let is_drawn = |slot: &u32| n.is_some_and(|n| slot < &n);
    let of =
        |slots: &Slots<F>| -> BTreeSet<EndpointAddress<F>> { slots.values().copied().collect() };
    let drawn: Slots<F> = have
        .iter()
        .filter(|(slot, _)| is_drawn(slot))
        .map(|(slot, at)| (*slot, *at))
        .collect();
    let (wanted, present) = (of(want), of(&drawn));
    for endpoint in wanted.difference(&present) {
        let message = format!("endpoint {} is missing", text(endpoint));
        tell(
            Severity::Error,
            Kind::Missing,
            message,
            "it gets no new connections".into(),
        );
    }
    for endpoint in present.difference(&wanted) {
        let message = format!("endpoint {} should not be there", text(endpoint));
        tell(
            Severity::Error,
            Kind::Extra,
            message,
            "it gets new connections".into(),
        );
    }
    let gaps: Vec<_> = (0..n.unwrap_or_default())
        .filter(|slot| !have.contains_key(slot))
        .collect();
    if let (Some(first), Some(n)) = (gaps.first(), n) {
        let others = if gaps.len() > 1 {
            format!(" and {} others", gaps.len() - 1)
        } else {
            String::new()
        };
        let message = format!("of {n} slots, number {first}{others} is empty");
        let effect = format!("{} of {n} new connections are not translated", gaps.len());
        tell(Severity::Error, Kind::Slots, message, effect);
    }
    let is_hashed = pick.is_some_and(|pick| pick.draw == Draw::Hash);
    if is_hashed && wanted == present && gaps.is_empty() {
        let is_misplaced =
            |(slot, at): &(&u32, &_)| drawn.get(slot).is_some_and(|other| other != *at);
        let misplaced = want.iter().filter(is_misplaced).count();
        if misplaced > 0 {
            let of = want.len();
            let message =
                format!("of {of} slots, {misplaced} hold another endpoint than they should");
            let effect = "some clients get another endpoint here than at other nodes".into();
            tell(Severity::Error, Kind::Slots, message, effect);
        }
    }
    for endpoint in &present {
        let of = |slots: &Slots<F>| slots.values().filter(|other| *other == endpoint).count();
        let (times, due) = (of(&drawn), of(want));
        if times > due.max(1) {
            let message = match due {
                0 | 1 => format!("endpoint {} has {times} slots", text(endpoint)),
                due => format!("endpoint {} has {times} slots, not {due}", text(endpoint)),
            };
            tell(
                Severity::Error,
                Kind::Slots,
                message,
                "it gets more than its share of new connections".into(),
            );
        }
    }
    let idle: Vec<_> = have.iter().filter(|(slot, _)| !is_drawn(slot)).collect();
    if let Some((slot, endpoint)) = idle.first() {
        let others = if idle.len() > 1 {
            format!(", and {} others", idle.len() - 1)
        } else {
            String::new()
        };
        let message = format!("nobody draws slot {slot}, {}{others}", text(endpoint));
        tell(
            Severity::Warning,
            Kind::Slots,
            message,
            "it is out of use".into(),
        );
    }
}
