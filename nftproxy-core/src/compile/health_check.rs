//! What a Service's health-check node port is to say, to load balancers that ask which nodes can
//! serve.
//!
//! It makes no rules, and knows nothing of whoever answers. Entry point: [`health_check`].

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use super::usable::candidates;
use crate::model::{Family, Locality, ServiceName, State};

/// A health-check node port, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// How many addresses this node's ready endpoints have, over all ports of the Service. Those
    /// that terminate may still get traffic, but load balancers are to turn away from them.
    pub n_local_ready: usize,
}

/// The health check of a Service in one family, if it has any there.
///
/// The cost is that of looking through the Service's endpoints once for each of its ports.
pub fn health_check<F: Family>(state: &State, name: &ServiceName) -> Option<HealthCheck> {
    let service = state.service(name)?;
    service.cluster_ip::<F>()?;
    let port = service.health_check_node_port?;
    let mut local_ready = BTreeSet::new();
    for service_port in &service.ports {
        let ready = candidates::<F>(service, service_port, state.slices(name), state.filter())
            .into_iter()
            .filter(|candidate| candidate.endpoint.ready)
            .filter(|candidate| candidate.endpoint.locality == Locality::Local);
        local_ready.extend(ready.map(|candidate| candidate.at.address));
    }
    Some(HealthCheck {
        port,
        n_local_ready: local_ready.len(),
    })
}
