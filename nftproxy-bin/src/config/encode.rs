//! The effective configuration as a document again: for `/configz` and `--write-config-to`.

use super::duration::GoDuration;
use super::file::KubeProxyConfiguration;

impl KubeProxyConfiguration {
    /// One line of JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(&self.encoded()).expect("the document has a JSON form")
    }

    /// YAML with sorted keys, which means the same when it is read again.
    pub(crate) fn to_yaml(&self) -> String {
        let mut config = self.encoded();
        if !config.nftables.is_min_sync_period_set {
            // What kube-proxy does without one would be taken for somebody's wish.
            config.nftables.min_sync_period = GoDuration::ZERO;
        }
        let value = serde_json::to_value(config).expect("the document has a JSON form");
        serde_norway::to_string(&value).expect("what is JSON is YAML")
    }

    /// kube-proxy converts only the section of its mode back; those of other modes lose their
    /// periods.
    fn encoded(&self) -> Self {
        let mut config = self.clone();
        config.iptables.sync_period = GoDuration::ZERO;
        config.iptables.min_sync_period = GoDuration::ZERO;
        config.ipvs.sync_period = GoDuration::ZERO;
        config.ipvs.min_sync_period = GoDuration::ZERO;
        config.iptables.localhost_node_ports.get_or_insert(true);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-6, O-112: a recorded document is read and written to the byte.
    #[test]
    fn the_json_is_kube_proxys() {
        let text = include_str!("../testdata/kube-proxy-http/configz.txt");
        let body = text.split_once("\n\n").unwrap().1;
        let document = body
            .strip_prefix("{\"kubeproxy.config.k8s.io\":")
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap();
        let (mut config, strays) = KubeProxyConfiguration::decode(document).unwrap();
        assert_eq!(strays, [""; 0]);
        config.set_defaults();
        assert_eq!(config.to_json(), document);
    }

    /// O-13: what is written is read again, and means the same.
    #[test]
    fn the_yaml_means_the_same() {
        let config = KubeProxyConfiguration::defaults();
        let yaml = config.to_yaml();
        assert!(
            yaml.starts_with("apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"),
            "{yaml}"
        );
        let (mut read, strays) = KubeProxyConfiguration::decode(&yaml).unwrap();
        assert_eq!(strays, [""; 0]);
        read.set_defaults();
        assert_eq!(read.to_json(), config.to_json());
        let min_sync_period = |config: &KubeProxyConfiguration| {
            let settings = config.nftables.is_min_sync_period_set;
            settings.then_some(config.nftables.min_sync_period)
        };
        assert_eq!(min_sync_period(&read), None, "nobody has asked for one");
        let mut wish = config;
        wish.nftables.is_min_sync_period_set = true;
        let (mut read, _) = KubeProxyConfiguration::decode(&wish.to_yaml()).unwrap();
        read.set_defaults();
        assert_eq!(min_sync_period(&read), Some(GoDuration::from_secs(1)));
    }
}
