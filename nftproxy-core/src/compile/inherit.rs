//! What another proxy's memory becomes ours, when it is taken over.
//!
//! kube-proxy has, in nftables mode, a set for each endpoint of a Service port with session
//! affinity, named after both, with the clients that got it last. Entry points: [`Learned::of_set`]
//! and [`Compilation::inherit`].

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use super::Compilation;
use super::port::{PortRules, Route};
use crate::model::{EndpointAddress, Family, IpFamily, Protocol, ServiceName};
use crate::ruleset::Comment;
use crate::ruleset::element::{Destination, Element};
use crate::ruleset::schema::AFFINITY_MAX_CLIENTS;

/// The clients of one endpoint of one Service port, as another proxy has learned them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned<F: Family> {
    /// The Service.
    pub service: ServiceName,
    /// The protocol of its port.
    pub protocol: Protocol,
    /// The name of its port; may be empty.
    pub port: Box<str>,
    /// The endpoint they got.
    pub endpoint: EndpointAddress<F>,
    /// Them, and for how long they are to keep it.
    pub clients: Vec<(F::Address, Duration)>,
}

impl<F: Family> Learned<F> {
    /// Reads the name of a set in kube-proxy's table, `affinity-HASH-namespace/name/protocol/port__ip/port`
    /// with dots for the colons of IPv6. `None` if it is no such set, or its name is so long that
    /// kube-proxy has cut it.
    ///
    /// ```
    /// # use nftproxy_core::compile::Learned;
    /// # use nftproxy_core::model::V6;
    /// let learned = Learned::<V6>::of_set("affinity-5OJB2KTY-shop/web/tcp/http__fd00.244..5/8080");
    /// let endpoint = learned.expect("it is one").endpoint;
    /// assert_eq!((endpoint.address, endpoint.port.get()), ("fd00:244::5".parse()?, 8080));
    /// assert_eq!(Learned::<V6>::of_set("service-ips"), None);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn of_set(name: &str) -> Option<Self> {
        Self::of_name(name.strip_prefix("affinity-")?)
    }

    /// Reads the end of the names of sets and chains that kube-proxy has for an endpoint.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let (_hash, rest) = name.split_once('-')?;
        let (service_port, endpoint) = rest.split_once("__")?;
        let mut parts = service_port.split('/');
        let service = ServiceName::new(parts.next()?, parts.next()?).ok()?;
        let protocol = Protocol::from_kubernetes(&parts.next()?.to_uppercase())?;
        let port = parts.next()?.into();
        let (ip, endpoint_port) = endpoint.split_once('/')?;
        let ip = match F::FAMILY {
            IpFamily::V4 => ip.to_owned(),
            IpFamily::V6 => ip.replace('.', ":"),
        };
        parts.next().is_none().then_some(Self {
            service,
            protocol,
            port,
            endpoint: EndpointAddress {
                address: F::address(ip.parse().ok()?)?,
                port: endpoint_port.parse::<NonZeroU16>().ok()?,
            },
            clients: Vec::new(),
        })
    }
}

impl<F: Family> Learned<F> {
    /// The Service port, as comments of elements name it.
    pub(crate) fn comment(&self) -> Comment {
        let service = self.service.as_str();
        if self.port.is_empty() {
            return Comment::new(service);
        }
        Comment::new(&format!("{service}:{}", self.port))
    }
}

/// An element of `affinity` that no rule of ours has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered<F: Family> {
    /// The element.
    pub element: Element<F>,
    /// How long such are remembered, without a new connection.
    pub timeout: Duration,
    /// How long this one still is; not longer than that.
    pub expires: Duration,
}

impl<F: Family> Compilation<F> {
    /// What of another proxy's memory is to be ours, in order of elements.
    ///
    /// kube-proxy remembers for a Service port as a whole, so a client gets the same endpoint at
    /// each of its destinations where that is one of those to be had; `node_port_ips` are where
    /// NodePorts are. A client with several gets the one it used last.
    pub fn inherit(
        &self,
        learned: &[Learned<F>],
        node_port_ips: &[F::Address],
    ) -> Vec<Remembered<F>> {
        let mut remembered = BTreeMap::new();
        for learned in learned {
            for rules in self.rules_of(learned) {
                let Some(seconds) = rules.affinity else {
                    continue;
                };
                let timeout = Duration::from_secs(seconds.get().into());
                let routes = rules.routes.iter().filter(|route| {
                    route.destination.protocol == learned.protocol
                        && rules.leads_to(&route.destination, &learned.endpoint)
                });
                for destination in routes.flat_map(|route| self.addressed(route, node_port_ips)) {
                    for (client, expires) in &learned.clients {
                        let element = Element::remembered(*client, destination, learned.endpoint);
                        let new = Remembered {
                            element,
                            timeout,
                            expires: timeout.min(*expires),
                        };
                        let known = remembered.entry(new.element.identity());
                        let known = known.or_insert_with(|| new.clone());
                        if known.expires < new.expires {
                            *known = new;
                        }
                    }
                }
            }
        }
        let mut remembered: Vec<_> = remembered.into_values().collect();
        let max = AFFINITY_MAX_CLIENTS as usize;
        if remembered.len() > max {
            remembered.sort_by_key(|remembered| std::cmp::Reverse(remembered.expires));
            remembered.truncate(max);
            remembered.sort_by(|a, b| a.element.cmp(&b.element));
        }
        remembered
    }

    fn rules_of(&self, learned: &Learned<F>) -> impl Iterator<Item = &PortRules<F>> {
        let comment = learned.comment();
        let compiled = self.services.get(&learned.service);
        let ports = compiled.into_iter().flat_map(|service| &service.ports);
        ports.filter(move |rules| rules.comment == comment)
    }

    /// The addresses of a destination, without those where another Service port's own come first.
    fn addressed(&self, route: &Route<F>, node_port_ips: &[F::Address]) -> Vec<Destination<F>> {
        let destination = route.destination;
        if destination.address.is_some() {
            return vec![destination];
        }
        let at = node_port_ips.iter().map(|ip| Destination {
            address: Some(*ip),
            ..destination
        });
        at.filter(|destination| self.claims.owner(destination).is_none())
            .collect()
    }
}
