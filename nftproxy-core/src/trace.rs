//! What happens to the first packet of a connection, and why.
//!
//! [`trace`] runs the kernel expressions of a ruleset, desired or observed, on one packet. Where
//! the kernel draws a random number, it follows every draw, so the answer is a set of outcomes; where
//! it hashes the client's address, it does the same.
//! It never guesses: an expression that it does not know is an error.

mod flight;
mod share;
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::{EndpointAddress, Family};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::name::ChainName;
pub use share::Share;
pub(crate) use tracer::Tracer;

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Where it comes from.
    pub source: F::Address,
    /// Where it is sent to.
    pub destination: F::Address,
    /// Transport protocol number; not only those that Services have.
    pub protocol: u8,
    /// Destination port; 0 for protocols without.
    pub destination_port: u16,
    /// The interface it came in by; `None` if a process of this host sent it.
    pub input_interface: Option<String>,
    /// Its mark, host byte order.
    pub mark: u32,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome<F: Family> {
    /// It goes on as it is, or masqueraded.
    Pass {
        /// Whether its source address becomes this host's.
        masquerade: bool,
    },
    /// It goes to an endpoint.
    Endpoint {
        /// Which.
        endpoint: EndpointAddress<F>,
        /// Whether its source address becomes this host's.
        masquerade: bool,
    },
    /// It is discarded.
    Drop,
    /// The sender is told that nobody is there.
    Refuse {
        /// By a TCP reset, rather than an ICMP error.
        reset: bool,
    },
}

/// The possible outcomes, each with one way to get there.
pub type Outcomes<F> = BTreeMap<Outcome<F>, Vec<Step>>;

/// A rule that did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The chain it stands in.
    pub chain: ChainName,
    /// Its number in the chain, from 0.
    pub rule: usize,
    /// Its text, if known, with what it came to.
    pub text: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}: {}", self.chain, self.rule + 1, self.text)
    }
}

/// Why a packet could not be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A rule has an expression that is not ours.
    #[error("chain {chain} has the expression {expression:?}, which cannot be traced")]
    Foreign {
        /// The chain.
        chain: ChainName,
        /// The expression's name.
        expression: String,
    },
    /// A verdict leads to a chain that is not there.
    #[error("a verdict leads to chain {0}, which does not exist")]
    NoChain(ChainName),
    /// Chains lead to one another without end, or deeper than the kernel allows.
    #[error("the jump stack is exceeded at chain {0}")]
    TooDeep(ChainName),
    /// There are more ways to go than can be followed.
    #[error("there are more than {MAX_RUNS} ways to go")]
    TooMany,
}

/// `NFT_JUMP_STACK_SIZE`
const MAX_DEPTH: usize = 16;

/// Follows a packet. `is_local` tells which addresses are this host's.
///
/// ```
/// # use nftproxy_core::compile::compile;
/// # use nftproxy_core::model::{Node, Protocol, Service, ServiceName, ServicePort, State, V4};
/// # use nftproxy_core::trace::{Outcome, Packet, trace};
/// # let name = ServiceName::new("shop", "api").unwrap();
/// # let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
/// # let mut state = State::default();
/// # state.apply_service(Service::at(name, [10, 96, 0, 20].into(), [port]));
/// // A Service without endpoints.
/// let ruleset = compile(&state, &Node::default()).v4;
/// let packet = Packet::<V4> {
///     source: [10, 244, 1, 11].into(),
///     destination: [10, 96, 0, 20].into(),
///     protocol: Protocol::Tcp.number(),
///     destination_port: 80,
///     input_interface: Some("veth1".into()),
///     mark: 0,
/// };
/// let outcomes = trace(&ruleset, &packet, &|_| false)?;
/// assert!(outcomes.keys().eq([&Outcome::Refuse { reset: true }]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// If the ruleset holds what [`TraceError`] names and the packet meets it.
pub fn trace<F: Family>(
    ruleset: &FamilyRuleset<F>,
    packet: &Packet<F>,
    is_local: &dyn Fn(F::Address) -> bool,
) -> Result<Outcomes<F>, TraceError> {
    let all = ways(ruleset, packet, is_local)?;
    Ok(all
        .into_iter()
        .map(|(outcome, (_, steps))| (outcome, steps))
        .collect())
}

/// The possible outcomes, each with how often it comes and one way to get there.
pub type Ways<F> = BTreeMap<Outcome<F>, (Share, Vec<Step>)>;

/// The same as [`trace`], with how many of all new connections end so. The shares are exact, and
/// add up to 1.
///
/// # Errors
///
/// As [`trace`].
pub fn ways<F: Family>(
    ruleset: &FamilyRuleset<F>,
    packet: &Packet<F>,
    is_local: &dyn Fn(F::Address) -> bool,
) -> Result<Ways<F>, TraceError> {
    Tracer::new(ruleset, is_local).ways(packet)
}

/// Ways that are followed; more endpoints than that no Service has.
const MAX_RUNS: usize = 1 << 20;

impl<F: Family> fmt::Display for Outcome<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masqueraded = |masquerade| if masquerade { ", masqueraded" } else { "" };
        match *self {
            Self::Pass { masquerade } => write!(f, "pass{}", masqueraded(masquerade)),
            Self::Endpoint {
                endpoint: EndpointAddress { address, port },
                masquerade,
            } => {
                let address: IpAddr = address.into();
                write!(
                    f,
                    "{}{}",
                    std::net::SocketAddr::new(address, port.get()),
                    masqueraded(masquerade)
                )
            }
            Self::Drop => f.write_str("drop"),
            Self::Refuse { reset: true } => f.write_str("refuse with a reset"),
            Self::Refuse { reset: false } => f.write_str("refuse as port unreachable"),
        }
    }
}

/// The outcomes alone.
pub fn possible<F: Family>(outcomes: &Outcomes<F>) -> BTreeSet<Outcome<F>> {
    outcomes.keys().copied().collect()
}
