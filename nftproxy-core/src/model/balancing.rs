//! How a Service wants its endpoints to be chosen.

use std::fmt;
use std::net::IpAddr;

/// How the endpoint of a new connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Method {
    /// Each connection by itself.
    #[default]
    Random,
    /// By a hash of the client's address, each endpoint having its share of the hashes: the same
    /// client has the same endpoint on every node, as long as the endpoints stay the same.
    SourceHash,
    /// By the same hash, and a table of Maglev's kind: when endpoints come or go, few clients beside
    /// theirs get another one.
    Maglev,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Random, Self::SourceHash, Self::Maglev];

    /// As the annotation says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::SourceHash => "source-hash",
            Self::Maglev => "maglev",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a Service's endpoints are chosen, where it asks for anything but chance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancing {
    /// The method.
    pub method: Method,
    /// Weights of endpoint addresses, from 0 to 100, in order of address and each once. All others
    /// have weight 1.
    pub weights: Box<[(IpAddr, u8)]>,
}

impl Balancing {
    /// A method, without weights.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            weights: Box::default(),
        }
    }

    /// The weight of an endpoint's address.
    pub fn weight(&self, address: IpAddr) -> u8 {
        let at = self
            .weights
            .binary_search_by_key(&address, |(address, _)| *address);
        at.map_or(1, |at| self.weights[at].1)
    }
}
