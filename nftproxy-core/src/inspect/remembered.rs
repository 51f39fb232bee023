//! What session affinity has learned. Entry point: [`compare`].

use std::collections::BTreeSet;

use super::elements::finding;
use super::finding::{Finding, Kind};
use super::owners::Owners;
use crate::model::Family;
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::{Data, Destination, Element, Key};

/// Looks for clients that are remembered for what their Service does not have.
pub(super) fn compare<F: Family>(
    desired: &FamilyRuleset<F>,
    remembered: &[Element<F>],
    owners: &Owners<'_, F>,
    mut found: impl FnMut(Finding),
) {
    // A NodePort is remembered by the node's address that it was reached at.
    let places = |destination: &Destination<F>| {
        let address = None;
        [
            *destination,
            Destination {
                address,
                ..*destination
            },
        ]
    };
    let at = remembered.iter().filter_map(|element| match element.key() {
        Key::Client(_, destination) => Some(places(destination)),
        _ => None,
    });
    let at: BTreeSet<_> = at.flatten().collect();
    let endpoints: BTreeSet<_> =
        if at.is_empty() {
            BTreeSet::new()
        } else {
            let slots = desired.elements.iter().filter_map(|element| {
                match (element.key(), element.data()) {
                    (Key::Slot(destination, _), Data::Endpoint(endpoint)) => {
                        Some((*destination, *endpoint))
                    }
                    _ => None,
                }
            });
            slots
                .filter(|(destination, _)| at.contains(destination))
                .collect()
        };
    for element in remembered {
        if let (Key::Client(_, destination), Data::Endpoint(endpoint)) =
            (element.key(), element.data())
            && !places(destination)
                .iter()
                .any(|place| endpoints.contains(&(*place, *endpoint)))
        {
            found(Finding {
                message: format!("{{ {} }} should not be there", element.nft()),
                effect: "the client is led to what its Service does not have".into(),
                ..finding(element, Kind::Extra, owners)
            });
        }
    }
}
