//! kube-proxy's command line flags, as one table.
//!
//! A row says what a flag is called, what `--help` shows, and which field of the configuration
//! document it writes. Parsing, `--help`, precedence and the warnings all follow from the table.
//! Validity beyond a value's syntax is decided in `validate.rs`. Entry point: [`ConfigFlags`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::address::{append_port_if_needed, parse_ip, parse_socket_address};
use super::file::{HEALTHZ_PORT, KubeProxyConfiguration as Config, METRICS_PORT, VmoduleItem};

/// The flags that configure the proxy.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFlags {
    /// Read the configuration from this KubeProxyConfiguration file; of the flags below only the
    /// logging ones count beside it
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    /// URL of the API server, over that of the kubeconfig
    #[arg(long, value_name = "URL", help_heading = "Configuration")]
    pub(crate) master: Option<String>,
    /// URLs of the API servers, over that of the kubeconfig; the first that can be reached is used
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        conflicts_with = "master",
        help_heading = "Configuration"
    )]
    pub(crate) api_servers: Vec<String>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", help_heading = "Configuration")]
    pub(crate) hostname_override: Option<String>,
    #[command(flatten)]
    pub(super) values: FlagValues,
}

impl ConfigFlags {
    /// The flags that were given, with their values in order.
    pub(super) fn given(&self) -> BTreeMap<&'static str, Vec<String>> {
        let values = self.values.given.iter();
        let mut given: BTreeMap<_, _> = values
            .map(|given| (given.flag.name, given.values.clone()))
            .collect();
        let path = self.config.as_ref();
        for (name, value) in [
            ("config", path.map(|path| path.display().to_string())),
            ("master", self.master.clone()),
            ("hostname-override", self.hostname_override.clone()),
        ] {
            if let Some(value) = value {
                given.insert(name, vec![value]);
            }
        }
        given
    }
}

struct Group {
    /// The heading in `--help`; none hides the group.
    heading: Option<&'static str>,
    effect: Effect,
    flags: &'static [Flag],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Writes the configuration, unless a file is given.
    WithoutFile,
    /// Writes the configuration, over that of a file.
    BesideFile,
    /// Accepted for the sake of kube-proxy's command line.
    None,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    /// As `--help` shows it; empty shows none.
    default: &'static str,
    help: &'static str,
    set: Setter,
}

enum Kind {
    /// Takes a value, which `--help` calls by this name.
    Value(&'static str),
    /// True when given alone; any value needs `=`.
    Switch,
}

/// Writes a value into the configuration, or says what is wrong with it.
type Setter = fn(&mut Config, &str) -> Result<(), String>;

const fn value(
    name: &'static str,
    value_name: &'static str,
    default: &'static str,
    help: &'static str,
    set: Setter,
) -> Flag {
    Flag {
        name,
        kind: Kind::Value(value_name),
        default,
        help,
        set,
    }
}

const fn switch(name: &'static str, help: &'static str, set: Setter) -> Flag {
    Flag {
        name,
        kind: Kind::Switch,
        default: "false",
        help,
        set,
    }
}

const fn hidden(name: &'static str, set: Setter) -> Flag {
    value(name, "VALUE", "", "", set)
}

const GROUPS: &[Group] = &[
    Group {
        heading: Some("Kubernetes API"),
        effect: Effect::WithoutFile,
        flags: &[
            value(
                "kubeconfig",
                "FILE",
                "in-cluster credentials",
                "Kubeconfig with the API server's location and credentials",
                |c, v| put(&mut c.client_connection.kubeconfig, v),
            ),
            value(
                "kube-api-qps",
                "QPS",
                "5",
                "Requests to the API server per second",
                |c, v| put(&mut c.client_connection.qps, v),
            ),
            value(
                "kube-api-burst",
                "N",
                "10",
                "Requests allowed in a burst",
                |c, v| put(&mut c.client_connection.burst, v),
            ),
            value(
                "kube-api-content-type",
                "TYPE",
                "application/vnd.kubernetes.protobuf",
                "Encoding that is asked of the API server; JSON is always taken",
                |c, v| put(&mut c.client_connection.content_type, v),
            ),
        ],
    },
    Group {
        heading: Some("Traffic"),
        effect: Effect::WithoutFile,
        flags: &[
            value(
                "proxy-mode",
                "MODE",
                "nftables",
                "Only nftables is implemented",
                |c, v| put(&mut c.mode, v),
            ),
            value(
                "cluster-cidr",
                "CIDR[,CIDR]",
                "",
                "Pod network of the cluster, one CIDR per family; traffic from elsewhere to a \
                 Service is masqueraded",
                |c, v| put(&mut c.cluster_cidr, v),
            ),
            value(
                "detect-local-mode",
                "MODE",
                "ClusterCIDR",
                "How traffic of local pods is recognised: ClusterCIDR, NodeCIDR, BridgeInterface \
                 or InterfaceNamePrefix",
                |c, v| put(&mut c.detect_local_mode, v),
            ),
            value(
                "pod-bridge-interface",
                "NAME",
                "",
                "The bridge of detect-local-mode BridgeInterface",
                |c, v| put(&mut c.detect_local.bridge_interface, v),
            ),
            value(
                "pod-interface-name-prefix",
                "PREFIX",
                "",
                "The prefix of detect-local-mode InterfaceNamePrefix",
                |c, v| put(&mut c.detect_local.interface_name_prefix, v),
            ),
            value(
                "nodeport-addresses",
                "CIDR,...",
                "primary",
                "Local addresses that accept NodePort traffic; `primary` means the node's own, `localhost` loopback, `all` both and all others",
                |c, v| extend(&mut c.node_port_addresses, v),
            ),
            switch(
                "masquerade-all",
                "Masquerade all traffic to Services",
                |c, v| put_bool(&mut c.nftables.masquerade_all, v),
            ),
            value(
                "bind-address",
                "IP",
                "0.0.0.0",
                "Primary node IP, unless a wildcard; no socket is bound to it",
                |c, v| put_ip(&mut c.bind_address, v),
            ),
            value(
                "iptables-sync-period",
                "DURATION",
                "30s",
                "Delay before a failed sync is retried",
                |c, v| put(&mut c.nftables.sync_period, v),
            ),
            value(
                "iptables-min-sync-period",
                "DURATION",
                "1s",
                "Least time between two syncs; unless it is given, they are paced by what they cost, \
                 5 ms to 1 s apart",
                |c, v| {
                    c.nftables.is_min_sync_period_set = true;
                    put(&mut c.nftables.min_sync_period, v)
                },
            ),
            value(
                "feature-gates",
                "NAME=BOOL,...",
                "",
                "AllowServiceExternalIPs, ComponentFlagz and ComponentStatusz have an effect",
                put_feature_gates,
            ),
        ],
    },
    Group {
        heading: Some("Kernel"),
        effect: Effect::WithoutFile,
        flags: &[
            value(
                "oom-score-adj",
                "N",
                "-999",
                "Score of this process, -1000 to 1000",
                |c, v| put_some(&mut c.oom_score_adj, v),
            ),
            value(
                "conntrack-max-per-core",
                "N",
                "32768",
                "Size of the conntrack table per CPU core; 0 leaves the table as it is",
                |c, v| put_some(&mut c.conntrack.max_per_core, v),
            ),
            value(
                "conntrack-min",
                "N",
                "131072",
                "Least size of the conntrack table",
                |c, v| put_some(&mut c.conntrack.min, v),
            ),
            value(
                "conntrack-tcp-timeout-established",
                "DURATION",
                "24h",
                "Timeout of established TCP connections; 0 leaves it as it is",
                |c, v| put_some(&mut c.conntrack.tcp_established_timeout, v),
            ),
            value(
                "conntrack-tcp-timeout-close-wait",
                "DURATION",
                "1h",
                "Timeout of TCP connections in CLOSE_WAIT; 0 leaves it as it is",
                |c, v| put_some(&mut c.conntrack.tcp_close_wait_timeout, v),
            ),
            switch(
                "conntrack-tcp-be-liberal",
                "Accept TCP packets outside the window",
                |c, v| put_bool(&mut c.conntrack.tcp_be_liberal, v),
            ),
            value(
                "conntrack-udp-timeout",
                "DURATION",
                "0",
                "Timeout of idle UDP flows; 0 leaves it as it is",
                |c, v| put(&mut c.conntrack.udp_timeout, v),
            ),
            value(
                "conntrack-udp-timeout-stream",
                "DURATION",
                "0",
                "Timeout of idle UDP flows seen in both directions; 0 leaves it as it is",
                |c, v| put(&mut c.conntrack.udp_stream_timeout, v),
            ),
        ],
    },
    Group {
        heading: Some("Health and metrics"),
        effect: Effect::WithoutFile,
        flags: &[
            value(
                "healthz-bind-address",
                "IP[:PORT]",
                "0.0.0.0:10256",
                "Listener of the health check; empty disables it",
                |c, v| put_listener(&mut c.healthz_bind_address, v),
            ),
            value(
                "metrics-bind-address",
                "IP[:PORT]",
                "127.0.0.1:10249",
                "Listener of the metrics; empty disables it",
                |c, v| put_listener(&mut c.metrics_bind_address, v),
            ),
            switch(
                "bind-address-hard-fail",
                "Exit when a listener cannot be bound",
                |c, v| put_bool(&mut c.bind_address_hard_fail, v),
            ),
            switch(
                "profiling",
                "Serve /debug/pprof beside the metrics",
                |c, v| put_bool(&mut c.enable_profiling, v),
            ),
        ],
    },
    Group {
        heading: Some("Logging"),
        effect: Effect::BesideFile,
        flags: &[
            value("v", "N", "0", "Verbosity", |c, v| {
                put(&mut c.logging.verbosity, v)
            }),
            value(
                "log-filter",
                "MODULE=LEVEL,...",
                "",
                "Levels of single modules, over -v: error, warn, info, debug or trace",
                |c, v| put_log_filter(&mut c.nftproxy.log_filter, v),
            ),
            value(
                "logging-format",
                "FORMAT",
                "text",
                "text or json",
                |c, v| put(&mut c.logging.format, v),
            ),
        ],
    },
    Group {
        heading: None,
        effect: Effect::BesideFile,
        flags: &[
            hidden("vmodule", put_vmodule),
            hidden("log-flush-frequency", |c, v| {
                put(&mut c.logging.flush_frequency, v)
            }),
            switch("log-text-split-stream", "", |c, v| {
                put_bool(&mut c.logging.options.text.split_stream, v)
            }),
            hidden("log-text-info-buffer-size", |c, v| {
                put(&mut c.logging.options.text.info_buffer_size, v)
            }),
            switch("log-json-split-stream", "", |c, v| {
                put_bool(&mut c.logging.options.json.split_stream, v)
            }),
            hidden("log-json-info-buffer-size", |c, v| {
                put(&mut c.logging.options.json.info_buffer_size, v)
            }),
        ],
    },
    Group {
        heading: None,
        effect: Effect::WithoutFile,
        flags: &[
            hidden("config-sync-period", |c, v| {
                put(&mut c.config_sync_period, v)
            }),
            hidden("show-hidden-metrics-for-version", |c, v| {
                put(&mut c.show_hidden_metrics_for_version, v)
            }),
            hidden("iptables-masquerade-bit", |c, v| {
                put_some(&mut c.iptables.masquerade_bit, v)
            }),
            switch("iptables-localhost-nodeports", "", |c, v| {
                put_bool(c.iptables.localhost_node_ports.get_or_insert_default(), v)
            }),
            hidden("ipvs-sync-period", |c, v| put(&mut c.ipvs.sync_period, v)),
            hidden("ipvs-min-sync-period", |c, v| {
                put(&mut c.ipvs.min_sync_period, v)
            }),
            hidden("ipvs-scheduler", |c, v| put(&mut c.ipvs.scheduler, v)),
            hidden("ipvs-exclude-cidrs", |c, v| {
                extend(&mut c.ipvs.exclude_cidrs, v)
            }),
            switch("ipvs-strict-arp", "", |c, v| {
                put_bool(&mut c.ipvs.strict_arp, v)
            }),
            hidden("ipvs-tcp-timeout", |c, v| put(&mut c.ipvs.tcp_timeout, v)),
            hidden("ipvs-tcpfin-timeout", |c, v| {
                put(&mut c.ipvs.tcp_fin_timeout, v)
            }),
            hidden("ipvs-udp-timeout", |c, v| put(&mut c.ipvs.udp_timeout, v)),
            // These two act on the addresses once those are known: see `apply_deprecated_ports`.
            hidden("healthz-port", |_, v| port(v).map(drop)),
            hidden("metrics-port", |_, v| port(v).map(drop)),
        ],
    },
    Group {
        heading: None,
        effect: Effect::None,
        flags: &[
            hidden("boot-id-file", |_, _| Ok(())),
            hidden("machine-id-file", |_, _| Ok(())),
        ],
    },
];

fn put<T: FromStr<Err: ToString>>(field: &mut T, text: &str) -> Result<(), String> {
    *field = text.parse().map_err(|error: T::Err| error.to_string())?;
    Ok(())
}

fn put_some<T: FromStr<Err: ToString>>(field: &mut Option<T>, text: &str) -> Result<(), String> {
    *field = Some(text.parse().map_err(|error: T::Err| error.to_string())?);
    Ok(())
}

fn put_bool(field: &mut bool, text: &str) -> Result<(), String> {
    *field = match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err("expected true or false".to_owned()),
    };
    Ok(())
}

/// Appends the items of a comma list: a list flag that is given again goes on.
fn extend(field: &mut Vec<String>, text: &str) -> Result<(), String> {
    if !text.is_empty() {
        field.extend(text.split(',').map(str::to_owned));
    }
    Ok(())
}

/// Empty leaves the address as it is.
fn put_ip(field: &mut String, text: &str) -> Result<(), String> {
    if !text.is_empty() {
        parse_ip(text)?;
        text.clone_into(field);
    }
    Ok(())
}

/// Empty switches the listener off, as kube-proxy's help promises and kube-proxy does not.
fn put_listener(field: &mut String, text: &str) -> Result<(), String> {
    if !text.is_empty() && parse_ip(text).is_err() {
        parse_socket_address(text)?;
    }
    text.clone_into(field);
    Ok(())
}

fn put_log_filter(field: &mut String, text: &str) -> Result<(), String> {
    super::log_filter::directives(text)?;
    text.clone_into(field);
    Ok(())
}

fn put_feature_gates(config: &mut Config, text: &str) -> Result<(), String> {
    for item in text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let (name, on) = item
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {item}"))?;
        let gate = config
            .feature_gates
            .entry(name.trim().to_owned())
            .or_default();
        put_bool(gate, on.trim()).map_err(|reason| format!("{name}: {reason}"))?;
    }
    Ok(())
}

fn put_vmodule(config: &mut Config, text: &str) -> Result<(), String> {
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let parsed = item.split_once('=').and_then(|(pattern, verbosity)| {
            let file_pattern = (!pattern.is_empty()).then(|| pattern.to_owned())?;
            Some(VmoduleItem {
                file_pattern,
                verbosity: verbosity.parse().ok()?,
            })
        });
        let item = parsed.ok_or_else(|| format!("{item:?} does not have the pattern=N format"))?;
        config.logging.vmodule.push(item);
    }
    Ok(())
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|error: std::num::ParseIntError| error.to_string())
}

/// The flags of the table that were given, in its order, each with its values in theirs.
#[derive(Debug, Clone, Default)]
pub(super) struct FlagValues {
    given: Vec<Given>,
}

#[derive(Clone)]
struct Given {
    flag: &'static Flag,
    effect: Effect,
    values: Vec<String>,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--{}={:?}", self.flag.name, self.values)
    }
}

impl Given {
    /// A scalar's last value wins, since each overwrites the one before.
    fn set(&self, config: &mut Config) {
        for value in &self.values {
            (self.flag.set)(config, value).expect("parsing has tried this setter on this value");
        }
    }
}

impl FlagValues {
    /// Writes every flag over the defaults; returns warnings.
    pub(super) fn apply(&self, config: &mut Config) -> Vec<String> {
        let mut warnings = Vec::new();
        for given in &self.given {
            match given.effect {
                Effect::WithoutFile | Effect::BesideFile => given.set(config),
                Effect::None => {
                    warnings.push(format!(
                        "--{} is accepted but has no effect",
                        given.flag.name
                    ));
                }
            }
        }
        self.apply_deprecated_ports(config, &mut warnings);
        warnings
    }

    /// Writes the flags that count beside a configuration file; returns a warning naming the rest.
    pub(super) fn apply_beside_file(&self, config: &mut Config) -> Option<String> {
        let vmodule_of_file = std::mem::take(&mut config.logging.vmodule);
        let mut ignored = Vec::new();
        for given in &self.given {
            match given.effect {
                Effect::BesideFile => given.set(config),
                Effect::WithoutFile | Effect::None => {
                    ignored.push(format!("--{}", given.flag.name))
                }
            }
        }
        config.logging.vmodule.extend(vmodule_of_file);
        (!ignored.is_empty())
            .then(|| format!("flags ignored because of --config: {}", ignored.join(", ")))
    }

    /// A port flag counts only for an address given without a port, save that 0 switches off.
    fn apply_deprecated_ports(&self, config: &mut Config, warnings: &mut Vec<String>) {
        for (name, replacement, default, address) in [
            (
                "healthz-port",
                "healthz-bind-address",
                HEALTHZ_PORT,
                &mut config.healthz_bind_address,
            ),
            (
                "metrics-port",
                "metrics-bind-address",
                METRICS_PORT,
                &mut config.metrics_bind_address,
            ),
        ] {
            let given = self.given.iter().find(|given| given.flag.name == name);
            if given.is_some() {
                warnings.push(format!("--{name} is deprecated, use --{replacement}"));
            }
            let value = given.and_then(|given| given.values.last());
            match value.and_then(|value| port(value).ok()).unwrap_or(default) {
                0 => address.clear(),
                port => *address = append_port_if_needed(address, port),
            }
        }
    }
}

impl Args for FlagValues {
    fn augment_args(mut command: Command) -> Command {
        for group in GROUPS {
            for flag in group.flags {
                command = command.arg(argument(flag, group.heading));
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(flag: &'static Flag, heading: Option<&'static str>) -> Arg {
    let help = match flag.default {
        "" => flag.help.to_owned(),
        default => format!("{} [default: {default}]", flag.help),
    };
    let check = |text: &str| (flag.set)(&mut Config::default(), text).map(|()| text.to_owned());
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .help(help)
        .help_heading(heading)
        .hide(heading.is_none())
        .action(ArgAction::Append)
        .value_parser(check);
    let arg = if flag.name.len() == 1 {
        arg.short(flag.name.chars().next())
    } else {
        arg
    };
    match flag.kind {
        Kind::Value(name) => arg.value_name(name).allow_hyphen_values(true),
        Kind::Switch => arg
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

impl FromArgMatches for FlagValues {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for group in GROUPS {
            for flag in group.flags {
                if let Some(values) = matches.get_many::<String>(flag.name) {
                    let values = values.cloned().collect();
                    given.push(Given {
                        flag,
                        effect: group.effect,
                        values,
                    });
                }
            }
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{NodePortAddresses, Settings};
    use super::*;

    pub(in super::super) fn parse(args: &[&str]) -> Result<ConfigFlags, clap::Error> {
        let command = ConfigFlags::augment_args(Command::new("nftproxy")).no_binary_name(true);
        ConfigFlags::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    fn load(args: &[&str]) -> Settings {
        Settings::load(&parse(args).unwrap()).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    /// Flag, value, and the field of the document with what it then holds.
    pub(in super::super) const FIELD_OF_FLAG: &str = "
kubeconfig                        /k               /clientConnection/kubeconfig         /k
kube-api-content-type             text/json        /clientConnection/contentType        text/json
kube-api-burst                    7                /clientConnection/burst              7
kube-api-qps                      2.5              /clientConnection/qps                2.5
bind-address                      10.0.0.1         /bindAddress                         10.0.0.1
healthz-bind-address              10.0.0.1:80      /healthzBindAddress                  10.0.0.1:80
metrics-bind-address              ::1              /metricsBindAddress                  [::1]:10249
bind-address-hard-fail            true             /bindAddressHardFail                 true
profiling                         1                /enableProfiling                     true
show-hidden-metrics-for-version   1.35             /showHiddenMetricsForVersion         1.35
proxy-mode                        nftables         /mode                                nftables
masquerade-all                    true             /nftables/masqueradeAll              true
detect-local-mode                 NodeCIDR         /detectLocalMode                     NodeCIDR
pod-bridge-interface              br0              /detectLocal/bridgeInterface         br0
pod-interface-name-prefix         veth             /detectLocal/interfaceNamePrefix     veth
cluster-cidr                      10.0.0.0/8       /clusterCIDR                         10.0.0.0/8
nodeport-addresses                10.0.0.0/8       /nodePortAddresses/0                 10.0.0.0/8
oom-score-adj                     -1               /oomScoreAdj                         -1
conntrack-max-per-core            0                /conntrack/maxPerCore                0
conntrack-min                     0                /conntrack/min                       0
conntrack-tcp-timeout-established 0                /conntrack/tcpEstablishedTimeout     0s
conntrack-tcp-timeout-close-wait  2s               /conntrack/tcpCloseWaitTimeout       2s
conntrack-tcp-be-liberal          true             /conntrack/tcpBeLiberal              true
conntrack-udp-timeout             3s               /conntrack/udpTimeout                3s
conntrack-udp-timeout-stream      4s               /conntrack/udpStreamTimeout          4s
config-sync-period                5m               /configSyncPeriod                    5m0s
feature-gates                     A=true,B=false   /featureGates/A                      true
# O-58: they are for logging.
v                                 3                /logging/verbosity                   3
log-filter                        source=debug     /nftproxy/logFilter                  source=debug
vmodule                           a=1              /logging/vmodule/0/filePattern       a
logging-format                    json             /logging/format                      json
log-flush-frequency               6s               /logging/flushFrequency              6s
log-text-split-stream             false            /logging/options/text/splitStream    false
log-text-info-buffer-size         0Ki              /logging/options/text/infoBufferSize 0Ki
log-json-split-stream             false            /logging/options/json/splitStream    false
log-json-info-buffer-size         0Mi              /logging/options/json/infoBufferSize 0Mi
# O-59: nftables takes its periods from these.
iptables-sync-period              9s               /nftables/syncPeriod                 9s
iptables-min-sync-period          0                /nftables/minSyncPeriod              0s
# O-60: inert.
ipvs-sync-period                  9s               /ipvs/syncPeriod                     9s
ipvs-min-sync-period              9s               /ipvs/minSyncPeriod                  9s
iptables-masquerade-bit           3                /iptables/masqueradeBit              3
iptables-localhost-nodeports      true             /iptables/localhostNodePorts         true
ipvs-scheduler                    rr               /ipvs/scheduler                      rr
ipvs-exclude-cidrs                10.0.0.0/8       /ipvs/excludeCIDRs/0                 10.0.0.0/8
ipvs-strict-arp                   true             /ipvs/strictARP                      true
ipvs-tcp-timeout                  1s               /ipvs/tcpTimeout                     1s
ipvs-tcpfin-timeout               1s               /ipvs/tcpFinTimeout                  1s
ipvs-udp-timeout                  1s               /ipvs/udpTimeout                     1s
";

    #[test]
    fn o_57_to_o_60_every_flag_writes_its_field() {
        let rows = FIELD_OF_FLAG
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut n_rows = 0;
        for row in rows {
            let [flag, value, pointer, expected] = row
                .split_whitespace()
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
            let effective = load(&[&format!("--{flag}={value}")]).effective;
            let effective = serde_json::to_value(effective).unwrap();
            // What is false may be left out.
            let unset = serde_json::Value::Bool(false);
            let field = effective.pointer(pointer).unwrap_or(&unset);
            let field = field
                .as_str()
                .map_or_else(|| field.to_string(), str::to_owned);
            assert_eq!(field, expected, "{flag}");
            n_rows += 1;
        }
        let n_flags: usize = GROUPS.iter().map(|group| group.flags.len()).sum();
        assert_eq!(
            n_flags,
            n_rows + 4,
            "the ports and the id files write no field"
        );
    }

    #[test]
    fn o_10_scalars_take_their_last_value_and_lists_go_on() {
        let settings = load(&[
            "--kube-api-burst=1",
            "--kube-api-burst",
            "2",
            "--nodeport-addresses=10.0.0.0/8,11.0.0.0/8",
            "--nodeport-addresses=12.0.0.0/8",
            "--masquerade-all",
            "--masquerade-all=false",
            "--profiling",
            "-v",
            "1",
            "--v=5",
        ]);
        assert_eq!(settings.burst, 2);
        let NodePortAddresses::Cidrs(cidrs) = &settings.node_port_addresses else {
            panic!("{:?}", settings.node_port_addresses);
        };
        assert_eq!(cidrs.len(), 3);
        assert!(!settings.masquerade_all);
        assert!(settings.enable_profiling);
        assert_eq!(settings.log.verbosity, 5);
    }

    #[test]
    fn o_10_a_switch_takes_no_separate_value() {
        assert!(parse(&["--masquerade-all", "true"]).is_err());
    }

    #[test]
    fn malformed_values_and_o_64_unknown_flags_are_usage_errors() {
        for argument in [
            "--bind-address=node-a",
            "--healthz-bind-address=10.0.0.1:0",
            "--healthz-port=x",
            "--metrics-port=70000",
            "--kube-api-burst=many",
            "--iptables-sync-period=5",
            "--masquerade-all=maybe",
            "--feature-gates=A",
            "--feature-gates=A=maybe",
            "--vmodule=a",
            "--vmodule==1",
            "--nftables-sync-period=1s",
            "positional",
        ] {
            assert!(parse(&[argument]).is_err(), "{argument} was accepted");
        }
    }

    #[test]
    fn o_60_inert_flags_warn_once_each_unless_they_ask_for_the_default() {
        let warnings = load(&[
            "--ipvs-scheduler=rr",
            "--boot-id-file=/b",
            "--ipvs-sync-period=30s",
        ])
        .warnings;
        assert_eq!(
            warnings,
            [
                "--boot-id-file is accepted but has no effect",
                "ipvs.scheduler is accepted but has no effect",
            ]
        );
    }

    #[test]
    fn o_163_the_flags_of_static_pods_are_taken_without_a_file() {
        let settings = load(&[
            "--kubeconfig=/var/lib/kube-proxy/kubeconfig",
            "--cluster-cidr=10.64.0.0/14",
            "--oom-score-adj=-998",
            "--v=2",
            "--proxy-mode=nftables",
            "--conntrack-tcp-be-liberal",
        ]);
        assert_eq!(settings.warnings, [""; 0]);
        assert_eq!(settings.oom_score_adj, -998);
        assert_eq!(settings.log.verbosity, 2);
        assert!(settings.conntrack.tcp_be_liberal);
        assert_eq!(settings.cluster_cidrs, ["10.64.0.0/14".parse().unwrap()]);
    }

    /// O-165: the ports if nothing is said.
    #[test]
    fn o_61_o_62_o_63_listeners_of_the_flags() {
        // Arguments, then where health and metrics are served.
        let cases: &[(&[&str], &str, &str)] = &[
            (&[], "0.0.0.0:10256", "127.0.0.1:10249"),
            (&["--bind-address=::"], "0.0.0.0:10256", "127.0.0.1:10249"),
            (&["--bind-address="], "0.0.0.0:10256", "127.0.0.1:10249"),
            (
                &["--healthz-port=1", "--metrics-port=2"],
                "0.0.0.0:10256",
                "127.0.0.1:10249",
            ),
            (
                &["--healthz-port=1", "--healthz-bind-address=10.0.0.1"],
                "10.0.0.1:1",
                "127.0.0.1:10249",
            ),
            (
                &["--healthz-bind-address=10.0.0.1"],
                "10.0.0.1:10256",
                "127.0.0.1:10249",
            ),
            (&["--healthz-port=0", "--metrics-port=0"], "none", "none"),
            (
                &["--healthz-bind-address=", "--metrics-bind-address="],
                "none",
                "none",
            ),
        ];
        for (args, healthz, metrics) in cases {
            let settings = load(args);
            let text = |address: Option<std::net::SocketAddr>| {
                address.map_or_else(|| "none".to_owned(), |address| address.to_string())
            };
            assert_eq!(text(settings.healthz_bind_address), *healthz, "{args:?}");
            assert_eq!(text(settings.metrics_bind_address), *metrics, "{args:?}");
        }
        let warnings = load(&["--healthz-port=1"]).warnings;
        assert_eq!(
            warnings,
            ["--healthz-port is deprecated, use --healthz-bind-address"]
        );
    }
}
