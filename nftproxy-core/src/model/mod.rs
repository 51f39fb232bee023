//! What the cluster asks for, as compact plain data.
//!
//! This module knows nothing of nftables, and holds no Kubernetes objects: the
//! conversion in [`crate::k8s`] keeps only what rules can depend on.
//! Read [`State`] first: it is where events go in.

mod balancing;
pub(crate) mod counted;
mod endpoint;
mod family;
mod filter;
mod name;
mod node;
pub(crate) mod presence;
mod service;
mod state;

pub use balancing::{Balancing, Method};
pub use endpoint::{
    Endpoint, EndpointAddress, EndpointSlice, Hints, Locality, NodeHint, SliceEndpoints, SliceName,
    SlicePort,
};
pub use family::{Family, IpFamily, V4, V6};
pub use filter::{EndpointView, Filter};
pub use name::{InterfaceName, NameError, PortName, check_label_value, check_subdomain};
pub use node::{DetectLocal, Detector, Node, NodeInfo, NodePortAddresses};
pub use service::{
    ClusterIps, Kept, Protocol, Service, ServiceAddress, ServiceName, ServicePort, ServicePortName,
    TrafficPolicy,
};
pub(crate) use state::Known;
pub use state::State;
