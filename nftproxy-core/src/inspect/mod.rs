//! What a node's rules are, compared with what they should be, for people.
//!
//! Nothing here reads or changes anything: what is desired comes as [`Desired`], what was found as
//! a [`Listing`], from a kernel or from a file. Entry points: [`audit()`], [`services()`],
//! [`explain()`] and [`traffic()`].

mod audit;
mod canonical;
mod chains;
mod changes;
mod draw;
mod elements;
mod explain;
mod expr;
mod finding;
mod found;
pub mod kube_proxy;
mod others;
mod owners;
mod raise;
mod remembered;
mod services;
mod shadow;
mod traffic;

use std::collections::BTreeSet;

use crate::compile::{Compilation, Note, Seeds, skeleton};
use crate::diff::Observed;
use crate::listing::Listing;
use crate::model::{Family, IpFamily, Node, State, V4, V6};
use crate::ruleset::FamilyRuleset;

pub use audit::{Report, Scope, audit};
pub use canonical::{canonical, shared};
pub use changes::{ServiceChange, changes};
pub use draw::{dot, svg};
pub use explain::{Explanation, Query, Way, explain, explain_ruleset, rule_texts};
pub use finding::{Finding, Kind, Severity};
pub use found::{add_counts, services_of};
pub use others::is_kube_proxys;
pub use services::{DestinationRow, EndpointRow, ServiceFilter, ServiceRow, Standing, services};
pub use shadow::{Difference, differences};
pub use traffic::{Client, DestinationTraffic, End, ServiceTraffic, Source, TrafficWay, traffic};

/// What the rules are made from.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// What the cluster asks for.
    pub state: &'a State,
    /// What this node is.
    pub node: &'a Node,
}

/// One family, compiled.
struct Compiled<F: Family> {
    compilation: Compilation<F>,
    ruleset: FamilyRuleset<F>,
}

impl Desired<'_> {
    /// Compiles one family. Endpoints keep the slots that they were found in, as in the proxy, so
    /// that what differs only by its history is equal. And whether connections are counted is as it
    /// was found: it is the proxy's business, and changes nothing for them.
    fn compile<F: Family>(&self, observed: Option<&Observed<F>>) -> Compiled<F> {
        let seeds = observed.map(|observed| Seeds::of(&observed.ruleset));
        let names: BTreeSet<_> = self
            .state
            .services()
            .map(|service| service.name.clone())
            .collect();
        let counts = observed.map_or(self.node.counts, |observed| {
            observed.ruleset.skeleton.set_options.counts
        });
        let node = Node {
            counts,
            ..self.node.clone()
        };
        let mut compilation = Compilation::default();
        compilation.update(self.state, &node, &names, &seeds.unwrap_or_default());
        let cidrs = self.state.service_cidrs::<F>();
        let skeleton = skeleton::<F>(&node, &cidrs, &compilation.features());
        let ruleset = compilation.ruleset(skeleton);
        Compiled {
            compilation,
            ruleset,
        }
    }

    /// The ruleset of one family. Endpoints keep the slots that they were found in.
    pub fn ruleset<F: Family>(&self, found: Option<&Observed<F>>) -> FamilyRuleset<F> {
        self.compile(found).ruleset
    }

    /// What of the Services cannot be had, in both families.
    pub fn notes(&self) -> BTreeSet<Note> {
        let v4 = self.compile::<V4>(None).compilation;
        let v6 = self.compile::<V6>(None).compilation;
        v4.notes().chain(v6.notes()).cloned().collect()
    }
}

/// The table of a family that a listing holds.
pub trait OfFamily: Family {
    /// It, if there is one.
    fn of(listing: &Listing) -> Option<&Observed<Self>>;
}

impl OfFamily for V4 {
    fn of(listing: &Listing) -> Option<&Observed<V4>> {
        listing.v4.as_ref()
    }
}

impl OfFamily for V6 {
    fn of(listing: &Listing) -> Option<&Observed<V6>> {
        listing.v6.as_ref()
    }
}

/// What nft(8) calls a table of ours.
fn table_text(family: IpFamily, name: &str) -> String {
    format!("table {} {name}", family.nft_name())
}
