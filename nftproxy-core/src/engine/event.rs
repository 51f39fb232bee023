//! What an engine is told.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::apply::Incident;
use crate::model::{EndpointSlice, Node, Service, ServiceName, SliceName};

/// Something that happened in the cluster or on this node.
#[derive(Debug, Clone)]
pub enum Event {
    /// A Service was added or changed.
    ServiceApplied(Service),
    /// A Service is gone.
    ServiceDeleted(ServiceName),
    /// A list of Services is complete: all were applied, and there are no others.
    ServicesListed(BTreeSet<ServiceName>),
    /// A slice was added or changed.
    SliceApplied(EndpointSlice),
    /// A slice is gone.
    SliceDeleted(SliceName),
    /// A list of slices is complete: all were applied, and there are no others.
    SlicesListed(BTreeSet<SliceName>),
    /// The whole cluster, for whoever has it at hand at once: these Services and slices, and no
    /// others. What equals what was there before costs a comparison.
    Replaced {
        /// All Services.
        services: Vec<Service>,
        /// All slices.
        slices: Vec<EndpointSlice>,
    },
    /// A ServiceCIDR was added or changed.
    ServiceCidrApplied(String, Vec<IpNet>),
    /// A ServiceCIDR is gone.
    ServiceCidrDeleted(String),
    /// A list of ServiceCIDRs is complete: all were applied, and there are no others.
    ServiceCidrsListed(BTreeSet<String>),
    /// This node is known, or has changed.
    NodeChanged(Node),
    /// This is what is known of this node so far; more is to come, and may be waited for
    /// ([`Options::node_patience`](super::Options::node_patience)).
    NodeGuessed(Node),
    /// The addresses on this host's interfaces are these. It matters to UDP flows only, where all
    /// local addresses accept NodePorts.
    LocalAddressesChanged(Vec<IpAddr>),
    /// The filter may answer otherwise for these Services; `None` for all.
    FilterChanged(Option<BTreeSet<ServiceName>>),
    /// Somebody else may have changed the tables: the next sync compares them as a whole.
    Distrusted,
    /// Somebody else has changed a table, as a [`Monitor`](crate::apply::netlink::Monitor) tells:
    /// it is set right at once.
    Touched(Incident),
    /// Whether each change by others is told by [`Event::Touched`] from now on. As long as it is
    /// not, the kernel is asked each sync period whether anybody has committed anything.
    Watched(bool),
}
