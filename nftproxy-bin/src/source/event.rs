//! What can happen to the proxy, as one closed enum.
//!
//! Whoever watches something turns it into events; the daemon's loop is their only reader.

use nftproxy_core::engine;
use nftproxy_core::model::NodeInfo;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The engine can be told as it is.
    Cluster(engine::Event),
    /// This node's object was added or changed.
    NodeApplied(NodeInfo),
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
