//! The `KubeProxyConfiguration` document: its fields, as kube-proxy's v1alpha1 API has them, and
//! their defaults.
//!
//! Values keep the types of the document (an address is text here); what they mean and whether they
//! are valid is decided in `validate.rs`. A field that is a pointer in Go is an `Option` here: it
//! keeps an explicit zero, whereas the zero of any other field counts as unset.
//! Entry points: [`KubeProxyConfiguration::decode`] and [`KubeProxyConfiguration::set_defaults`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::{append_port_if_needed, parse_ip};
use super::decode::{DecodeError, decode};
use super::duration::GoDuration;

pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(crate) const KIND: &str = "KubeProxyConfiguration";

pub(crate) const HEALTHZ_PORT: u16 = 10256;
pub(crate) const METRICS_PORT: u16 = 10249;
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct KubeProxyConfiguration {
    pub(crate) kind: String,
    pub(crate) api_version: String,
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) client_connection: ClientConnection,
    pub(crate) logging: Logging,
    pub(crate) hostname_override: String,
    pub(crate) bind_address: String,
    pub(crate) healthz_bind_address: String,
    pub(crate) metrics_bind_address: String,
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) enable_profiling: bool,
    pub(crate) show_hidden_metrics_for_version: String,
    pub(crate) mode: String,
    pub(crate) iptables: Iptables,
    pub(crate) ipvs: Ipvs,
    pub(crate) nftables: Nftables,
    pub(crate) winkernel: Winkernel,
    pub(crate) detect_local_mode: String,
    pub(crate) detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub(crate) cluster_cidr: String,
    #[serde(serialize_with = "null_if_empty")]
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) conntrack: Conntrack,
    pub(crate) config_sync_period: GoDuration,
    pub(crate) port_range: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) windows_run_as_service: bool,
    /// What kube-proxy does not know, and so ignores.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) nftproxy: Own,
}

/// Options of nftproxy's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Own {
    /// URLs of API servers, over that of the kubeconfig.
    pub(crate) api_servers: Vec<String>,
    /// Levels of single modules: `engine=trace,source=debug`.
    pub(crate) log_filter: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConnection {
    pub(crate) kubeconfig: String,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    #[serde(serialize_with = "as_go_writes_it", deserialize_with = "finite")]
    pub(crate) qps: f32,
    pub(crate) burst: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Logging {
    pub(crate) format: String,
    #[serde(deserialize_with = "duration_or_nanoseconds")]
    pub(crate) flush_frequency: GoDuration,
    pub(crate) verbosity: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) vmodule: Vec<VmoduleItem>,
    pub(crate) options: LoggingOptions,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VmoduleItem {
    pub(crate) file_pattern: String,
    pub(crate) verbosity: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LoggingOptions {
    pub(crate) text: LogStreamOptions,
    pub(crate) json: LogStreamOptions,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LogStreamOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) split_stream: bool,
    /// A Kubernetes quantity, such as `64Ki`.
    #[serde(deserialize_with = "text_or_integer")]
    pub(crate) info_buffer_size: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Iptables {
    pub(crate) masquerade_bit: Option<i32>,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: Option<bool>,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipvs {
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    pub(crate) scheduler: String,
    #[serde(rename = "excludeCIDRs", serialize_with = "null_if_empty")]
    pub(crate) exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub(crate) strict_arp: bool,
    pub(crate) tcp_timeout: GoDuration,
    pub(crate) tcp_fin_timeout: GoDuration,
    pub(crate) udp_timeout: GoDuration,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Nftables {
    pub(crate) masquerade_bit: Option<i32>,
    pub(crate) masquerade_all: bool,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    /// Whether [`Self::min_sync_period`] is somebody's wish, and not what kube-proxy does without.
    #[serde(skip)]
    pub(crate) is_min_sync_period_set: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Winkernel {
    pub(crate) network_name: String,
    pub(crate) source_vip: String,
    #[serde(rename = "enableDSR")]
    pub(crate) enable_dsr: bool,
    pub(crate) root_hns_endpoint_name: String,
    pub(crate) forward_health_check_vip: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DetectLocal {
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Conntrack {
    pub(crate) max_per_core: Option<i32>,
    pub(crate) min: Option<i32>,
    pub(crate) tcp_established_timeout: Option<GoDuration>,
    pub(crate) tcp_close_wait_timeout: Option<GoDuration>,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: GoDuration,
    pub(crate) udp_stream_timeout: GoDuration,
}

impl KubeProxyConfiguration {
    /// Decodes a document without defaulting it; also returns what strict decoding would refuse.
    pub(crate) fn decode(text: &str) -> Result<(Self, Vec<String>), DecodeError> {
        use serde::de::Error;

        // The kind comes first: a document of another kind should not fail over its fields.
        let (meta, _) = decode::<TypeMeta>(text)?;
        if (meta.api_version.as_str(), meta.kind.as_str()) != (API_VERSION, KIND) {
            return Err(DecodeError::custom(format!(
                "expected apiVersion {API_VERSION:?} and kind {KIND:?}, found {:?} and {:?}",
                meta.api_version, meta.kind
            )));
        }
        decode(text)
    }

    /// What kube-proxy starts from without a file, before it looks at its flags.
    pub(crate) fn defaults() -> Self {
        let mut config = Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            ..Self::default()
        };
        config.set_defaults();
        config
    }

    /// Gives every unset field its default.
    ///
    /// `iptables.localhostNodePorts` stays unset, since nftables has no such NodePorts.
    pub(crate) fn set_defaults(&mut self) {
        set(&mut self.bind_address, "0.0.0.0");
        let wants_ipv6 = matches!(parse_ip(&self.bind_address), Ok(IpAddr::V6(_)));
        let (any, loopback) = if wants_ipv6 {
            ("::", "::1")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        set(&mut self.healthz_bind_address, any);
        set(&mut self.metrics_bind_address, loopback);
        for (address, port) in [
            (&mut self.healthz_bind_address, HEALTHZ_PORT),
            (&mut self.metrics_bind_address, METRICS_PORT),
        ] {
            *address = append_port_if_needed(address, port);
        }

        let client = &mut self.client_connection;
        set(&mut client.content_type, PROTOBUF);
        set(&mut client.qps, 5.0);
        set(&mut client.burst, 10);

        let logging = &mut self.logging;
        set(&mut logging.format, "text");
        set(&mut logging.flush_frequency, GoDuration::from_secs(5));
        set(&mut logging.options.text.info_buffer_size, "0");
        set(&mut logging.options.json.info_buffer_size, "0");

        let default_period = GoDuration::from_secs(30);
        set(&mut self.iptables.masquerade_bit, 14);
        set(&mut self.iptables.sync_period, default_period);
        set(&mut self.iptables.min_sync_period, GoDuration::from_secs(1));
        set(&mut self.ipvs.sync_period, default_period);
        set(&mut self.nftables.masquerade_bit, 14);
        set(&mut self.nftables.sync_period, default_period);
        let nftables = &mut self.nftables;
        nftables.is_min_sync_period_set |= nftables.min_sync_period != GoDuration::ZERO;
        set(&mut nftables.min_sync_period, GoDuration::from_secs(1));

        let conntrack = &mut self.conntrack;
        set(&mut conntrack.max_per_core, 32 * 1024);
        set(&mut conntrack.min, 128 * 1024);
        set(
            &mut conntrack.tcp_established_timeout,
            GoDuration::from_secs(24 * 3600),
        );
        set(
            &mut conntrack.tcp_close_wait_timeout,
            GoDuration::from_secs(3600),
        );

        set(&mut self.detect_local_mode, "ClusterCIDR");
        set(&mut self.oom_score_adj, -999);
        set(&mut self.config_sync_period, GoDuration::from_secs(15 * 60));
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go takes no number that is too large for its type.
fn finite<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    let value = f32::deserialize(from)?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(D::Error::custom("the number is out of range"))
    }
}

/// Go writes whole numbers without a point.
fn as_go_writes_it<S: Serializer>(value: &f32, to: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        to.serialize_i64(*value as i64)
    } else {
        to.serialize_f32(*value)
    }
}

/// Go tells a list that was never made from one without items.
fn null_if_empty<S: Serializer>(list: &[String], to: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() {
        to.serialize_none()
    } else {
        to.collect_seq(list)
    }
}

fn set<T: Default + PartialEq>(field: &mut T, default: impl Into<T>) {
    if *field == T::default() {
        *field = default.into();
    }
}

#[derive(Default, Deserialize)]
#[serde(
    rename_all = "camelCase",
    default,
    expecting = "a document with apiVersion and kind"
)]
struct TypeMeta {
    api_version: String,
    kind: String,
}

fn duration_or_nanoseconds<'de, D: Deserializer<'de>>(input: D) -> Result<GoDuration, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a duration such as \"5s\", or a number of nanoseconds"
    )]
    enum Input {
        Nanoseconds(i64),
        Text(GoDuration),
    }
    Ok(match Input::deserialize(input)? {
        Input::Nanoseconds(nanoseconds) => GoDuration::from_nanos(nanoseconds),
        Input::Text(duration) => duration,
    })
}

fn text_or_integer<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a quantity such as \"64Ki\"")]
    enum Input {
        Integer(i64),
        Text(String),
    }
    Ok(match Input::deserialize(input)? {
        Input::Integer(value) => value.to_string(),
        Input::Text(text) => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(fields: &str) -> String {
        format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}")
    }

    fn defaulted(fields: &str) -> KubeProxyConfiguration {
        let (mut config, strays) = KubeProxyConfiguration::decode(&document(fields)).unwrap();
        assert_eq!(strays, [""; 0], "{fields}");
        config.set_defaults();
        config
    }

    #[test]
    fn a_rate_that_is_no_number_is_an_error() {
        for qps in ["1e99", "111111111111111111111111111111111111111111111111"] {
            let text = document(&format!("clientConnection: {{qps: {qps}}}"));
            let error = KubeProxyConfiguration::decode(&text)
                .unwrap_err()
                .to_string();
            assert!(error.contains("clientConnection.qps"), "{error}");
        }
    }

    #[test]
    fn o_1_another_kind_is_refused() {
        for text in [
            "",
            "{}",
            "mode: nftables",
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
            "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration",
            "apiVersion: v1\nkind: ConfigMap\ndata: {}",
        ] {
            let error = KubeProxyConfiguration::decode(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains("expected apiVersion"), "{text:?}: {error}");
        }
    }

    /// O-158
    #[test]
    fn o_3_the_document_kubeadm_stores_yields_all_defaults() {
        let text = include_str!("testdata/kubeadm.yaml");
        let (mut config, strays) = KubeProxyConfiguration::decode(text).unwrap();
        assert_eq!(strays, [""; 0]);
        config.set_defaults();
        assert_eq!(config, KubeProxyConfiguration::defaults());
    }

    #[test]
    fn o_3_an_explicit_zero_of_a_pointer_field_is_a_value() {
        let config = defaulted(
            "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {masqueradeBit: 0, localhostNodePorts: false}
nftables: {masqueradeBit: 0}
oomScoreAdj: 0
",
        );
        let conntrack = &config.conntrack;
        assert_eq!((conntrack.max_per_core, conntrack.min), (Some(0), Some(0)));
        assert_eq!(conntrack.tcp_established_timeout, Some(GoDuration::ZERO));
        assert_eq!(conntrack.tcp_close_wait_timeout, Some(GoDuration::ZERO));
        assert_eq!(config.iptables.masquerade_bit, Some(0));
        assert_eq!(config.iptables.localhost_node_ports, Some(false));
        assert_eq!(config.nftables.masquerade_bit, Some(0));
        assert_eq!(config.oom_score_adj, Some(0));
    }

    #[test]
    fn o_4_a_bare_number_is_a_duration_only_for_the_flush_frequency() {
        let config = defaulted("logging: {flushFrequency: 2000000000}");
        assert_eq!(config.logging.flush_frequency, GoDuration::from_secs(2));
        let config = defaulted("logging: {flushFrequency: 1m}");
        assert_eq!(config.logging.flush_frequency, GoDuration::from_secs(60));
        for (fields, path) in [
            ("configSyncPeriod: 5", "configSyncPeriod: "),
            ("conntrack: {udpTimeout: 5x}", "conntrack.udpTimeout: "),
            ("logging: {flushFrequency: [1]}", "logging.flushFrequency: "),
        ] {
            let error = KubeProxyConfiguration::decode(&document(fields))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(path), "{fields}: {error}");
        }
    }

    #[test]
    fn o_28_o_29_listeners_follow_the_family_of_the_bind_address() {
        let cases = [
            ("", "0.0.0.0:10256", "127.0.0.1:10249"),
            ("bindAddress: 10.0.0.1", "0.0.0.0:10256", "127.0.0.1:10249"),
            ("bindAddress: '::'", "[::]:10256", "[::1]:10249"),
            (
                "healthzBindAddress: 10.0.0.1",
                "10.0.0.1:10256",
                "127.0.0.1:10249",
            ),
            ("metricsBindAddress: '::1'", "0.0.0.0:10256", "[::1]:10249"),
            (
                "metricsBindAddress: 0.0.0.0:9000",
                "0.0.0.0:10256",
                "0.0.0.0:9000",
            ),
        ];
        for (fields, healthz, metrics) in cases {
            let config = defaulted(fields);
            assert_eq!(config.healthz_bind_address, healthz, "{fields}");
            assert_eq!(config.metrics_bind_address, metrics, "{fields}");
        }
    }

    /// Every field of O-15..O-55, at a value of its own: all are known, and none is defaulted over.
    #[test]
    fn o_15_to_o_55_every_field_is_read() {
        let text = include_str!("testdata/every-field.yaml");
        let (mut config, strays) = KubeProxyConfiguration::decode(text).unwrap();
        assert_eq!(strays, [""; 0]);
        config.set_defaults();
        let read = serde_json::to_value(&config).unwrap();
        let written: serde_json::Value = serde_norway::from_str(text).unwrap();
        assert_eq!(read, written);
    }
}
