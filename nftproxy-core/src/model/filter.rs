//! Which Services and endpoints of the cluster an instance takes.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Locality, Protocol, Service};

/// What an embedder leaves out of the cluster: Services that somebody else proxies, endpoints that
/// a policy forbids.
///
/// [`State`](super::State) asks when an object comes, and compilation when a Service is compiled.
/// So answers may change only together with a call of [`State::refilter`](super::State::refilter)
/// or [`State::refilter_service`](super::State::refilter_service).
///
/// ```
/// # use nftproxy_core::model::{EndpointView, Filter, Service, ServiceName, State};
/// # use std::sync::Arc;
/// /// Leaves the namespace `kube-system` to another proxy.
/// struct Others;
///
/// impl Filter for Others {
///     fn owns(&self, service: &Service) -> bool {
///         service.name.parts().0 != "kube-system"
///     }
/// }
///
/// let mut state = State::with_filter(Arc::new(Others));
/// state.apply_service(Service::new(ServiceName::new("kube-system", "dns")?));
/// assert_eq!(state.services().count(), 0);
/// # Ok::<(), nftproxy_core::model::NameError>(())
/// ```
pub trait Filter: Send + Sync {
    /// Whether a Service is this instance's to proxy. One that is not is as good as deleted.
    fn owns(&self, service: &Service) -> bool {
        let _ = service;
        true
    }

    /// Whether an endpoint counts. One that does not is as good as not in its slice: it gets no
    /// connections, its UDP flows are forgotten, and health checks do not count it.
    fn allows(&self, service: &Service, endpoint: &EndpointView) -> bool {
        let _ = (service, endpoint);
        true
    }
}

/// Whoever holds a filter can be printed; what is in the filter is its own business.
impl fmt::Debug for dyn Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}

/// An endpoint of a Service port, for a [`Filter`] to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView {
    /// The address that connections are sent to.
    pub address: IpAddr,
    /// The port that they are sent to, after translation.
    pub port: NonZeroU16,
    /// The protocol.
    pub protocol: Protocol,
    /// `conditions.ready`
    pub ready: bool,
    /// `conditions.serving`
    pub serving: bool,
    /// `conditions.terminating`
    pub terminating: bool,
    /// Whether it is on this node.
    pub locality: Locality,
}
