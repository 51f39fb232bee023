//! What a table has counted: new connections by Service port and by endpoint, and those that were
//! refused or dropped, by reason.
//!
//! Counters belong to elements, and go with them: an element that is replaced counts from nought.
//! [`Tally`] makes totals of them that only grow. [`crate::apply::netlink::Netlink::read_counts`]
//! reads a kernel's counters, [`crate::listing`] those that a listing has.

mod tally;

use std::fmt;

use crate::model::Family;
use crate::ruleset::Rule;
use crate::ruleset::element::{Data, Element};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, SetName};

pub use tally::{ServiceTally, Tally};

/// What a table has counted. Each number is of packets, of which a connection's first is the only
/// one that meets our rules; one that is sent again for want of an answer counts again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts<F: Family> {
    /// Elements of [`SetName::COUNTED`] with their numbers.
    pub elements: Vec<(Element<F>, u64)>,
    /// Rules that let no connection through: the chain, the rule's place from 0, why, the number.
    pub rules: Vec<(ChainName, usize, Reason, u64)>,
    /// Whether the maps of endpoints were left out, as they hold too much.
    pub are_endpoints_left_out: bool,
}

impl<F: Family> Default for Counts<F> {
    fn default() -> Self {
        Self {
            elements: Vec::new(),
            rules: Vec::new(),
            are_endpoints_left_out: false,
        }
    }
}

impl<F: Family> Counts<F> {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty() && self.rules.is_empty()
    }
}

/// Why a connection was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Refused: its Service port has no usable endpoint.
    NoEndpoints,
    /// Dropped: the policy is `Local`, and there is no usable endpoint on this node.
    NoLocalEndpoints,
    /// Refused: the Service of its ClusterIP has no such port.
    NoSuchPort,
    /// Dropped: no Service has that ClusterIP.
    NoSuchClusterIp,
    /// Dropped: it came from outside of the `loadBalancerSourceRanges`.
    SourceRanges,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoEndpoints,
        Self::NoLocalEndpoints,
        Self::NoSuchPort,
        Self::NoSuchClusterIp,
        Self::SourceRanges,
    ];

    /// In a word, as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no-endpoints",
            Self::NoLocalEndpoints => "no-local-endpoints",
            Self::NoSuchPort => "no-such-port",
            Self::NoSuchClusterIp => "no-such-cluster-ip",
            Self::SourceRanges => "source-ranges",
        }
    }

    /// Why an element lets no connection through; `None` if it does.
    pub(crate) fn of_element<F: Family>(element: &Element<F>) -> Option<Self> {
        let is_unavailable = matches!(
            element.set(),
            SetName::Unavailable | SetName::UnavailableNodePorts
        );
        match element.data() {
            Data::Verdict(Verdict::Goto(_)) if is_unavailable => Some(Self::NoEndpoints),
            Data::Verdict(Verdict::Drop) if is_unavailable => Some(Self::NoLocalEndpoints),
            _ => None,
        }
    }

    /// Why a rule of ours that counts lets no connection through.
    pub(crate) fn of_rule(chain: ChainName, rule: &Rule) -> Option<Self> {
        if !rule.exprs.contains(&Expr::Counter) {
            return None;
        }
        match (chain, rule.exprs.last()?) {
            (ChainName::PreroutingSourceRanges | ChainName::OutputSourceRanges, _) => {
                Some(Self::SourceRanges)
            }
            (ChainName::Guard, Expr::Verdict(Verdict::Goto(_))) => Some(Self::NoSuchPort),
            (ChainName::Guard, Expr::Verdict(Verdict::Drop)) => Some(Self::NoSuchClusterIp),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
