//! What another service proxy does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::Destination;

/// What another service proxy does with connections, as far as its rules tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served<F: Family> {
    /// By where they go.
    pub destinations: BTreeMap<Destination<F>, Treatment>,
    /// The endpoints in use by Service port, `namespace/name:port` as far as a comment holds it.
    pub endpoints: BTreeMap<String, BTreeSet<EndpointAddress<F>>>,
}

impl<F: Family> Default for Served<F> {
    fn default() -> Self {
        Self {
            destinations: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        }
    }
}

/// What becomes of connections to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// They lead to endpoints, at least those from some sources.
    Served,
    /// They are refused.
    Refused,
    /// They are dropped.
    Dropped,
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        })
    }
}
