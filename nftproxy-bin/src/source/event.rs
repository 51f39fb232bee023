//! What can happen to the proxy, as one closed enum.
//!
//! Whoever watches something turns it into events; the daemon's loop is their only reader.

use jiff::Timestamp;
use nftproxy_core::engine;
use nftproxy_core::model::{EndpointSlice, NodeInfo};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The engine can be told as it is.
    Cluster(engine::Event),
    /// A slice was added or changed.
    SliceApplied {
        slice: EndpointSlice,
        /// When that happened in the cluster which it was changed for, if anybody noted it.
        triggered: Option<Timestamp>,
    },
    /// This node's object was added or changed.
    NodeApplied {
        info: NodeInfo,
        /// Whether load balancers may send traffic to it: it is not about to go.
        is_eligible: bool,
    },
    /// This node's object is gone.
    NodeDeleted,
    /// An address came to an interface of this host, or went.
    AddressesChanged,
}

impl From<engine::Event> for Event {
    fn from(event: engine::Event) -> Self {
        Self::Cluster(event)
    }
}
