//! Totals that only grow. Entry point: [`Tally`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Counts, Reason};
use crate::model::Family;
use crate::ruleset::Comment;
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::expr::Verdict;
use crate::ruleset::name::{ChainName, SetName};

/// Adds up what a table counts from one reading to the next, in one family.
///
/// The first reading is where it starts from: what was counted before is none of its totals. What
/// an element counts between the last reading and its end is lost.
#[derive(Debug, Clone)]
pub struct Tally<F: Family> {
    has_begun: bool,
    readings: u64,
    elements: BTreeMap<Element<F>, Last>,
    rules: BTreeMap<(ChainName, usize, Reason), Last>,
    connections: u64,
    refusals: BTreeMap<Reason, u64>,
    services: BTreeMap<Comment, ServiceTally>,
    are_endpoints_left_out: bool,
}

/// What a counter said last, and in which reading.
#[derive(Debug, Clone, Copy)]
struct Last {
    number: u64,
    reading: u64,
}

/// The totals of one Service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTally {
    /// New connections to where it has usable endpoints. Under the policy `Local`, those that were
    /// dropped for want of one on this node are among them.
    pub connections: u64,
    /// Those that were not let through.
    pub refusals: BTreeMap<Reason, u64>,
    /// Those that were led to an endpoint drawn at random; those of remembered clients are not
    /// among them.
    pub endpoints: BTreeMap<SocketAddr, u64>,
    reading: u64,
}

impl<F: Family> Default for Tally<F> {
    fn default() -> Self {
        Self {
            has_begun: false,
            readings: 0,
            elements: BTreeMap::new(),
            rules: BTreeMap::new(),
            connections: 0,
            refusals: BTreeMap::new(),
            services: BTreeMap::new(),
            are_endpoints_left_out: false,
        }
    }
}

impl<F: Family> Tally<F> {
    /// Takes the next reading.
    ///
    /// ```
    /// # use nftproxy_core::counts::{Counts, Tally};
    /// # use nftproxy_core::model::{Protocol, V4};
    /// # use nftproxy_core::ruleset::Comment;
    /// # use nftproxy_core::ruleset::element::{Destination, Element, Role};
    /// # use nftproxy_core::ruleset::expr::Verdict;
    /// # let destination = Destination::<V4> {
    /// #     address: Some([10, 96, 0, 1].into()),
    /// #     protocol: Protocol::Tcp,
    /// #     port: 80.try_into()?,
    /// # };
    /// let element = Element::verdict(Role::Service, destination, Verdict::Drop)
    ///     .with_comment(Comment::new("shop/api"));
    /// let reading = |number| Counts {
    ///     elements: vec![(element.clone(), number)],
    ///     ..Counts::default()
    /// };
    /// let mut tally = Tally::default();
    /// // The element has been replaced between 107 and 3.
    /// for (number, total) in [(100, 0), (107, 7), (3, 10), (3, 10)] {
    ///     tally.add(reading(number));
    ///     assert_eq!(tally.connections(), total);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add(&mut self, counts: Counts<F>) {
        self.readings += 1;
        let reading = self.readings;
        let counts_now = std::mem::replace(&mut self.has_begun, true);
        let Counts {
            elements,
            rules,
            are_endpoints_left_out,
        } = counts;
        self.are_endpoints_left_out = are_endpoints_left_out;
        let owners: BTreeMap<Destination<F>, Comment> = elements
            .iter()
            .filter_map(|(element, _)| match (element.key(), element.comment()) {
                (Key::Destination(destination), Some(comment)) => {
                    Some((*destination, comment.clone()))
                }
                _ => None,
            })
            .collect();
        for (element, number) in elements {
            let owner = match element.key() {
                Key::Destination(destination) | Key::Slot(destination, _) => {
                    owners.get(destination)
                }
                _ => None,
            };
            let owner = owner.cloned();
            let number = grown(&mut self.elements, element.clone(), number, reading);
            self.count(&element, owner, if counts_now { number } else { 0 });
        }
        for (chain, place, reason, number) in rules {
            let number = grown(&mut self.rules, (chain, place, reason), number, reading);
            let total = self.refusals.entry(reason).or_default();
            *total += if counts_now { number } else { 0 };
        }
        // A reading can miss an element while the kernel grows the map, so it takes two to be gone.
        self.elements.retain(|_, last| last.reading + 1 >= reading);
        self.rules.retain(|_, last| last.reading + 1 >= reading);
        self.services
            .retain(|_, service| service.reading + 1 >= reading);
        let of_services = &mut self.services;
        let mut known: BTreeMap<&Comment, Vec<SocketAddr>> = BTreeMap::new();
        for element in self.elements.keys() {
            if let (Key::Slot(destination, _), Some(endpoint)) = (element.key(), socket(element))
                && let Some(owner) = owners.get(destination)
            {
                known.entry(owner).or_default().push(endpoint);
            }
        }
        for (name, service) in of_services.iter_mut() {
            let known = known.get(name).map(Vec::as_slice).unwrap_or_default();
            if service.endpoints.len() > known.len() || known.is_empty() {
                service
                    .endpoints
                    .retain(|endpoint, _| known.contains(endpoint));
            }
        }
    }

    /// Adds what one element has counted since the last reading.
    fn count(&mut self, element: &Element<F>, owner: Option<Comment>, number: u64) {
        let service = owner.map(|owner| {
            let service = self.services.entry(owner).or_default();
            service.reading = self.readings;
            service
        });
        match element.set() {
            // It goes on to be refused or dropped, and is counted there.
            SetName::Services if *element.data() == Data::Verdict(Verdict::Accept) => {}
            SetName::Services | SetName::NodePorts => {
                self.connections += number;
                if let Some(service) = service {
                    service.connections += number;
                }
            }
            SetName::Unavailable | SetName::UnavailableNodePorts => {
                let Some(reason) = Reason::of_element(element) else {
                    return;
                };
                *self.refusals.entry(reason).or_default() += number;
                if let Some(service) = service {
                    *service.refusals.entry(reason).or_default() += number;
                }
            }
            _ => {
                if let (Some(service), Some(endpoint)) = (service, socket(element)) {
                    *service.endpoints.entry(endpoint).or_default() += number;
                }
            }
        }
    }

    /// New connections to any Service port with usable endpoints.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// Connections that were not let through, for a reason.
    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refusals.get(&reason).copied().unwrap_or_default()
    }

    /// The Service ports that there are, by the names that comments give them.
    pub fn services(&self) -> impl Iterator<Item = (&str, &ServiceTally)> {
        let services = self.services.iter();
        services.map(|(name, service)| (name.as_str(), service))
    }

    /// Whether endpoints were left out of the last reading.
    pub fn are_endpoints_left_out(&self) -> bool {
        self.are_endpoints_left_out
    }
}

/// By how much a counter has grown since it was seen last. One that says less was made anew.
fn grown<K: Ord>(known: &mut BTreeMap<K, Last>, key: K, number: u64, reading: u64) -> u64 {
    let before = known.insert(key, Last { number, reading });
    match before {
        Some(last) if last.number <= number => number - last.number,
        _ => number,
    }
}

fn socket<F: Family>(element: &Element<F>) -> Option<SocketAddr> {
    match element.data() {
        Data::Endpoint(at) => Some(SocketAddr::new(at.address.into(), at.port.get())),
        _ => None,
    }
}
