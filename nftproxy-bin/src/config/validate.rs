//! From the defaulted document to [`Settings`]: every field is checked and given its type here.
//!
//! All failures are collected, each with the path of its field, so that one start shows them all.
//! Reads neither files nor flags. Entry points: [`settings`] and [`inert_settings`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use nftproxy_core::model::InterfaceName;
use serde_json::Value;

use super::accept::accept;
use super::address::{parse_cidr, parse_ip, parse_socket_address};
use super::duration::GoDuration;
use super::features::{FeatureGates, Resolved};
use super::file::{KubeProxyConfiguration, Logging};
use super::log_filter;
use super::{ConntrackSettings, DetectLocal, LogFormat, LogSettings, NodePortAddresses, Settings};

/// The one earlier minor version whose hidden metrics may be asked for.
const PREVIOUS_MINOR_VERSION: &str = "1.35";
/// Words of `nodePortAddresses`: the node's own address of each family, loopback, all of both.
const PRIMARY: &str = "primary";
const LOCALHOST: &str = "localhost";
const ALL: &str = "all";
/// kube-proxy's sync runner panics above this.
const MAX_MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(3600);

/// One field that fails validation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("KubeProxyConfiguration.{path}: invalid value {value:?}: {reason}")]
pub(crate) struct FieldError {
    path: String,
    value: String,
    reason: String,
}

/// Checks a defaulted document. The caller fills in what does not come from it.
pub(super) fn settings(config: &KubeProxyConfiguration) -> Result<Settings, Vec<FieldError>> {
    let mut checks = Checks::default();

    let Resolved {
        gates,
        mut warnings,
        errors,
    } = FeatureGates::resolve(&config.feature_gates);
    for (name, reason) in errors {
        let value = config.feature_gates.get(&name).copied().unwrap_or_default();
        checks.fail(&format!("featureGates.{name}"), value, reason);
    }
    let accept = accept(&config.client_connection, &mut warnings);
    let burst = config.client_connection.burst;
    let previous_version = &config.show_hidden_metrics_for_version;
    checks.require(
        "showHiddenMetricsForVersion",
        previous_version,
        previous_version.is_empty() || previous_version == PREVIOUS_MINOR_VERSION,
        &format!("must be omitted or have the value {PREVIOUS_MINOR_VERSION:?}"),
    );
    checks.masquerade_bit("iptables.masqueradeBit", config.iptables.masquerade_bit);
    let oom_score_adj = config.oom_score_adj.unwrap_or_default();
    checks.require(
        "oomScoreAdj",
        oom_score_adj,
        (-1000..=1000).contains(&oom_score_adj),
        "must be within the range [-1000, 1000]",
    );
    let config_sync_period = config.config_sync_period;
    checks.require(
        "configSyncPeriod",
        config_sync_period,
        config_sync_period > GoDuration::ZERO,
        "must be greater than 0",
    );
    checks.mode(&config.mode);
    let (min_sync_period, sync_period) = checks.sync_periods(config);

    let settings = Settings {
        node_name: checks.node_name(&config.hostname_override),
        kubeconfig: non_empty(&config.client_connection.kubeconfig).map(Into::into),
        master: None,
        api_servers: config.nftproxy.api_servers.clone(),
        accept,
        qps: config.client_connection.qps,
        burst: checks.not_negative("clientConnection.burst", burst),
        bind_address: checks.parsed(
            "bindAddress",
            &config.bind_address,
            parse_ip(&config.bind_address),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ),
        bind_address_hard_fail: config.bind_address_hard_fail,
        healthz_bind_address: checks.listener("healthzBindAddress", &config.healthz_bind_address),
        metrics_bind_address: checks.listener("metricsBindAddress", &config.metrics_bind_address),
        enable_profiling: config.enable_profiling,
        cluster_cidrs: config
            .cluster_cidr
            .split(',')
            .filter_map(|cidr| parse_cidr(cidr.trim()).ok())
            .collect(),
        detect_local: checks.detect_local(config),
        node_port_addresses: checks.node_port_addresses(&config.node_port_addresses),
        node_ports_on_loopback: config
            .node_port_addresses
            .iter()
            .any(|value| value == LOCALHOST || value == ALL),
        masquerade_bit: checks
            .masquerade_bit("nftables.masqueradeBit", config.nftables.masquerade_bit),
        masquerade_all: config.nftables.masquerade_all,
        min_sync_period,
        sync_period,
        conntrack: checks.conntrack(config),
        oom_score_adj,
        log: checks.logging(&config.logging, &config.nftproxy.log_filter, gates),
        feature_gates: gates,
        effective: config.clone(),
        file: None,
        flags: BTreeMap::new(),
        warnings,
    };
    if checks.failures.is_empty() {
        Ok(settings)
    } else {
        Err(checks.failures)
    }
}

/// Collects failures. A check that fails returns a placeholder, which [`settings`] never lets out.
#[derive(Default)]
struct Checks {
    failures: Vec<FieldError>,
}

impl Checks {
    fn fail(&mut self, path: &str, value: impl fmt::Display, reason: impl Into<String>) {
        self.failures.push(FieldError {
            path: path.to_owned(),
            value: value.to_string(),
            reason: reason.into(),
        });
    }

    fn require(&mut self, path: &str, value: impl fmt::Display, holds: bool, reason: &str) {
        if !holds {
            self.fail(path, value, reason);
        }
    }

    fn parsed<T>(
        &mut self,
        path: &str,
        value: impl fmt::Display,
        result: Result<T, String>,
        placeholder: T,
    ) -> T {
        result.unwrap_or_else(|reason| {
            self.fail(path, value, reason);
            placeholder
        })
    }

    fn not_negative(&mut self, path: &str, value: i32) -> u32 {
        let result = value
            .try_into()
            .map_err(|_| "must be greater than or equal to 0".to_owned());
        self.parsed(path, value, result, 0)
    }

    fn not_negative_duration(&mut self, path: &str, value: GoDuration) -> Duration {
        self.require(
            path,
            value,
            value >= GoDuration::ZERO,
            "must be greater than or equal to 0",
        );
        value.to_std()
    }

    fn masquerade_bit(&mut self, path: &str, value: Option<i32>) -> u8 {
        let value = value.unwrap_or_default();
        let bit = u8::try_from(value).ok().filter(|bit| *bit <= 31);
        self.parsed(
            path,
            value,
            bit.ok_or("must be within the range [0, 31]".to_owned()),
            0,
        )
    }

    fn node_name(&mut self, hostname_override: &str) -> Option<String> {
        let name = hostname_override.trim();
        let blank = name.is_empty() && !hostname_override.is_empty();
        self.require(
            "hostnameOverride",
            hostname_override,
            !blank,
            "must not be blank",
        );
        non_empty(name).map(str::to_lowercase)
    }

    fn listener(&mut self, path: &str, value: &str) -> Option<SocketAddr> {
        let address = non_empty(value)?;
        self.parsed(path, value, parse_socket_address(address).map(Some), None)
    }

    fn mode(&mut self, mode: &str) {
        match mode {
            "nftables" | "" => {}
            "iptables" | "ipvs" => self.fail(
                "mode",
                mode,
                "nftproxy implements the nftables mode only; set `mode: nftables` \
                 (or --proxy-mode=nftables) to run it",
            ),
            _ => self.fail("mode", mode, "must be \"nftables\""),
        }
    }

    fn sync_periods(&mut self, config: &KubeProxyConfiguration) -> (Option<Duration>, Duration) {
        let (min_path, path) = ("nftables.minSyncPeriod", "nftables.syncPeriod");
        let (min, period) = (config.nftables.min_sync_period, config.nftables.sync_period);
        self.require(
            path,
            period,
            period > GoDuration::ZERO,
            "must be greater than 0",
        );
        self.require(
            path,
            period,
            period >= min,
            &format!("must not be less than {min_path}"),
        );
        self.require(
            min_path,
            min,
            min <= MAX_MIN_SYNC_PERIOD,
            "must not be more than 1h",
        );
        let min = self.not_negative_duration(min_path, min);
        let is_set = config.nftables.is_min_sync_period_set;
        (is_set.then_some(min), period.to_std())
    }

    fn detect_local(&mut self, config: &KubeProxyConfiguration) -> DetectLocal {
        let given = &config.detect_local;
        match config.detect_local_mode.as_str() {
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => self
                .interface("detectLocal.bridgeInterface", &given.bridge_interface)
                .map_or(DetectLocal::NodeCidr, DetectLocal::BridgeInterface),
            "InterfaceNamePrefix" => self
                .interface(
                    "detectLocal.interfaceNamePrefix",
                    &given.interface_name_prefix,
                )
                .map_or(DetectLocal::NodeCidr, DetectLocal::InterfaceNamePrefix),
            "ClusterCIDR" => {
                let cidrs = cluster_cidrs(&config.cluster_cidr);
                let cidrs = self.parsed("clusterCIDR", &config.cluster_cidr, cidrs, Vec::new());
                DetectLocal::ClusterCidr(cidrs)
            }
            other => {
                let reason =
                    "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.fail("detectLocalMode", other, reason);
                DetectLocal::NodeCidr
            }
        }
    }

    fn interface(&mut self, path: &str, name: &str) -> Option<InterfaceName> {
        let checked = InterfaceName::new(name);
        let reason = match &checked {
            Ok(_) => return checked.ok(),
            Err(_) if name.is_empty() => "must not be empty in this detectLocalMode".to_owned(),
            Err(error) => error.to_string(),
        };
        self.fail(path, name, reason);
        None
    }

    /// Networks, or what one of the words stands for. `localhost` is loopback, which the program
    /// serves itself, beside whatever else is named; as a network it keeps a family of which nothing
    /// else is named from accepting NodePorts at all addresses.
    fn node_port_addresses(&mut self, values: &[String]) -> NodePortAddresses {
        let everywhere = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let loopback = [
            IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8).trunc(),
            IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
        ];
        let mut others = values.iter().filter(|value| *value != LOCALHOST);
        match (others.next().map(String::as_str), others.next()) {
            (None, _) if values.is_empty() => return NodePortAddresses::Primary,
            (Some(PRIMARY), None) => return NodePortAddresses::Primary,
            (Some(ALL), None) => {
                let everywhere = everywhere.map(|ip: IpAddr| IpNet::new_assert(ip, 0));
                return NodePortAddresses::Cidrs(everywhere.to_vec());
            }
            _ => {}
        }
        let mut cidrs = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let path = format!("nodePortAddresses[{index}]");
            match parse_cidr(value) {
                Ok(cidr) => cidrs.push(cidr),
                Err(_) if value == LOCALHOST => cidrs.extend(loopback),
                Err(_) if value == PRIMARY || value == ALL => {
                    let reason = format!("can't use both '{value}' and CIDRs");
                    self.fail(&path, value, reason);
                }
                Err(reason) => self.fail(&path, value, reason),
            }
        }
        NodePortAddresses::Cidrs(cidrs)
    }

    fn conntrack(&mut self, config: &KubeProxyConfiguration) -> ConntrackSettings {
        let given = &config.conntrack;
        let mut timeout = |path: &str, value: GoDuration| {
            let timeout = self.not_negative_duration(path, value);
            (!timeout.is_zero()).then_some(timeout)
        };
        let [established, close_wait] =
            [given.tcp_established_timeout, given.tcp_close_wait_timeout]
                .map(Option::unwrap_or_default);
        ConntrackSettings {
            tcp_established_timeout: timeout("conntrack.tcpEstablishedTimeout", established),
            tcp_close_wait_timeout: timeout("conntrack.tcpCloseWaitTimeout", close_wait),
            udp_timeout: timeout("conntrack.udpTimeout", given.udp_timeout),
            udp_stream_timeout: timeout("conntrack.udpStreamTimeout", given.udp_stream_timeout),
            tcp_be_liberal: given.tcp_be_liberal,
            max_per_core: self.not_negative(
                "conntrack.maxPerCore",
                given.max_per_core.unwrap_or_default(),
            ),
            min: self.not_negative("conntrack.min", given.min.unwrap_or_default()),
        }
    }

    fn logging(&mut self, given: &Logging, filter: &str, gates: FeatureGates) -> LogSettings {
        const MAX_VERBOSITY: u32 = i32::MAX.unsigned_abs();
        const TOO_VERBOSE: &str = "must not be more than 2147483647";

        let format = match given.format.as_str() {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            other => {
                self.fail(
                    "logging.format",
                    other,
                    "unsupported log format, use text or json",
                );
                LogFormat::Text
            }
        };
        self.not_negative_duration("logging.flushFrequency", given.flush_frequency);
        let verbosity = given.verbosity;
        self.require(
            "logging.verbosity",
            verbosity,
            verbosity <= MAX_VERBOSITY,
            TOO_VERBOSE,
        );

        if format == LogFormat::Json && !given.vmodule.is_empty() {
            let n_items = format!("{} items", given.vmodule.len());
            self.fail(
                "logging.vmodule",
                n_items,
                "only supported for the text log format",
            );
        }
        for (index, item) in given.vmodule.iter().enumerate() {
            let path = format!("logging.vmodule[{index}]");
            let pattern = &item.file_pattern;
            let well_formed = !pattern.is_empty() && !pattern.contains(['=', ',']);
            let reason = "must not be empty or contain '=' or ','";
            self.require(&format!("{path}.filePattern"), pattern, well_formed, reason);
            let verbosity = item.verbosity;
            let path = format!("{path}.verbosity");
            self.require(&path, verbosity, verbosity <= MAX_VERBOSITY, TOO_VERBOSE);
        }

        for (name, options) in [("text", &given.options.text), ("json", &given.options.json)] {
            let size = &options.info_buffer_size;
            let path = format!("logging.options.{name}");
            let size_path = format!("{path}.infoBufferSize");
            let size_is_zero = match quantity_is_zero(size) {
                Some(is_zero) => is_zero,
                None => {
                    self.fail(&size_path, size, "must be a quantity such as \"64Ki\"");
                    continue;
                }
            };
            let is_default = !options.split_stream && size_is_zero;
            self.require(
                &path,
                format!(
                    "splitStream: {}, infoBufferSize: {size}",
                    options.split_stream
                ),
                is_default || gates.logging_alpha_options,
                "feature gate LoggingAlphaOptions is disabled",
            );
        }
        if let Err(reason) = log_filter::directives(filter) {
            self.fail("nftproxy.logFilter", filter, reason);
        }
        LogSettings {
            format,
            verbosity,
            filter: filter.to_owned(),
        }
    }
}

/// Reads at most one network of each family. Items are not trimmed, as in kube-proxy's validation.
fn cluster_cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let cidrs = text
        .split(',')
        .map(parse_cidr)
        .collect::<Result<Vec<_>, _>>()?;
    match cidrs.as_slice() {
        [_] => Ok(cidrs),
        [first, second] if first.addr().is_ipv4() != second.addr().is_ipv4() => Ok(cidrs),
        _ => Err("only one CIDR or one CIDR of each family is allowed \
                  (for example 10.100.0.0/16,fde4:8dba:82e1::/48)"
            .to_owned()),
    }
}

/// Whether a Kubernetes quantity is zero, or none if the text is not a quantity.
fn quantity_is_zero(text: &str) -> Option<bool> {
    const SUFFIXES: &[&str] = &[
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-');
    let (number, suffix) = text.split_at(text.find(|c| !is_number(c)).unwrap_or(text.len()));
    let number: f64 = number.parse().ok()?;
    SUFFIXES.contains(&suffix).then_some(number == 0.0)
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The fields that are accepted without any effect here; a whole section stands for all its fields.
pub(super) const INERT: &[&str] = &[
    "configSyncPeriod",
    "iptables",
    "ipvs",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel",
];

/// The paths of inert fields that a defaulted document sets to something else than their default.
pub(super) fn inert_settings(config: &KubeProxyConfiguration) -> Vec<String> {
    let mut config = config.clone();
    // Localhost NodePorts never work in nftables mode, so being told not to offer them is honoured.
    config.iptables.localhost_node_ports = config.iptables.localhost_node_ports.filter(|on| *on);
    let as_json = |config: &KubeProxyConfiguration| {
        serde_json::to_value(config).expect("a configuration holds plain values with string keys")
    };
    let (given, default) = (
        as_json(&config),
        as_json(&KubeProxyConfiguration::defaults()),
    );
    let mut paths = Vec::new();
    for path in INERT {
        let pointer = format!("/{}", path.replace('.', "/"));
        let (given, default) = (given.pointer(&pointer), default.pointer(&pointer));
        // What is left out has its default.
        if let Some(given) = given {
            differing_paths(path, given, default, &mut paths);
        }
    }
    paths
}

fn differing_paths(path: &str, given: &Value, default: Option<&Value>, paths: &mut Vec<String>) {
    if let Value::Object(fields) = given {
        for (name, field) in fields {
            let default = default.and_then(|default| default.get(name));
            differing_paths(&format!("{path}.{name}"), field, default, paths);
        }
    } else if Some(given) != default {
        paths.push(path.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes, defaults and checks a document of these fields.
    fn check(fields: &str) -> Result<Settings, Vec<String>> {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"
        );
        let (mut config, strays) = KubeProxyConfiguration::decode(&text).unwrap();
        assert_eq!(strays, [""; 0], "{fields}");
        config.set_defaults();
        settings(&config).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    fn checked(fields: &str) -> Settings {
        check(fields).unwrap_or_else(|errors| panic!("{fields}: {errors:?}"))
    }

    /// Rule, document, and the field of each failure.
    const FAILURES: &str = "
O-15 | featureGates: {NFTablesProxyMode: false} | featureGates.NFTablesProxyMode
O-20 | clientConnection: {burst: -1} | clientConnection.burst
O-21 | logging: {format: xml} | logging.format
O-22 | logging: {flushFrequency: -1s} | logging.flushFrequency
O-23 | logging: {verbosity: 2147483648} | logging.verbosity
O-24 | logging: {vmodule: [{}]} | logging.vmodule[0].filePattern
O-24 | logging: {vmodule: [{filePattern: a}, {filePattern: a=b}]} | logging.vmodule[1].filePattern
O-24 | logging: {vmodule: [{filePattern: 'a,b'}]} | logging.vmodule[0].filePattern
O-24 | logging: {vmodule: [{filePattern: a, verbosity: 4000000000}]} | logging.vmodule[0].verbosity
O-24 | logging: {format: json, vmodule: [{filePattern: a}]} | logging.vmodule
O-25 | logging: {options: {text: {splitStream: true}}} | logging.options.text
O-25 | logging: {options: {json: {infoBufferSize: 64Ki}}} | logging.options.json
O-25 | logging: {options: {json: {infoBufferSize: lots}}} | logging.options.json.infoBufferSize
O-26 | hostnameOverride: '  ' | hostnameOverride
O-27 | bindAddress: node-a | bindAddress
O-28 | healthzBindAddress: node-a | healthzBindAddress
O-28 | healthzBindAddress: '10.0.0.1:0' | healthzBindAddress
O-29 | metricsBindAddress: 'node-a:80' | metricsBindAddress
O-29 | metricsBindAddress: '10.0.0.1:70000' | metricsBindAddress
O-32 | showHiddenMetricsForVersion: '1.34' | showHiddenMetricsForVersion
O-33 | mode: iptables | mode
O-33 | mode: ipvs | mode
O-33 | mode: NFTables | mode
O-34 | iptables: {masqueradeBit: 32} | iptables.masqueradeBit
O-39 | nftables: {masqueradeBit: 32} | nftables.masqueradeBit
O-39 | nftables: {masqueradeBit: -1} | nftables.masqueradeBit
O-41 | nftables: {syncPeriod: -1s} | nftables.syncPeriod nftables.syncPeriod
O-41 | nftables: {syncPeriod: 1s, minSyncPeriod: 2s} | nftables.syncPeriod
O-42 | nftables: {minSyncPeriod: -1s} | nftables.minSyncPeriod
O-42 | nftables: {syncPeriod: 3h, minSyncPeriod: 61m} | nftables.minSyncPeriod
O-44 | detectLocalMode: clustercidr | detectLocalMode
O-45 | detectLocalMode: BridgeInterface | detectLocal.bridgeInterface
O-46 | detectLocalMode: InterfaceNamePrefix | detectLocal.interfaceNamePrefix
O-47 | clusterCIDR: 10.0.0.0 | clusterCIDR
O-47 | clusterCIDR: '10.0.0.0/8, fd00::/64' | clusterCIDR
O-47 | clusterCIDR: '10.0.0.0/8,' | clusterCIDR
O-47 | clusterCIDR: 10.0.0.0/8,11.0.0.0/8 | clusterCIDR
O-47 | clusterCIDR: 10.0.0.0/8,fd00::/64,fd01::/64 | clusterCIDR
O-48 | nodePortAddresses: [10.0.0.0/8, primary, x] | nodePortAddresses[1] nodePortAddresses[2]
O-48 | nodePortAddresses: [primary, primary] | nodePortAddresses[0] nodePortAddresses[1]
O-49 | oomScoreAdj: -1001 | oomScoreAdj
O-49 | oomScoreAdj: 1001 | oomScoreAdj
O-50 | conntrack: {maxPerCore: -1, min: -1} | conntrack.maxPerCore conntrack.min
O-51 | conntrack: {tcpEstablishedTimeout: -1s} | conntrack.tcpEstablishedTimeout
O-51 | conntrack: {tcpCloseWaitTimeout: -1s} | conntrack.tcpCloseWaitTimeout
O-53 | conntrack: {udpTimeout: -1s} | conntrack.udpTimeout
O-53 | conntrack: {udpStreamTimeout: -1s} | conntrack.udpStreamTimeout
O-54 | configSyncPeriod: -1s | configSyncPeriod
";

    #[test]
    fn every_validation_failure_names_its_field() {
        for case in FAILURES.lines().filter(|line| !line.is_empty()) {
            let [_rule, fields, paths] = case.split(" | ").collect::<Vec<_>>().try_into().unwrap();
            let errors = check(fields).expect_err(case);
            let found: Vec<_> = errors
                .iter()
                .map(|error| error.strip_prefix("KubeProxyConfiguration.").unwrap())
                .map(|error| error.split(": ").next().unwrap())
                .collect();
            assert_eq!(
                found,
                paths.split(' ').collect::<Vec<_>>(),
                "{case}: {errors:?}"
            );
        }
    }

    #[test]
    fn o_45_o_46_interface_names_that_cannot_be_are_refused() {
        for (mode, field) in [
            ("BridgeInterface", "bridgeInterface"),
            ("InterfaceNamePrefix", "interfaceNamePrefix"),
        ] {
            let with =
                |name| format!("detectLocalMode: {mode}\ndetectLocal: {{{field}: '{name}'}}");
            for name in [
                "1234567890123456",
                "cni0/1",
                "a b",
                "a\"b",
                "pod*",
                "a:b",
                "..",
            ] {
                let errors = check(&with(name)).unwrap_err();
                let [error] = &*errors else {
                    panic!("{errors:?}")
                };
                let path = format!("KubeProxyConfiguration.detectLocal.{field}: ");
                assert!(error.starts_with(&path), "{error}");
                assert!(error.contains("1 to 15 bytes"), "{error}");
            }
            for name in ["cni0", "eth0.100", "123456789012345x"] {
                assert_eq!(check(&with(name)).is_ok(), name.len() <= 15, "{name}");
            }
        }
    }

    #[test]
    fn o_33_a_refused_mode_says_what_to_set() {
        for mode in ["iptables", "ipvs"] {
            let errors = check(&format!("mode: {mode}")).unwrap_err();
            assert!(errors[0].contains("set `mode: nftables`"), "{errors:?}");
        }
    }

    #[test]
    fn failures_of_several_fields_are_all_reported() {
        let errors = check("mode: ipvs\nbindAddress: x\nconntrack: {min: -1}").unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
    }

    /// O-48, O-74: the words of kube-proxy 1.37.
    #[test]
    fn o_48_loopback_and_all_addresses_have_words() {
        let networks = |texts: &[&str]| {
            let networks = texts.iter().map(|text| text.parse().unwrap());
            NodePortAddresses::Cidrs(networks.collect())
        };
        for (words, addresses, is_on_loopback) in [
            ("[localhost]", networks(&["127.0.0.0/8", "::1/128"]), true),
            ("[primary, localhost]", NodePortAddresses::Primary, true),
            (
                "[10.0.0.0/8, localhost]",
                networks(&["10.0.0.0/8", "127.0.0.0/8", "::1/128"]),
                true,
            ),
            ("[all]", networks(&["0.0.0.0/0", "::/0"]), true),
            ("[127.0.0.0/8]", networks(&["127.0.0.0/8"]), false),
        ] {
            let settings = checked(&format!("nodePortAddresses: {words}"));
            assert_eq!(settings.node_port_addresses, addresses, "{words}");
            assert_eq!(settings.node_ports_on_loopback, is_on_loopback, "{words}");
        }
        for words in ["[all, primary]", "[all, 10.0.0.0/8]", "[Localhost]"] {
            assert!(
                check(&format!("nodePortAddresses: {words}")).is_err(),
                "{words}"
            );
        }
    }

    /// O-69
    #[test]
    fn o_26_the_node_name_is_trimmed_and_lower_cased() {
        assert_eq!(checked("").node_name, None);
        assert_eq!(
            checked("hostnameOverride: ' Node-A '").node_name.as_deref(),
            Some("node-a")
        );
    }

    #[test]
    fn o_16_to_o_20_the_connection() {
        let settings = checked("");
        assert_eq!(settings.kubeconfig, None);
        assert_eq!((settings.qps, settings.burst), (5.0, 10));
        let settings = checked("clientConnection: {kubeconfig: /k, qps: 50.5, burst: 100}");
        assert_eq!(settings.kubeconfig.as_deref(), Some("/k".as_ref()));
        assert_eq!((settings.qps, settings.burst), (50.5, 100));
    }

    #[test]
    fn o_30_o_31_o_40_switches_are_off_unless_they_are_turned_on() {
        let switches = |fields| {
            let settings = checked(fields);
            [
                settings.bind_address_hard_fail,
                settings.enable_profiling,
                settings.masquerade_all,
            ]
        };
        assert_eq!(switches(""), [false; 3]);
        assert_eq!(switches("bindAddressHardFail: true"), [true, false, false]);
        assert_eq!(switches("enableProfiling: true"), [false, true, false]);
        assert_eq!(
            switches("nftables: {masqueradeAll: true}"),
            [false, false, true]
        );
    }

    #[test]
    fn o_42_the_limits_themselves_are_allowed() {
        let settings = checked("nftables: {syncPeriod: 1h, minSyncPeriod: 1h, masqueradeBit: 31}");
        assert_eq!(settings.min_sync_period, Some(Duration::from_secs(3600)));
        assert_eq!(settings.sync_period, Duration::from_secs(3600));
        assert_eq!(settings.masquerade_bit, 31);
    }

    #[test]
    fn o_44_to_o_47_each_mode_of_detecting_local_traffic() {
        let cidrs = |cidrs: &[&str]| cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let cases = [
            ("", DetectLocal::ClusterCidr(Vec::new())),
            (
                "clusterCIDR: 10.1.2.3/8,fd00::/64",
                DetectLocal::ClusterCidr(cidrs(&["10.0.0.0/8", "fd00::/64"])),
            ),
            (
                "detectLocalMode: NodeCIDR\nclusterCIDR: nonsense",
                DetectLocal::NodeCidr,
            ),
            (
                "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
                DetectLocal::BridgeInterface(InterfaceName::new("cni0").unwrap()),
            ),
            (
                "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
                DetectLocal::InterfaceNamePrefix(InterfaceName::new("veth").unwrap()),
            ),
        ];
        for (fields, expected) in cases {
            assert_eq!(checked(fields).detect_local, expected, "{fields}");
        }
        let settings = checked("detectLocalMode: NodeCIDR\nclusterCIDR: '10.0.0.0/8, fd00::/64'");
        assert_eq!(settings.cluster_cidrs, cidrs(&["10.0.0.0/8", "fd00::/64"]));
    }

    #[test]
    fn o_48_no_node_port_addresses_means_primary() {
        for fields in ["", "nodePortAddresses: []", "nodePortAddresses: [primary]"] {
            assert_eq!(
                checked(fields).node_port_addresses,
                NodePortAddresses::Primary,
                "{fields}"
            );
        }
        assert_eq!(
            checked("nodePortAddresses: [0.0.0.0/0, '::/0']").node_port_addresses,
            NodePortAddresses::Cidrs(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]),
        );
    }

    #[test]
    fn o_50_to_o_53_zero_leaves_conntrack_as_it_is() {
        let conntrack = checked("").conntrack;
        assert_eq!((conntrack.max_per_core, conntrack.min), (32768, 131_072));
        assert_eq!(
            conntrack.tcp_established_timeout,
            Some(Duration::from_secs(24 * 3600))
        );
        assert_eq!(
            conntrack.tcp_close_wait_timeout,
            Some(Duration::from_secs(3600))
        );
        assert_eq!(
            (conntrack.udp_timeout, conntrack.udp_stream_timeout),
            (None, None)
        );
        let conntrack = checked("conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}").conntrack;
        assert_eq!(
            (conntrack.max_per_core, conntrack.tcp_established_timeout),
            (0, None)
        );
    }

    #[test]
    fn o_25_the_gate_allows_stream_options() {
        checked("featureGates: {AllAlpha: true}\nlogging: {options: {text: {splitStream: true}}}");
        checked("logging: {options: {text: {infoBufferSize: 0Ki}, json: {infoBufferSize: 0}}}");
    }

    /// O-22, O-24, O-25, O-32, O-34 to O-38, O-43, O-54, O-55
    #[test]
    fn inert_fields_are_named_when_they_differ_from_their_default() {
        let inert = |fields| inert_settings(&checked(fields).effective);
        assert_eq!(inert(""), [""; 0]);
        // O-36: nftables mode never offers localhost NodePorts.
        assert_eq!(inert("iptables: {localhostNodePorts: false}"), [""; 0]);
        assert_eq!(
            inert("iptables: {localhostNodePorts: true}"),
            ["iptables.localhostNodePorts"]
        );
        assert_eq!(
            inert("nftables: {masqueradeBit: 3, masqueradeAll: true}"),
            [""; 0]
        );
        let every_field = include_str!("testdata/every-field.yaml");
        let (config, _) = KubeProxyConfiguration::decode(every_field).unwrap();
        let paths = inert_settings(&config);
        for (section, n_fields) in [
            ("configSyncPeriod", 1),
            ("iptables.", 5),
            ("ipvs.", 8),
            ("logging.flushFrequency", 1),
            ("logging.options.", 4),
            ("logging.vmodule", 1),
            ("portRange", 1),
            ("showHiddenMetricsForVersion", 1),
            ("windowsRunAsService", 1),
            ("winkernel.", 5),
        ] {
            let of_section = paths.iter().filter(|path| path.starts_with(section));
            assert_eq!(of_section.count(), n_fields, "{section}: {paths:?}");
        }
        assert_eq!(paths.len(), 28, "{paths:?}");
    }
}
