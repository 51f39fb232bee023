//! What becomes of one connection, and why, in Kubernetes' terms. Entry point: [`explain()`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::expr::text;
use super::services::{EndpointRow, ServiceRow, services};
use super::{Desired, OfFamily};
use crate::compile::pick_rules;
use crate::listing::Listing;
use crate::model::{Family, Locality, Protocol, ServiceAddress, TrafficPolicy};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::Destination;
use crate::ruleset::name::{ChainName, Draw};
use crate::trace::{Outcome, Packet, Share, Step, TraceError, ways};

/// A connection to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<F: Family> {
    /// Its first packet.
    pub packet: Packet<F>,
    /// This host's addresses.
    pub local: Vec<IpAddr>,
}

/// One thing that may become of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way<F: Family> {
    /// What becomes of it.
    pub outcome: Outcome<F>,
    /// How often, of all new connections.
    pub share: Share,
    /// The rules that led there.
    pub steps: Vec<Step>,
}

/// What becomes of a connection, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation<F: Family> {
    /// Each thing that may become of it.
    pub ways: Vec<Way<F>>,
    /// The same by what is desired, if both are at hand and differ.
    pub desired: Option<Vec<Way<F>>>,
    /// Whether the ways are those of a ruleset that was found, rather than desired.
    pub is_found: bool,
    /// The Service port that has the destination.
    pub service_port: Option<String>,
    /// Why, one reason after the other.
    pub reasons: Vec<String>,
    /// The endpoints of the Service port, used or not.
    pub endpoints: Vec<EndpointRow>,
}

/// Follows a connection through a ruleset.
///
/// # Errors
///
/// As [`crate::trace::trace`].
pub fn explain_ruleset<F: Family>(
    ruleset: &FamilyRuleset<F>,
    query: &Query<F>,
) -> Result<Vec<Way<F>>, TraceError> {
    let is_local = |address: F::Address| {
        let address: IpAddr = address.into();
        address.is_loopback() || query.local.contains(&address)
    };
    let all = ways(ruleset, &query.packet, &is_local)?;
    Ok(all
        .into_iter()
        .map(|(outcome, (share, steps))| Way {
            outcome,
            share,
            steps,
        })
        .collect())
}

/// Gives the rules of a kernel their text.
pub(super) fn with_texts<F: Family>(ruleset: &FamilyRuleset<F>) -> FamilyRuleset<F> {
    let mut ruleset = ruleset.clone();
    for rule in ruleset.skeleton.chains.values_mut().flatten() {
        rule.text = text::<F>(rule);
    }
    ruleset
}

/// The text of each rule, by chain and place in it, from 0. Rules that were read from a kernel have
/// none of their own.
pub fn rule_texts<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeMap<(ChainName, usize), String> {
    let picks = ruleset.picks.iter();
    let picks = picks.map(|pick| (ChainName::Pick(*pick), Cow::Owned(pick_rules::<F>(*pick))));
    let fixed = ruleset.skeleton.chains.iter();
    let fixed = fixed.map(|(chain, rules)| (*chain, Cow::Borrowed(rules)));
    let texts = fixed.chain(picks).flat_map(|(chain, rules)| {
        let texts: Vec<_> = rules.iter().map(text::<F>).collect();
        let numbered = texts.into_iter().enumerate();
        numbered.map(move |(number, text)| ((chain, number), text))
    });
    texts.collect()
}

/// Explains a connection: by what was found, if there is a listing, else by what is desired.
///
/// `node_of` tells on which node an endpoint is, if that is known.
///
/// # Errors
///
/// If the ruleset that was found holds what cannot be followed.
pub fn explain<F: OfFamily>(
    desired: Option<Desired<'_>>,
    listing: Option<&Listing>,
    query: &Query<F>,
    node_of: &dyn Fn(IpAddr) -> Option<String>,
) -> Result<Explanation<F>, TraceError> {
    let rows = desired.map(services::<F>).unwrap_or_default();
    let found = listing.map(|listing| match F::of(listing) {
        Some(observed) => with_texts(&observed.ruleset),
        // Without a table, nothing happens to anything.
        None => FamilyRuleset::empty(),
    });
    let wanted = desired.map(|desired| {
        let observed = listing.and_then(F::of);
        desired.compile::<F>(observed).ruleset
    });
    let by_found = found
        .as_ref()
        .map(|ruleset| explain_ruleset(ruleset, query))
        .transpose()?;
    let by_desired = wanted
        .as_ref()
        .map(|ruleset| explain_ruleset(ruleset, query))
        .transpose()?;
    let is_found = by_found.is_some();
    let differs = by_found
        .as_deref()
        .zip(by_desired.as_deref())
        .is_some_and(|(a, b)| {
            let outcomes = |ways: &[Way<F>]| -> Vec<_> {
                ways.iter().map(|way| (way.outcome, way.share)).collect()
            };
            outcomes(a) != outcomes(b)
        });
    let (ways, desired_ways) = match (by_found, by_desired) {
        (Some(found), wanted) => (found, wanted.filter(|_| differs)),
        (None, wanted) => (wanted.unwrap_or_default(), None),
    };
    let ruleset = found.as_ref().or(wanted.as_ref());
    let row = owner(query, &rows);
    let service_port = match row {
        Some((row, _)) => Some(row.service_port.clone()),
        // What an element says of a destination that no rule leads to it is not so.
        None => ruleset
            .filter(|_| ways.iter().any(is_taken))
            .and_then(|ruleset| comment(ruleset, query)),
    };
    Ok(Explanation {
        reasons: reasons(&ways, row, query, node_of),
        endpoints: row
            .map(|(row, _)| row.endpoints.clone())
            .unwrap_or_default(),
        ways,
        desired: desired_ways,
        is_found,
        service_port,
    })
}

/// Whether a rule decides over a connection.
fn is_taken<F: Family>(way: &Way<F>) -> bool {
    !matches!(way.outcome, Outcome::Pass { .. })
}

/// The destination of a query, with its address and, at one of this node's own, as a NodePort. At
/// loopback rules have none.
fn destinations<F: Family>(query: &Query<F>) -> Vec<Destination<F>> {
    let packet = &query.packet;
    let port = packet.destination_port.try_into().ok();
    let Some((protocol, port)) = Protocol::from_number(packet.protocol).zip(port) else {
        return Vec::new();
    };
    let ip: IpAddr = packet.destination.into();
    let is_node = query.local.contains(&ip) && !ip.is_loopback();
    [Some(Some(packet.destination)), is_node.then_some(None)]
        .into_iter()
        .flatten()
        .map(|address| Destination {
            address,
            protocol,
            port,
        })
        .collect()
}

/// The Service port that has the destination, and which of its destinations it is.
fn owner<'a, F: Family>(
    query: &Query<F>,
    rows: &'a [ServiceRow],
) -> Option<(&'a ServiceRow, usize)> {
    destinations(query).into_iter().find_map(|destination| {
        let address = ServiceAddress::from(destination);
        rows.iter().find_map(|row| {
            let at = row
                .destinations
                .iter()
                .position(|at| at.address == address && !at.outcome.starts_with("taken by"))?;
            Some((row, at))
        })
    })
}

fn comment<F: Family>(ruleset: &FamilyRuleset<F>, query: &Query<F>) -> Option<String> {
    destinations(query).into_iter().find_map(|destination| {
        ruleset
            .elements
            .iter()
            .find_map(|element| match element.key() {
                crate::ruleset::element::Key::Destination(at) if *at == destination => {
                    element.comment().map(|comment| comment.to_string())
                }
                _ => None,
            })
    })
}

/// Where endpoints are that could serve, for messages.
fn elsewhere(row: &ServiceRow, node_of: &dyn Fn(IpAddr) -> Option<String>) -> String {
    let used: Vec<_> = row
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.is_used())
        .collect();
    let mut nodes: Vec<_> = used
        .iter()
        .filter_map(|endpoint| node_of(endpoint.address.ip()))
        .collect();
    nodes.sort();
    nodes.dedup();
    const MAX: usize = 8;
    let more = nodes.len().saturating_sub(MAX);
    nodes.truncate(MAX);
    let mut text = format!("{} usable", used.len());
    if !nodes.is_empty() {
        text.push_str(&format!(" on {}", nodes.join(", ")));
    }
    if more > 0 {
        text.push_str(&format!(" and {more} other nodes"));
    }
    text
}

fn reasons<F: Family>(
    ways: &[Way<F>],
    row: Option<(&ServiceRow, usize)>,
    query: &Query<F>,
    node_of: &dyn Fn(IpAddr) -> Option<String>,
) -> Vec<String> {
    let mut reasons = Vec::new();
    for way in ways {
        let reason = reason(way, row, query, node_of);
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
        if let Some(reason) = masquerade_reason(way)
            && !reasons.contains(&reason)
        {
            reasons.push(reason);
        }
    }
    let is_by_client = ways
        .iter()
        .flat_map(|way| &way.steps)
        .any(|step| matches!(step.chain, ChainName::Pick(pick) if pick.draw == Draw::Hash));
    if is_by_client {
        reasons.push(format!(
            "a hash of the client's address decides: {} always gets this endpoint, on every node with the same endpoints",
            query.packet.source
        ));
    }
    if let Some((row, _)) = row
        && let Some(balancing) = &row.balancing
        && ways
            .iter()
            .any(|way| matches!(way.outcome, Outcome::Endpoint { .. }))
    {
        reasons.push(format!("balancing {balancing}"));
    }
    if let Some((row, _)) = row
        && let Some(seconds) = row.affinity
        && ways
            .iter()
            .any(|way| matches!(way.outcome, Outcome::Endpoint { .. }))
    {
        reasons.push(format!(
            "sessionAffinity ClientIP: a client that had an endpoint here in the last {seconds} s keeps it"
        ));
    }
    reasons
}

fn masquerade_reason<F: Family>(way: &Way<F>) -> Option<String> {
    let (Outcome::Endpoint { masquerade, .. } | Outcome::Pass { masquerade }) = way.outcome else {
        return None;
    };
    if !masquerade {
        return None;
    }
    let last = way.steps.last()?;
    Some(if last.text.contains("@hairpin") {
        "masqueraded, as an endpoint reaches itself".into()
    } else if way.steps.iter().any(|step| is_external(step.chain)) {
        "masqueraded, so that answers come back through this node (externalTrafficPolicy Cluster, or a process of this node)".into()
    } else {
        "masqueraded, as it comes from outside of the pods' network (or masqueradeAll is on)".into()
    })
}

fn is_external(chain: ChainName) -> bool {
    matches!(
        chain,
        ChainName::External
            | ChainName::ExternalNodePort
            | ChainName::MasqueradeExternal
            | ChainName::MasqueradeExternalLocal
    )
}

fn reason<F: Family>(
    way: &Way<F>,
    row: Option<(&ServiceRow, usize)>,
    query: &Query<F>,
    node_of: &dyn Fn(IpAddr) -> Option<String>,
) -> String {
    let destination = query.packet.destination;
    let port = query.packet.destination_port;
    let last = way
        .steps
        .iter()
        .rev()
        .find(|step| !matches!(step.chain, ChainName::Refuse));
    let text = last.map(|step| step.text.as_str()).unwrap_or_default();
    let at = row.map(|(row, at)| &row.destinations[at]);
    let policy = |at: &super::DestinationRow| {
        let which = if at.kind == "ClusterIP" {
            "internalTrafficPolicy"
        } else {
            "externalTrafficPolicy"
        };
        let what = match at.policy {
            Some(TrafficPolicy::Local) => "Local",
            Some(TrafficPolicy::Cluster) | None => "Cluster",
        };
        format!("{which} {what}")
    };
    match way.outcome {
        Outcome::Drop
            if last.is_some_and(|step| {
                matches!(
                    step.chain,
                    ChainName::PreroutingSourceRanges | ChainName::OutputSourceRanges
                )
            }) =>
        {
            match at {
                Some(at) => format!(
                    "loadBalancerSourceRanges ({}) do not hold {}",
                    at.sources.join(", "),
                    query.packet.source
                ),
                None => format!("source ranges do not hold {}", query.packet.source),
            }
        }
        Outcome::Drop if text.contains("@unavailable") => match row {
            Some((row, at)) => format!(
                "{}, and no usable endpoint on this node; {}",
                policy(&row.destinations[at]),
                elsewhere(row, node_of)
            ),
            None => "traffic policy Local, and no usable endpoint on this node".into(),
        },
        Outcome::Drop => {
            format!("{destination} is in a ServiceCIDR, and no Service that is served here has it")
        }
        Outcome::Refuse { .. } if text.contains("@unavailable") => match row {
            Some((row, _)) if row.endpoints.is_empty() => "the Service has no endpoints".into(),
            Some((row, _)) => format!(
                "none of {} endpoints is ready, nor serves while it terminates",
                row.endpoints.len()
            ),
            None => "no endpoint is ready, nor serves while it terminates".into(),
        },
        Outcome::Refuse { .. } => {
            format!("{destination} is a ClusterIP, and its Service has no such port ({port})")
        }
        Outcome::Pass { .. } => match row {
            Some((row, _)) => format!(
                "{} has the destination, and nothing translates it: the rules are incomplete, or the node does not take NodePorts at {destination}",
                row.service_port
            ),
            None => {
                "no Service that is served here has this destination, so it is left alone".into()
            }
        },
        Outcome::Endpoint { .. } => match at {
            Some(at) if at.policy == Some(TrafficPolicy::Local) && at.kind != "ClusterIP" => {
                let is_local_pick = way.steps.iter().any(|step| step.text.contains("@local"));
                if is_local_pick {
                    format!(
                        "{}: clients from outside get endpoints on this node only",
                        policy(at)
                    )
                } else {
                    format!(
                        "{}: pods and the node itself get any usable endpoint",
                        policy(at)
                    )
                }
            }
            Some(at) if at.policy == Some(TrafficPolicy::Local) => {
                format!("{}: endpoints on this node only", policy(at))
            }
            Some(at) => format!("{}: any usable endpoint", policy(at)),
            None => "translated to one of the endpoints in its slots".into(),
        },
    }
}

impl EndpointRow {
    /// Where it is, in words.
    pub fn place(&self) -> &'static str {
        match self.locality {
            Some(Locality::Local) => "this node",
            Some(Locality::Remote) => "another node",
            Some(Locality::Unknown) => "unknown",
            None => "",
        }
    }
}
