//! Services.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig,
};

use super::message::{Many, Number, One, Pointer, Text, Texts, message};
use super::meta::Meta;
use super::object;

object!(Service);

message!(Service {
    1 "metadata" metadata: Meta,
    2 "spec" spec: One,
    3 "status" status: One,
});

message!(ServiceSpec {
    1 "ports" ports: Many,
    3 "clusterIP" cluster_ip: Text,
    4 "type" type_: Text,
    5 "externalIPs" external_ips: Texts,
    7 "sessionAffinity" session_affinity: Text,
    9 "loadBalancerSourceRanges" load_balancer_source_ranges: Texts,
    11 "externalTrafficPolicy" external_traffic_policy: Text,
    12 "healthCheckNodePort" health_check_node_port: Number,
    14 "sessionAffinityConfig" session_affinity_config: One,
    18 "clusterIPs" cluster_ips: Texts,
    19 "ipFamilies" ip_families: Texts,
    22 "internalTrafficPolicy" internal_traffic_policy: Pointer,
});

message!(ServicePort {
    1 "name" name: Text,
    2 "protocol" protocol: Text,
    // One without a number is told by the conversion.
    3 "port" port: Number,
    5 "nodePort" node_port: Number,
});

message!(SessionAffinityConfig {
    1 "clientIP" client_ip: One,
});

message!(ClientIPConfig {
    1 "timeoutSeconds" timeout_seconds: Number,
});

message!(ServiceStatus {
    1 "loadBalancer" load_balancer: One,
});

message!(LoadBalancerStatus {
    1 "ingress" ingress: Many,
});

message!(LoadBalancerIngress {
    1 "ip" ip: Text,
    3 "ipMode" ip_mode: Pointer,
});
