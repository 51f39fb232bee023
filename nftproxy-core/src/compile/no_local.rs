//! How many ports of a Service are of no use on this node: their policy is `Local`, and all their
//! endpoints are elsewhere.
//!
//! It makes no rules; somebody may watch the number. Entry point: [`no_local_endpoints`].

use super::usable::usable;
use crate::model::{Family, ServiceName, State, TrafficPolicy};

/// Ports of a Service with endpoints, but none on this node, by the policy that keeps to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoLocalEndpoints {
    /// Under `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// Under `externalTrafficPolicy: Local`.
    pub external: usize,
}

/// Counts the ports of one Service in one family. The cost is that of looking through the Service's
/// endpoints once for each of its ports, if it has such a policy.
pub fn no_local_endpoints<F: Family>(state: &State, name: &ServiceName) -> NoLocalEndpoints {
    let mut count = NoLocalEndpoints::default();
    let Some(service) = state.service(name) else {
        return count;
    };
    let internal = service.internal_traffic_policy == TrafficPolicy::Local;
    let external = service.external_traffic_policy == TrafficPolicy::Local;
    if !internal && !external || service.cluster_ip::<F>().is_none() {
        return count;
    }
    for port in &service.ports {
        let usable = usable::<F>(service, port, state.slices(name), None, state.filter());
        if !usable.cluster.is_empty() && usable.local.is_empty() {
            count.internal += usize::from(internal);
            count.external += usize::from(external);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Endpoint, EndpointSlice, Locality, Protocol, Service, ServicePort, SlicePort, V4,
    };

    /// O-136
    #[test]
    fn ports_with_endpoints_elsewhere_are_counted() {
        let name = ServiceName::new("shop", "web").unwrap();
        let port = 80.try_into().unwrap();
        let count = |internal, locality: Option<Locality>| {
            let mut state = State::default();
            let ports = [ServicePort::new(Protocol::Tcp, port)];
            let mut service = Service::at(name.clone(), [10, 96, 0, 1].into(), ports);
            service.internal_traffic_policy = internal;
            service.external_traffic_policy = TrafficPolicy::Local;
            state.apply_service(service);
            let endpoints = locality.map(|locality| Endpoint {
                locality,
                ..Endpoint::<V4>::ready([10, 244, 0, 1].into())
            });
            let endpoints = endpoints.into_iter().collect();
            let ports = [SlicePort::new(Protocol::Tcp, port)];
            state.apply_slice(EndpointSlice::of(&name, ports, endpoints));
            let count = no_local_endpoints::<V4>(&state, &name);
            (count.internal, count.external)
        };
        assert_eq!(count(TrafficPolicy::Local, Some(Locality::Remote)), (1, 1));
        assert_eq!(
            count(TrafficPolicy::Cluster, Some(Locality::Remote)),
            (0, 1)
        );
        assert_eq!(count(TrafficPolicy::Local, Some(Locality::Local)), (0, 0));
        assert_eq!(count(TrafficPolicy::Local, None), (0, 0), "nobody has any");
    }
}
