//! Whose an element is: asked of what is desired, else of the comments of what was found.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::{Compiled, Desired};
use crate::model::Family;
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::name::SetName;
use crate::ruleset::{Comment, FamilyRuleset};

/// Finds Service ports by what elements say.
pub(super) struct Owners<'a, F: Family> {
    desired: Desired<'a>,
    compiled: &'a Compiled<F>,
    observed: &'a FamilyRuleset<F>,
    comments: OnceCell<BTreeMap<Destination<F>, Comment>>,
    cluster_ips: OnceCell<BTreeMap<F::Address, String>>,
    endpoints: OnceCell<BTreeMap<F::Address, Destination<F>>>,
}

impl<'a, F: Family> Owners<'a, F> {
    pub(super) fn new(
        desired: Desired<'a>,
        compiled: &'a Compiled<F>,
        observed: &'a FamilyRuleset<F>,
    ) -> Self {
        Self {
            desired,
            compiled,
            observed,
            comments: OnceCell::new(),
            cluster_ips: OnceCell::new(),
            endpoints: OnceCell::new(),
        }
    }

    /// Whose an element is.
    pub(super) fn of(&self, element: &Element<F>) -> Option<String> {
        match element.key() {
            Key::Address(address) if element.set() == SetName::ClusterIps => {
                self.cluster_ips().get(address).cloned()
            }
            Key::Address(_) => None,
            Key::Hairpin(address) => self.of_destination(self.endpoints().get(address)?),
            Key::Destination(destination)
            | Key::Slot(destination, _)
            | Key::Client(_, destination)
            | Key::Source(destination, _, _) => self
                .of_destination(destination)
                .or_else(|| element.comment().map(|comment| comment.to_string())),
        }
    }

    /// Whose a destination is.
    pub(super) fn of_destination(&self, destination: &Destination<F>) -> Option<String> {
        let compilation = &self.compiled.compilation;
        match compilation.owner(self.desired.state, destination) {
            Some(name) => Some(name.to_string()),
            None => self
                .comments()
                .get(destination)
                .map(|comment| comment.to_string()),
        }
    }

    fn comments(&self) -> &BTreeMap<Destination<F>, Comment> {
        self.comments.get_or_init(|| {
            let commented = self.observed.elements.iter().filter_map(|element| {
                match (element.key(), element.comment()) {
                    (Key::Destination(destination), Some(comment)) => {
                        Some((*destination, comment.clone()))
                    }
                    _ => None,
                }
            });
            commented.collect()
        })
    }

    /// ClusterIPs of what is desired, and of what the comments say.
    fn cluster_ips(&self) -> &BTreeMap<F::Address, String> {
        self.cluster_ips.get_or_init(|| {
            let found = self.comments().iter().filter_map(|(destination, comment)| {
                let service = comment.as_str().split(':').next().unwrap_or_default();
                Some((destination.address?, service.to_owned()))
            });
            let desired =
                self.desired.state.services().filter_map(|service| {
                    Some((service.cluster_ip::<F>()?, service.name.to_string()))
                });
            found.chain(desired).collect()
        })
    }

    /// A destination that leads to each endpoint.
    fn endpoints(&self) -> &BTreeMap<F::Address, Destination<F>> {
        self.endpoints.get_or_init(|| {
            let all = self
                .observed
                .elements
                .iter()
                .chain(&self.compiled.ruleset.elements);
            let slots = all.filter_map(|element| match (element.key(), element.data()) {
                (Key::Slot(destination, _), Data::Endpoint(endpoint)) => {
                    Some((endpoint.address, *destination))
                }
                _ => None,
            });
            slots.collect()
        })
    }
}
