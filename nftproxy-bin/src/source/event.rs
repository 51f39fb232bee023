//! What can happen to the proxy, as one closed enum.
//!
//! Whoever watches something turns it into events; the daemon's loop is their only reader.

use std::collections::BTreeSet;

use ipnet::IpNet;
use nftproxy_core::model::{EndpointSlice, Service, ServiceName, SliceName};

use super::NodeInfo;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A Service to be proxied was added or changed.
    ServiceApplied(Service),
    /// A Service is gone, or is no longer for us.
    ServiceDeleted(ServiceName),
    /// A list of Services is complete; there are no others.
    ServicesListed(BTreeSet<ServiceName>),
    /// A slice was added or changed.
    SliceApplied(EndpointSlice),
    /// A slice is gone, or is no longer for us.
    SliceDeleted(SliceName),
    /// A list of slices is complete; there are no others.
    SlicesListed(BTreeSet<SliceName>),
    /// A ServiceCIDR was added or changed.
    ServiceCidrApplied(String, Vec<IpNet>),
    /// A ServiceCIDR is gone.
    ServiceCidrDeleted(String),
    /// A list of ServiceCIDRs is complete; there are no others.
    ServiceCidrsListed(BTreeSet<String>),
    /// This node's object was added or changed.
    NodeApplied(NodeInfo),
    /// This node's object is gone.
    NodeDeleted,
    /// An address came to an interface of this host, or went.
    AddressesChanged,
}
