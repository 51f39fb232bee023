//! What another service proxy does against what our rules would. Entry point: [`differences`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use super::found::services_of;
use super::services::socket;
use crate::model::{Family, ServiceAddress};
use crate::neighbour::{Served, Treatment};
use crate::ruleset::FamilyRuleset;

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
        }
    }
}

/// Finds what would change for connections if our rules came in another proxy's place, in order. Only
/// destinations and endpoints are compared: not who is masqueraded, filtered or remembered.
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
