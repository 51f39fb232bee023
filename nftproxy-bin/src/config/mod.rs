//! The settings of the daemon, from kube-proxy's configuration file or its command line.
//!
//! Both sources fill one [`KubeProxyConfiguration`], which is then checked and typed:
//!
//! ```text
//! file  ── decode ── defaults ──┐
//!                               ├── KubeProxyConfiguration ── validate ── Settings
//! flags ── over the defaults ───┘
//! ```
//!
//! With a file the flags are ignored, but for the few kube-proxy honours beside one. This module
//! opens no connection and looks at nothing of the machine but the file. Entry point:
//! [`Settings::load`].

mod accept;
mod address;
mod decode;
mod duration;
mod encode;
mod features;
mod file;
mod flags;
mod flagz;
mod log_filter;
#[cfg(test)]
pub(crate) mod reference;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nftproxy_core::model::{InterfaceName, IpFamily, NodeInfo};

pub(crate) use self::decode::DecodeError;
pub(crate) use self::features::FeatureGates;
pub(crate) use self::file::{KubeProxyConfiguration, PROTOBUF};
pub(crate) use self::flags::ConfigFlags;
pub(crate) use self::log_filter::directives as log_directives;
pub(crate) use self::validate::FieldError;

/// Everything configurable, checked and typed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The name of this node, trimmed and lower-cased; none means the host name.
    pub(crate) node_name: Option<String>,
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The API server's URL, over that of the kubeconfig.
    pub(crate) master: Option<String>,
    /// URLs of API servers, over both; the first that can be reached is used.
    pub(crate) api_servers: Vec<String>,
    /// What answers may be encoded in, for the header `Accept`.
    pub(crate) accept: String,
    /// Requests to the API server per second; a negative number lifts the limit.
    pub(crate) qps: f32,
    pub(crate) burst: u32,
    /// Stands in for the primary node IP unless it is a wildcard; no socket is bound to it.
    pub(crate) bind_address: IpAddr,
    /// Whether failing to bind a listener ends the process.
    pub(crate) bind_address_hard_fail: bool,
    /// None means that health is not served.
    pub(crate) healthz_bind_address: Option<SocketAddr>,
    /// None means that metrics are not served.
    pub(crate) metrics_bind_address: Option<SocketAddr>,
    pub(crate) enable_profiling: bool,
    /// The networks of `clusterCIDR` that can be read, whatever [`Self::detect_local`] is.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) detect_local: DetectLocal,
    pub(crate) node_port_addresses: NodePortAddresses,
    /// Whether this program relays NodePorts on loopback.
    pub(crate) node_ports_on_loopback: bool,
    /// The number of the packet mark bit, 0 to 31.
    pub(crate) masquerade_bit: u8,
    pub(crate) masquerade_all: bool,
    /// None means that syncs are paced by what they cost.
    pub(crate) min_sync_period: Option<Duration>,
    /// The delay before a failed sync is retried; at least [`Self::min_sync_period`].
    pub(crate) sync_period: Duration,
    pub(crate) conntrack: ConntrackSettings,
    pub(crate) oom_score_adj: i32,
    pub(crate) log: LogSettings,
    pub(crate) feature_gates: FeatureGates,
    /// The merged and defaulted document that all of the above was read from.
    pub(crate) effective: KubeProxyConfiguration,
    /// The file that all of it was read from, if it was.
    pub(crate) file: Option<PathBuf>,
    /// Every flag of kube-proxy's, with its value.
    pub(crate) flags: BTreeMap<&'static str, String>,
    /// What the operator should be told once logging is set up.
    pub(crate) warnings: Vec<String>,
}

/// The node's address in a family: a bind address of that family counts for it, and where none is
/// known, loopback is assumed.
pub(crate) fn node_ip(bind_address: IpAddr, node: &NodeInfo, family: IpFamily) -> IpAddr {
    if IpFamily::of(bind_address) == family && !bind_address.is_unspecified() {
        return bind_address;
    }
    node.ip(family).unwrap_or(match family {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    })
}

/// How traffic from pods of this node is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DetectLocal {
    /// By source address; at most one network of each family, and none disables the detection.
    ClusterCidr(Vec<IpNet>),
    /// By source address, within the pod networks of the Node object.
    NodeCidr,
    BridgeInterface(InterfaceName),
    InterfaceNamePrefix(InterfaceName),
}

/// Which local addresses accept NodePort traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodePortAddresses {
    /// The primary node IP of each family.
    Primary,
    Cidrs(Vec<IpNet>),
}

/// Connection tracking; a timeout of none leaves the kernel's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConntrackSettings {
    /// Zero leaves the table size as it is.
    pub(crate) max_per_core: u32,
    /// The least table size, whatever the number of cores.
    pub(crate) min: u32,
    pub(crate) tcp_established_timeout: Option<Duration>,
    pub(crate) tcp_close_wait_timeout: Option<Duration>,
    pub(crate) udp_timeout: Option<Duration>,
    pub(crate) udp_stream_timeout: Option<Duration>,
    /// False leaves the kernel's value.
    pub(crate) tcp_be_liberal: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) format: LogFormat,
    pub(crate) verbosity: u32,
    /// Modules with levels of their own.
    pub(crate) filter: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Why there are no settings. Only an unreadable file can be worth a second try.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("failed complete: failed to read {}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed complete: failed to decode {}", .path.display())]
    Decode { path: PathBuf, source: DecodeError },
    #[error("failed validate: {}", Joined(.0))]
    Invalid(Vec<FieldError>),
}

struct Joined<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Joined<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{item}")?;
        }
        Ok(())
    }
}

impl Settings {
    /// Reads the file that `flags` name, or else the flags themselves, and checks the result.
    pub(crate) fn load(flags: &ConfigFlags) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let mut config = match &flags.config {
            Some(path) => {
                let mut config = read_file(path, &mut warnings)?;
                warnings.extend(flags.values.apply_beside_file(&mut config));
                config
            }
            None => {
                let mut config = KubeProxyConfiguration::defaults();
                warnings.extend(flags.values.apply(&mut config));
                config
            }
        };
        if let Some(name) = flags
            .hostname_override
            .as_deref()
            .filter(|name| !name.is_empty())
        {
            config.hostname_override = name.to_owned();
        }
        set_platform_defaults(&mut config);

        let mut settings = validate::settings(&config).map_err(ConfigError::Invalid)?;
        settings.master = flags.master.clone().filter(|url| !url.is_empty());
        if !flags.api_servers.is_empty() {
            settings.api_servers = flags.api_servers.clone();
        }
        settings.file = flags.config.clone();
        settings.flags = flagz::flagz(flags);
        warnings.append(&mut settings.warnings);
        for path in validate::inert_settings(&config) {
            warnings.push(format!("{path} is accepted but has no effect"));
        }
        settings.warnings = warnings;
        Ok(settings)
    }
}

/// Reads a configuration file, for fuzzing only.
#[cfg(fuzzing)]
pub(crate) fn read_text(text: &str) {
    let Ok((mut config, _)) = KubeProxyConfiguration::decode(text) else {
        return;
    };
    // What is written out can be read again, and is the same then.
    let written = config.to_yaml();
    let again = KubeProxyConfiguration::decode(&written);
    let (again, strays) = again.expect("what we write we can read");
    assert!(strays.is_empty(), "{strays:?}");
    assert_eq!(again.to_yaml(), written);
    config.set_defaults();
    set_platform_defaults(&mut config);
    let _ = validate::settings(&config);
    let _ = validate::inert_settings(&config);
}

fn read_file(
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<KubeProxyConfiguration, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let (mut config, strays) =
        KubeProxyConfiguration::decode(&text).map_err(|source| ConfigError::Decode {
            path: path.to_owned(),
            source,
        })?;
    if !strays.is_empty() {
        warnings.push(format!(
            "using lenient decoding of {} as strict decoding failed: {}",
            path.display(),
            strays.join(", ")
        ));
    }
    if config.mode.is_empty() {
        warnings.push(format!(
            "{} sets no mode, with which kube-proxy runs iptables; running nftables, \
             set `mode: nftables` to confirm it",
            path.display()
        ));
    }
    config.set_defaults();
    Ok(config)
}

/// What kube-proxy fills in on Linux after the sources are merged, with its nftables answers.
fn set_platform_defaults(config: &mut KubeProxyConfiguration) {
    if config.mode.is_empty() {
        config.mode = "nftables".to_owned();
    }
    if config.node_port_addresses.is_empty() {
        config.node_port_addresses = vec!["primary".to_owned()];
    }
    if config.detect_local_mode.is_empty() {
        config.detect_local_mode = "ClusterCIDR".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    const META: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn load(args: &[&str]) -> Result<Settings, ConfigError> {
        Settings::load(&flags::tests::parse(args).unwrap())
    }

    /// Loads a file of these fields, with further arguments beside it.
    fn load_file(fields: &str, args: &[&str]) -> Settings {
        let file = write(&format!("{META}{fields}"));
        let path = format!("--config={}", file.path().display());
        load(&[&[path.as_str()], args].concat()).unwrap()
    }

    fn write(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn o_3_the_document_kubeadm_stores_differs_from_no_file_only_in_its_warning() {
        let file = write(include_str!("testdata/kubeadm.yaml"));
        let path = file.path().to_str().unwrap();
        let mut settings = load(&["--config", path]).unwrap();
        let warnings = std::mem::take(&mut settings.warnings);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        // O-33: the empty mode runs nftables, loudly.
        assert!(warnings[0].contains("mode: nftables"), "{warnings:?}");
        // They say where the file is.
        settings.file = None;
        settings.flags.insert("config", String::new());
        assert_eq!(settings, load(&[]).unwrap());
    }

    #[test]
    fn o_7_platform_defaults_come_last() {
        let effective = load(&[]).unwrap().effective;
        assert_eq!(effective.mode, "nftables");
        assert_eq!(effective.node_port_addresses, ["primary"]);
        assert_eq!(effective.detect_local_mode, "ClusterCIDR");
        let settings = load(&["--detect-local-mode="]).unwrap();
        assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(Vec::new()));
    }

    #[test]
    fn o_2_strays_are_one_warning() {
        let settings = load_file(
            "mode: nftables\nmodes: x\nbindAddress: x\nbindAddress: ::1\n",
            &[],
        );
        assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
        assert!(settings.warnings[0].contains("unknown field `modes`"));
        assert!(settings.warnings[0].contains("duplicate field `bindAddress`"));
        assert_eq!(settings.bind_address, "::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn o_5_a_file_beats_its_flags() {
        let settings = load_file(
            "mode: nftables\nbindAddress: 10.0.0.1\n",
            &[
                "--bind-address=10.0.0.2",
                "--proxy-mode=ipvs",
                "--kubeconfig=/a",
                "--masquerade-all",
            ],
        );
        assert_eq!(settings.bind_address, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(settings.kubeconfig, None);
        assert!(!settings.masquerade_all);
        assert_eq!(
            settings.warnings,
            ["flags ignored because of --config: \
              --kubeconfig, --proxy-mode, --masquerade-all, --bind-address"]
        );
    }

    /// O-58: those for logging, too.
    #[test]
    fn o_5_some_flags_beat_the_file() {
        let settings = load_file(
            "mode: nftables
hostnameOverride: from-file
logging: {format: json, verbosity: 1}
",
            &[
                "--hostname-override= Node-A",
                "--master=https://api",
                "-v",
                "4",
                "--logging-format=text",
            ],
        );
        assert_eq!(settings.node_name.as_deref(), Some("node-a"));
        assert_eq!(settings.master.as_deref(), Some("https://api"));
        assert_eq!(
            settings.log,
            LogSettings {
                format: LogFormat::Text,
                verbosity: 4,
                filter: String::new(),
            }
        );
        assert_eq!(settings.warnings, [""; 0]);
    }

    #[test]
    fn o_5_a_logging_flag_that_is_not_given_leaves_the_file() {
        let fields = "logging: {format: json, verbosity: 3}";
        let settings = load_file(fields, &[]);
        assert_eq!(
            settings.log,
            LogSettings {
                format: LogFormat::Json,
                verbosity: 3,
                filter: String::new(),
            }
        );
        assert_eq!(load_file(fields, &["-v=0"]).log.verbosity, 0);
    }

    #[test]
    fn o_5_vmodule_flags_come_before_the_items_of_the_file() {
        let settings = load_file(
            "logging: {vmodule: [{filePattern: c, verbosity: 3}]}",
            &["--vmodule=a=1,b=2"],
        );
        let vmodule = &settings.effective.logging.vmodule;
        let patterns: Vec<_> = vmodule
            .iter()
            .map(|item| item.file_pattern.as_str())
            .collect();
        assert_eq!(patterns, ["a", "b", "c"]);
    }

    #[test]
    fn o_6_only_the_nftables_section_counts() {
        let settings = load_file(
            "iptables: {masqueradeAll: true, syncPeriod: 1m, minSyncPeriod: 5s}
nftables: {minSyncPeriod: 0s, syncPeriod: 7s}
",
            &[],
        );
        assert!(!settings.masquerade_all);
        assert_eq!(settings.sync_period, Duration::from_secs(7));
        assert_eq!(settings.min_sync_period, None);
        for path in [
            "iptables.masqueradeAll",
            "iptables.syncPeriod",
            "iptables.minSyncPeriod",
        ] {
            let warning = format!("{path} is accepted but has no effect");
            assert!(
                settings.warnings.contains(&warning),
                "{:?}",
                settings.warnings
            );
        }
    }

    #[test]
    fn o_56_a_blank_hostname_override_is_refused_and_an_empty_one_is_none() {
        assert!(matches!(
            load(&["--hostname-override=  "]),
            Err(ConfigError::Invalid(_))
        ));
        assert_eq!(load(&["--hostname-override="]).unwrap().node_name, None);
    }

    #[test]
    fn o_1_errors_say_which_file_and_which_field() {
        let error = load(&["--config=/nonexistent/config.yaml"]).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/config.yaml"),
            "{error}"
        );
        assert!(error.source().is_some());

        let file = write(&format!("{META}conntrack: {{min: lots}}\n"));
        let error = load(&["--config", file.path().to_str().unwrap()]).unwrap_err();
        let cause = error.source().unwrap().to_string();
        assert!(cause.starts_with("conntrack.min: invalid type"), "{cause}");

        let error = load(&["--proxy-mode=ipvs", "--oom-score-adj", "-2000"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("KubeProxyConfiguration.oomScoreAdj: "),
            "{error}"
        );
        assert!(error.contains("KubeProxyConfiguration.mode: "), "{error}");
    }
}
