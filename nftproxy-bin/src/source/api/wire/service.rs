//! Services.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::meta::Metadata;
use super::protobuf::{Fields, Unreadable, Value};
use super::{Encoding, Object};

impl Object for Service {
    fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        match encoding {
            Encoding::Json => Ok(serde_json::from_slice::<Json>(bytes)?.into()),
            Encoding::Protobuf => from_protobuf(bytes),
        }
    }

    fn bare(metadata: ObjectMeta) -> Self {
        Self {
            metadata,
            ..Self::default()
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

fn from_protobuf(bytes: &[u8]) -> Result<Service, Unreadable> {
    let mut service = Service::default();
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => service.metadata = Metadata::from_protobuf(value.bytes()?)?.into(),
            2 => service.spec = Some(spec(value)?),
            3 => service.status = Some(status(value)?),
            _ => {}
        }
    }
    Ok(service)
}

fn spec(value: Value<'_>) -> Result<ServiceSpec, Unreadable> {
    let mut spec = ServiceSpec::default();
    let push = |list: &mut Option<Vec<String>>, value: Value<'_>| -> Result<(), Unreadable> {
        list.get_or_insert_default().push(value.string()?);
        Ok(())
    };
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => spec.ports.get_or_insert_default().push(port(value)?),
            3 => spec.cluster_ip = value.optional_string()?,
            4 => spec.type_ = value.optional_string()?,
            5 => push(&mut spec.external_ips, value)?,
            7 => spec.session_affinity = value.optional_string()?,
            9 => push(&mut spec.load_balancer_source_ranges, value)?,
            11 => spec.external_traffic_policy = value.optional_string()?,
            12 => spec.health_check_node_port = Some(value.int32()?),
            14 => spec.session_affinity_config = Some(affinity(value)?),
            18 => push(&mut spec.cluster_ips, value)?,
            19 => push(&mut spec.ip_families, value)?,
            22 => spec.internal_traffic_policy = Some(value.string()?),
            _ => {}
        }
    }
    Ok(spec)
}

fn port(value: Value<'_>) -> Result<ServicePort, Unreadable> {
    let mut port = ServicePort::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => port.name = value.optional_string()?,
            2 => port.protocol = value.optional_string()?,
            3 => port.port = value.int32()?,
            5 => port.node_port = Some(value.int32()?),
            _ => {}
        }
    }
    Ok(port)
}

fn affinity(value: Value<'_>) -> Result<SessionAffinityConfig, Unreadable> {
    let mut config = SessionAffinityConfig::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            let client_ip = config.client_ip.get_or_insert_default();
            let mut fields = Fields::new(value.bytes()?);
            while let Some((number, value)) = fields.next()? {
                if number == 1 {
                    client_ip.timeout_seconds = Some(value.int32()?);
                }
            }
        }
    }
    Ok(config)
}

fn status(value: Value<'_>) -> Result<ServiceStatus, Unreadable> {
    let mut ingress = Vec::new();
    let mut fields = Fields::new(Fields::only(value.bytes()?, 1)?);
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            let mut one = LoadBalancerIngress::default();
            let mut fields = Fields::new(value.bytes()?);
            while let Some((number, value)) = fields.next()? {
                match number {
                    1 => one.ip = value.optional_string()?,
                    3 => one.ip_mode = Some(value.string()?),
                    _ => {}
                }
            }
            ingress.push(one);
        }
    }
    Ok(with_ingress(ingress))
}

fn with_ingress(ingress: Vec<LoadBalancerIngress>) -> ServiceStatus {
    ServiceStatus {
        load_balancer: Some(LoadBalancerStatus {
            ingress: Some(ingress),
        }),
        ..ServiceStatus::default()
    }
}

#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<JsonSpec>,
    status: Option<JsonStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<i32>,
    internal_traffic_policy: Option<String>,
    ip_families: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    ports: Option<Vec<JsonPort>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<JsonAffinity>,
    #[serde(rename = "type")]
    type_: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonPort {
    name: Option<String>,
    protocol: Option<String>,
    // One without a number is told by the conversion.
    #[serde(default)]
    port: i32,
    node_port: Option<i32>,
}

#[derive(Deserialize)]
struct JsonAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Option<JsonClientIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonClientIp {
    timeout_seconds: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonStatus {
    load_balancer: Option<JsonLoadBalancer>,
}

#[derive(Deserialize)]
struct JsonLoadBalancer {
    ingress: Option<Vec<JsonIngress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl From<Json> for Service {
    fn from(json: Json) -> Self {
        Self {
            metadata: json.metadata.into(),
            spec: json.spec.map(Into::into),
            status: json.status.map(|status| {
                let balancer = status.load_balancer;
                let ingress = balancer.and_then(|balancer| balancer.ingress);
                let ingress = ingress.unwrap_or_default().into_iter();
                with_ingress(
                    ingress
                        .map(|ingress| LoadBalancerIngress {
                            ip: ingress.ip,
                            ip_mode: ingress.ip_mode,
                            ..LoadBalancerIngress::default()
                        })
                        .collect(),
                )
            }),
        }
    }
}

impl From<JsonSpec> for ServiceSpec {
    fn from(json: JsonSpec) -> Self {
        let client_ip = json.session_affinity_config.and_then(|c| c.client_ip);
        Self {
            cluster_ip: json.cluster_ip,
            cluster_ips: json.cluster_ips,
            external_ips: json.external_ips,
            external_traffic_policy: json.external_traffic_policy,
            health_check_node_port: json.health_check_node_port,
            internal_traffic_policy: json.internal_traffic_policy,
            ip_families: json.ip_families,
            load_balancer_source_ranges: json.load_balancer_source_ranges,
            ports: json.ports.map(|ports| {
                let ports = ports.into_iter().map(|port| ServicePort {
                    name: port.name,
                    protocol: port.protocol,
                    port: port.port,
                    node_port: port.node_port,
                    ..ServicePort::default()
                });
                ports.collect()
            }),
            session_affinity: json.session_affinity,
            session_affinity_config: client_ip.map(|client_ip| SessionAffinityConfig {
                client_ip: Some(ClientIPConfig {
                    timeout_seconds: client_ip.timeout_seconds,
                }),
            }),
            type_: json.type_,
            ..Self::default()
        }
    }
}
