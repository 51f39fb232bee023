//! Who owns a destination that several Service ports claim. Entry point: [`Claims`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use indexmap::IndexMap;
use indexmap::map::Entry;

use super::port;
use crate::model::{Family, Protocol, Service, ServiceName};
use crate::ruleset::Comment;
use crate::ruleset::element::Destination;

/// A Service port's claim to a destination. The smallest claim wins: a ClusterIP before other
/// addresses, then the oldest Service, then by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// By which field it is claimed.
    pub kind: ClaimKind,
    /// When the Service was created, in seconds since 1970.
    pub created: i64,
    /// The Service.
    pub service: ServiceName,
    /// `namespace/name:port`, cut to what a comment can hold.
    pub port: Comment,
}

/// By which field an address or port belongs to a Service; the order is that of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClaimKind {
    /// `spec.clusterIPs`
    ClusterIp,
    /// `spec.externalIPs`, `status.loadBalancer.ingress`, `nodePort`
    External,
}

/// All claims, with those that lost kept apart, as they are few.
///
/// ```
/// # use nftproxy_core::compile::{Claims, claims_of};
/// # use nftproxy_core::model::{Protocol, Service, ServiceName, ServicePort, V4};
/// # let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
/// # let at = |name| Service::at(ServiceName::new("shop", name).unwrap(), [10, 96, 0, 1].into(), [port.clone()]);
/// let mut claims = Claims::<V4>::default();
/// // Two Services at one address; both are as old, so the name decides.
/// for service in [at("web"), at("api")] {
///     for (destination, claim) in claims_of::<V4>(&service) {
///         claims.add(destination, claim);
///     }
/// }
/// let (destination, _) = &claims_of::<V4>(&at("web"))[0];
/// let owner = claims.owner(destination).expect("there are two who want it");
/// assert_eq!(owner.service.as_str(), "shop/api");
/// # Ok::<(), std::num::TryFromIntError>(())
/// ```
#[derive(Debug, Default)]
pub struct Claims<F: Family> {
    owners: IndexMap<Destination<F>, Claim>,
    losers: BTreeMap<Destination<F>, BTreeSet<Claim>>,
}

impl<F: Family> Claims<F> {
    /// Who owns the destination.
    pub fn owner(&self, destination: &Destination<F>) -> Option<&Claim> {
        self.owners.get(destination)
    }

    /// Adds a claim. Returns the Service that loses the destination by it.
    pub fn add(&mut self, destination: Destination<F>, mut claim: Claim) -> Option<ServiceName> {
        match self.owners.entry(destination) {
            Entry::Vacant(entry) => {
                entry.insert(claim);
                None
            }
            Entry::Occupied(mut entry) => {
                let displaced = (claim < *entry.get()).then(|| {
                    std::mem::swap(entry.get_mut(), &mut claim);
                    claim.service.clone()
                });
                self.losers.entry(destination).or_default().insert(claim);
                displaced
            }
        }
    }

    /// Removes a claim. Returns the Service that gets the destination by it.
    pub fn remove(&mut self, destination: &Destination<F>, claim: &Claim) -> Option<ServiceName> {
        let losers = self.losers.get_mut(destination);
        if self.owners.get(destination) != Some(claim) {
            losers?.remove(claim);
            self.forget_if_uncontested(destination);
            return None;
        }
        match losers.and_then(BTreeSet::pop_first) {
            None => {
                self.owners.swap_remove(destination);
                None
            }
            Some(heir) => {
                let service = heir.service.clone();
                self.owners.insert(*destination, heir);
                self.forget_if_uncontested(destination);
                Some(service)
            }
        }
    }

    /// The Services that would have the destination if it were not another's.
    pub(super) fn losers(
        &self,
        destination: &Destination<F>,
    ) -> impl Iterator<Item = &ServiceName> {
        let losers = self.losers.get(destination);
        losers.into_iter().flatten().map(|claim| &claim.service)
    }

    /// The Services that own an address at one of these ports.
    ///
    /// It looks at all destinations, for the sake of what hardly ever happens.
    pub(super) fn at_ports<'a>(
        &'a self,
        ports: &'a BTreeSet<(Protocol, NonZeroU16)>,
    ) -> impl Iterator<Item = &'a ServiceName> {
        self.owners
            .iter()
            .filter(|(destination, _)| {
                destination.address.is_some()
                    && ports.contains(&(destination.protocol, destination.port))
            })
            .map(|(_, claim)| &claim.service)
    }

    fn forget_if_uncontested(&mut self, destination: &Destination<F>) {
        if self.losers.get(destination).is_some_and(BTreeSet::is_empty) {
            self.losers.remove(destination);
        }
    }
}

/// A Service's claims, in order of destination; each destination once.
pub fn claims_of<F: Family>(service: &Service) -> Vec<(Destination<F>, Claim)> {
    let mut claims = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let routes = port::routes::<F>(service, port);
        if routes.is_empty() {
            continue;
        }
        let comment = port::comment(service, port);
        claims.extend(routes.into_iter().map(|route| {
            let claim = Claim {
                kind: route.kind,
                created: service.created,
                service: service.name.clone(),
                port: comment.clone(),
            };
            (route.destination, claim)
        }));
    }
    claims.sort();
    claims.dedup_by_key(|(destination, _)| *destination);
    // There is one such list for each Service.
    claims.shrink_to_fit();
    claims
}
