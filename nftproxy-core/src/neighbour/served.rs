//! What another service proxy does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::Destination;

/// What another service proxy does with connections, as far as its rules tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served<F: Family> {
    /// By where they go.
    pub destinations: BTreeMap<Destination<F>, Treatment>,
    /// The endpoints in use by Service port, `namespace/name:port` as far as a comment holds it.
    pub endpoints: BTreeMap<String, BTreeSet<EndpointAddress<F>>>,
    /// What else is done with what is served; `None` if that cannot be told.
    pub details: Option<Details<F>>,
}

/// What is done with connections that are served, beyond where they lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details<F: Family> {
    /// For how long clients keep their endpoint, seconds, by Service port; those that do not are
    /// absent.
    pub affinity: BTreeMap<String, u32>,
    /// Whose source is replaced by the node's.
    pub masquerade: BTreeMap<Destination<F>, Masquerade>,
    /// Who may connect, where not everybody may.
    pub sources: BTreeMap<Destination<F>, Vec<IpNet>>,
}

impl<F: Family> Default for Details<F> {
    fn default() -> Self {
        Self {
            affinity: BTreeMap::new(),
            masquerade: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
    }
}

/// Whose source is replaced by that of the node, hairpins apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Masquerade {
    /// Every client's.
    Everybody,
    /// That of clients which are no pods.
    AllButPods,
    /// The node's own connections'.
    Node,
    /// No client's.
    Nobody,
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everybody => "everybody",
            Self::AllButPods => "all but pods",
            Self::Node => "the node alone",
            Self::Nobody => "nobody",
        })
    }
}

impl<F: Family> Default for Served<F> {
    fn default() -> Self {
        Self {
            destinations: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            details: None,
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
