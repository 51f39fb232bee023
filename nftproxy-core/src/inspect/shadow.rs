//! What another service proxy does against what our rules would. Entry point: [`differences`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::found::services_of;
use super::services::{ServiceRow, socket};
use crate::model::{Family, ServiceAddress};
use crate::neighbour::{Details, Masquerade, Served, Treatment};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::Destination;

/// Something that connections would experience differently under our rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// At a destination.
    Destination {
        /// Where.
        address: ServiceAddress,
        /// The Service port that we serve there, if any: `namespace/name:port`.
        service_port: Option<String>,
        /// What the other does; `None` if it lets connections pass.
        theirs: Option<Treatment>,
        /// What we would do.
        ours: Option<Treatment>,
    },
    /// Among the endpoints of a Service port that both serve.
    Endpoints {
        /// `namespace/name:port`.
        service_port: String,
        /// Those that only the other uses.
        only_theirs: Vec<SocketAddr>,
        /// Those that only we would use.
        only_ours: Vec<SocketAddr>,
    },
    /// Whose source is replaced, at a destination that both serve.
    Masquerade {
        /// Where.
        address: ServiceAddress,
        /// `namespace/name:port`.
        service_port: String,
        /// The other's way.
        theirs: Masquerade,
        /// Ours.
        ours: Masquerade,
    },
    /// Who may connect to a destination that both serve.
    Sources {
        /// Where.
        address: ServiceAddress,
        /// `namespace/name:port`.
        service_port: String,
        /// The ranges that the other lets pass; empty for everybody.
        theirs: Vec<IpNet>,
        /// Those that we would.
        ours: Vec<IpNet>,
    },
    /// For how long clients of a Service port keep their endpoint, seconds.
    Affinity {
        /// `namespace/name:port`.
        service_port: String,
        /// By the other; `None` if they do not.
        theirs: Option<u32>,
        /// By us.
        ours: Option<u32>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let treated = |treatment: &Option<Treatment>| match treatment {
            Some(treatment) => treatment.to_string(),
            None => "not caught".into(),
        };
        match self {
            Self::Destination {
                address,
                service_port,
                theirs,
                ours,
            } => {
                write!(f, "{address}")?;
                if let Some(service_port) = service_port {
                    write!(f, " of {service_port}")?;
                }
                write!(
                    f,
                    " is {} now, and would be {}",
                    treated(theirs),
                    treated(ours)
                )
            }
            Self::Endpoints {
                service_port,
                only_theirs,
                only_ours,
            } => {
                write!(f, "endpoints of {service_port}:")?;
                for (verb, endpoints) in [("lose", only_theirs), ("get", only_ours)] {
                    if !endpoints.is_empty() {
                        let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                        write!(f, " {} would {verb} their clients", texts.join(" "))?;
                    }
                }
                Ok(())
            }
            Self::Masquerade {
                address,
                service_port,
                theirs,
                ours,
            } => write!(
                f,
                "{address} of {service_port}: {theirs} is masqueraded now, and {ours} would be"
            ),
            Self::Sources {
                address,
                service_port,
                theirs,
                ours,
            } => write!(
                f,
                "{address} of {service_port} is open to {} now, and would be to {}",
                ranges(theirs),
                ranges(ours)
            ),
            Self::Affinity {
                service_port,
                theirs,
                ours,
            } => {
                let kept = |seconds: &Option<u32>| match seconds {
                    Some(seconds) => format!("for {seconds} s"),
                    None => "not at all".to_owned(),
                };
                write!(
                    f,
                    "clients of {service_port} keep their endpoint {} now, and would {}",
                    kept(theirs),
                    kept(ours)
                )
            }
        }
    }
}

fn ranges(ranges: &[IpNet]) -> String {
    if ranges.is_empty() {
        return "everybody".to_owned();
    }
    let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

/// Finds what would change for connections if our rules came in another proxy's place, in order.
/// Destinations and endpoints are compared, and where both serve, and the other's rules tell, who is
/// masqueraded, who may connect, and who keeps an endpoint.
pub fn differences<F: Family>(theirs: &Served<F>, ours: &FamilyRuleset<F>) -> Vec<Difference> {
    let rows = services_of(ours);
    let mut destinations = BTreeMap::new();
    for row in &rows {
        for at in &row.destinations {
            let treatment = match at.outcome.as_str() {
                "refuse" => Treatment::Refused,
                "drop" => Treatment::Dropped,
                _ => Treatment::Served,
            };
            destinations.insert(at.address, (&row.service_port, treatment));
        }
    }
    let known = theirs.destinations.iter();
    let known: BTreeMap<_, _> = known
        .map(|(destination, treatment)| (ServiceAddress::from(*destination), *treatment))
        .collect();
    let all: BTreeSet<_> = known.keys().chain(destinations.keys()).collect();
    let mut differences: Vec<_> = all
        .into_iter()
        .filter_map(|address| {
            let theirs = known.get(address).copied();
            let ours = destinations.get(address);
            (theirs != ours.map(|(_, treatment)| *treatment)).then(|| Difference::Destination {
                address: *address,
                service_port: ours.map(|(service_port, _)| (*service_port).clone()),
                theirs,
                ours: ours.map(|(_, treatment)| *treatment),
            })
        })
        .collect();
    if let Some(details) = &theirs.details {
        let known = known.iter();
        let is_served = known.filter(|(_, treatment)| **treatment == Treatment::Served);
        let served: BTreeSet<_> = is_served.map(|(address, _)| *address).collect();
        rows.iter()
            .for_each(|row| compare_details(details, row, &served, &mut differences));
    }
    for row in rows {
        let Some(theirs) = theirs.endpoints.get(&row.service_port) else {
            continue;
        };
        let theirs: BTreeSet<_> = theirs.iter().map(|endpoint| socket(*endpoint)).collect();
        let ours: BTreeSet<_> = row.endpoints.iter().map(|it| it.address).collect();
        if theirs != ours && !ours.is_empty() {
            differences.push(Difference::Endpoints {
                service_port: row.service_port,
                only_theirs: theirs.difference(&ours).copied().collect(),
                only_ours: ours.difference(&theirs).copied().collect(),
            });
        }
    }
    differences.sort();
    differences
}

/// Compares a Service port at the destinations that the other serves.
fn compare_details<F: Family>(
    theirs: &Details<F>,
    row: &ServiceRow,
    served: &BTreeSet<ServiceAddress>,
    differences: &mut Vec<Difference>,
) {
    let by_address = |destination: &Destination<F>| ServiceAddress::from(*destination);
    let masquerade: BTreeMap<_, _> = theirs
        .masquerade
        .iter()
        .map(|(at, whom)| (by_address(at), *whom))
        .collect();
    let sources: BTreeMap<_, _> = theirs
        .sources
        .iter()
        .map(|(at, ranges)| (by_address(at), ranges))
        .collect();
    let service_port = &row.service_port;
    let refuses = |outcome: &str| matches!(outcome, "refuse" | "drop");
    let mut is_shared = false;
    for at in &row.destinations {
        if refuses(&at.outcome) || !served.contains(&at.address) {
            continue;
        }
        is_shared = true;
        let ours = match at.masquerade {
            "all" => Masquerade::Everybody,
            "not pods" => Masquerade::AllButPods,
            "node" => Masquerade::Node,
            _ => Masquerade::Nobody,
        };
        if let Some(theirs) = masquerade
            .get(&at.address)
            .filter(|theirs| **theirs != ours)
        {
            differences.push(Difference::Masquerade {
                address: at.address,
                service_port: service_port.clone(),
                theirs: *theirs,
                ours,
            });
        }
        let ours: Vec<IpNet> = at.sources.iter().filter_map(|it| it.parse().ok()).collect();
        let ours = IpNet::aggregate(&ours);
        let nobody = Vec::new();
        let theirs = sources.get(&at.address).copied().unwrap_or(&nobody);
        if *theirs != ours {
            differences.push(Difference::Sources {
                address: at.address,
                service_port: service_port.clone(),
                theirs: theirs.clone(),
                ours,
            });
        }
    }
    let kept = theirs.affinity.get(service_port).copied();
    if is_shared && kept != row.affinity {
        differences.push(Difference::Affinity {
            service_port: service_port.clone(),
            theirs: kept,
            ours: row.affinity,
        });
    }
}
