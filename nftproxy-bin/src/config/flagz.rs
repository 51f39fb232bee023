//! Every flag of kube-proxy's with the value that it has, for `/flagz` and the log.
//!
//! As in kube-proxy these are the flags alone: beside a configuration file most have no effect.

use std::collections::BTreeMap;

use super::duration::GoDuration;
use super::flags::ConfigFlags;

/// kube-proxy's flags and their defaults, as it prints them.
const DEFAULTS: &[(&str, &str)] = &[
    ("bind-address", "0.0.0.0"),
    ("bind-address-hard-fail", "false"),
    ("boot-id-file", "/proc/sys/kernel/random/boot_id"),
    ("cleanup", "false"),
    ("cluster-cidr", ""),
    ("config", ""),
    ("config-sync-period", "15m0s"),
    ("conntrack-max-per-core", "32768"),
    ("conntrack-min", "131072"),
    ("conntrack-tcp-be-liberal", "false"),
    ("conntrack-tcp-timeout-close-wait", "1h0m0s"),
    ("conntrack-tcp-timeout-established", "24h0m0s"),
    ("conntrack-udp-timeout", "0s"),
    ("conntrack-udp-timeout-stream", "0s"),
    ("detect-local-mode", ""),
    ("feature-gates", ""),
    ("healthz-bind-address", "0.0.0.0:10256"),
    ("healthz-port", "10256"),
    ("help", "false"),
    ("hostname-override", ""),
    ("init-only", "false"),
    ("iptables-localhost-nodeports", "true"),
    ("iptables-masquerade-bit", "14"),
    ("iptables-min-sync-period", "1s"),
    ("iptables-sync-period", "30s"),
    ("ipvs-exclude-cidrs", "[]"),
    ("ipvs-min-sync-period", "1s"),
    ("ipvs-scheduler", ""),
    ("ipvs-strict-arp", "false"),
    ("ipvs-sync-period", "30s"),
    ("ipvs-tcp-timeout", "0s"),
    ("ipvs-tcpfin-timeout", "0s"),
    ("ipvs-udp-timeout", "0s"),
    ("kube-api-burst", "10"),
    (
        "kube-api-content-type",
        "application/vnd.kubernetes.protobuf",
    ),
    ("kube-api-qps", "5"),
    ("kubeconfig", ""),
    ("log-flush-frequency", "5s"),
    ("log-json-info-buffer-size", "0"),
    ("log-json-split-stream", "false"),
    ("log-text-info-buffer-size", "0"),
    ("log-text-split-stream", "false"),
    ("logging-format", "text"),
    (
        "machine-id-file",
        "/etc/machine-id,/var/lib/dbus/machine-id",
    ),
    ("masquerade-all", "false"),
    ("master", ""),
    ("metrics-bind-address", "127.0.0.1:10249"),
    ("metrics-port", "10249"),
    ("nodeport-addresses", "[]"),
    ("oom-score-adj", "-999"),
    ("pod-bridge-interface", ""),
    ("pod-interface-name-prefix", ""),
    ("profiling", "false"),
    ("proxy-mode", ""),
    ("show-hidden-metrics-for-version", ""),
    ("v", "0"),
    ("version", "false"),
    ("vmodule", ""),
    ("write-config-to", ""),
];

/// Names and values.
pub(super) fn flagz(flags: &ConfigFlags) -> BTreeMap<&'static str, String> {
    let given = flags.given();
    DEFAULTS
        .iter()
        .map(|(name, default)| {
            let value = given.get(name).map(|values| canonical(default, values));
            (*name, value.unwrap_or_else(|| (*default).to_owned()))
        })
        .collect()
}

/// Given values, as a flag with this default prints them.
fn canonical(default: &str, values: &[String]) -> String {
    let last = values.last().map_or("", String::as_str);
    if default == "[]" {
        return format!("[{}]", values.join(","));
    }
    if default == "true" || default == "false" {
        let is_true = matches!(last, "1" | "t" | "T" | "true" | "TRUE" | "True");
        return is_true.to_string();
    }
    match last.parse::<GoDuration>() {
        Ok(duration) if default.parse::<GoDuration>().is_ok() && default.ends_with('s') => {
            duration.to_string()
        }
        _ => last.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::tests::parse;
    use super::*;

    /// O-113: the recorded page's flags, and what was given, in Go's spelling.
    #[test]
    fn values_are_printed_as_go_prints_them() {
        let recorded = include_str!("../testdata/kube-proxy-http/flagz.txt");
        let recorded: BTreeMap<_, _> = recorded
            .lines()
            .skip_while(|line| !line.starts_with("bind-address:"))
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim_start().to_owned()))
            .collect();
        let flags = parse(&["--config=/var/lib/kube-proxy/config.conf", "-v=2"]).unwrap();
        assert_eq!(flagz(&flags), recorded);

        let flags = parse(&[
            "--conntrack-udp-timeout=90s",
            "--masquerade-all",
            "--nodeport-addresses=10.0.0.0/8,fd00::/8",
            "--kube-api-qps=7",
            "--hostname-override=a",
        ]);
        let values = flagz(&flags.unwrap());
        for (name, value) in [
            ("conntrack-udp-timeout", "1m30s"),
            ("masquerade-all", "true"),
            ("nodeport-addresses", "[10.0.0.0/8,fd00::/8]"),
            ("kube-api-qps", "7"),
            ("hostname-override", "a"),
        ] {
            assert_eq!(values[name], value, "{name}");
        }
    }
}
