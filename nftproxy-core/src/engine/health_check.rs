//! What the health-check node ports of Services answer, and where.
//!
//! Sockets are the owner's: [`HealthChecks`] says what is to listen, [`HealthCheckAnswer`] what it
//! says.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::compile::{HealthCheck, health_check};
use crate::model::{Family, IpFamily, Node, NodePortAddresses, ServiceName, State};

/// What a sync of a family means for its health-check node ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChecks {
    /// The family.
    pub family: IpFamily,
    /// Where to listen; `0.0.0.0` or `::` stands for everywhere.
    pub addresses: BTreeSet<IpAddr>,
    /// Services that may have changed, with what they want now.
    pub changed: Vec<(ServiceName, Option<HealthCheck>)>,
}

impl HealthChecks {
    /// `changed` are the Services that may have changed since the last time.
    pub fn new<F: Family>(state: &State, node: &Node, changed: &BTreeSet<ServiceName>) -> Self {
        let any: IpAddr = match F::FAMILY {
            IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            family: F::FAMILY,
            addresses: match node.node_port_addresses::<F>() {
                NodePortAddresses::All => [any].into(),
                NodePortAddresses::Only(ips) => ips.clone(),
            },
            changed: changed
                .iter()
                .map(|name| (name.clone(), health_check::<F>(state, name)))
                .collect(),
        }
    }
}

/// The answer to any HTTP request to a health-check node port; kube-proxy's to the byte, as somebody
/// may read it.
///
/// ```
/// # use nftproxy_core::engine::HealthCheckAnswer;
/// # use nftproxy_core::model::ServiceName;
/// let answer = HealthCheckAnswer {
///     service: &ServiceName::new("shop", "web")?,
///     local_endpoints: 2,
///     is_healthy: true,
/// };
/// assert_eq!(answer.status(), 200);
/// assert_eq!(answer.headers()[2], ("X-Load-Balancing-Endpoint-Weight", "2".to_owned()));
/// assert!(answer.body().contains("\"localEndpoints\": 2"));
/// # Ok::<(), nftproxy_core::model::NameError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheckAnswer<'a> {
    /// The Service.
    pub service: &'a ServiceName,
    /// [`HealthCheck::n_local_ready`]
    pub local_endpoints: usize,
    /// Whether the proxy keeps up: [`Health::is_healthy`](super::Health::is_healthy).
    pub is_healthy: bool,
}

impl HealthCheckAnswer<'_> {
    /// The status code: 200 if the node can serve, else 503.
    pub fn status(&self) -> u16 {
        if self.local_endpoints > 0 && self.is_healthy {
            200
        } else {
            503
        }
    }

    /// Names and values of the headers that say something.
    pub fn headers(&self) -> [(&'static str, String); 3] {
        [
            ("Content-Type", "application/json".into()),
            ("X-Content-Type-Options", "nosniff".into()),
            (
                "X-Load-Balancing-Endpoint-Weight",
                self.local_endpoints.to_string(),
            ),
        ]
    }

    /// The body: JSON, indented by tabs.
    pub fn body(&self) -> String {
        // Nothing in names has to be escaped.
        let (namespace, name) = self.service.parts();
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\
             \t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {}\n}}",
            namespace, name, self.local_endpoints, self.is_healthy
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-121
    #[test]
    fn the_body_is_kube_proxys() {
        let name = ServiceName::new("shop", "web").unwrap();
        let answer = HealthCheckAnswer {
            service: &name,
            local_endpoints: 0,
            is_healthy: false,
        };
        let parsed: serde_json::Value = serde_json::from_str(&answer.body()).unwrap();
        assert_eq!(parsed["service"]["namespace"], "shop");
        assert_eq!(parsed["service"]["name"], "web");
        assert_eq!(parsed["localEndpoints"], 0);
        assert_eq!(answer.status(), 503);
    }
}
