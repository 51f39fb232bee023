//! kube-proxy's own metrics.

use std::time::Duration;

use nftproxy_core::model::IpFamily;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Register, exponential, unix_time};

const FAMILY: &str = "ip_family";

/// What kube-proxy exposes in nftables mode.
#[derive(Clone)]
pub(crate) struct ProxyMetrics {
    sync: HistogramVec,
    full_sync: HistogramVec,
    partial_sync: HistogramVec,
    last_success: GaugeVec,
    last_queued: GaugeVec,
    network_programming: HistogramVec,
    pub(crate) slice_changes_pending: IntGauge,
    pub(crate) slice_changes: IntCounter,
    pub(crate) service_changes_pending: IntGauge,
    pub(crate) service_changes: IntCounter,
    pub(crate) healthz: IntCounterVec,
    pub(crate) livez: IntCounterVec,
    no_local_endpoints: IntGaugeVec,
    sync_failures: IntCounterVec,
    cleanup_failures: IntCounterVec,
    conntrack: HistogramVec,
    conntrack_deleted: IntCounterVec,
}

impl ProxyMetrics {
    pub(super) fn new(register: &Register, families: &[IpFamily]) -> Self {
        let sync_buckets = || exponential(0.001, 2.0, 15);
        let metrics = Self {
            sync: register.histograms(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds",
                &[FAMILY],
                sync_buckets(),
            ),
            full_sync: register.histograms(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for full resyncs",
                &[FAMILY],
                sync_buckets(),
            ),
            partial_sync: register.histograms(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for partial resyncs",
                &[FAMILY],
                sync_buckets(),
            ),
            last_success: register.float_gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "[ALPHA] The last time proxy rules were successfully synced",
                &[FAMILY],
            ),
            last_queued: register.float_gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "[ALPHA] The last time a sync of proxy rules was queued",
                &[FAMILY],
            ),
            network_programming: register.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "[ALPHA] In Cluster Network Programming Latency in seconds",
                &[FAMILY],
                network_programming_buckets(),
            ),
            slice_changes_pending: register.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] Pending proxy rules Endpoint changes",
            ),
            slice_changes: register.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "[ALPHA] Cumulative proxy rules Endpoint changes",
            ),
            service_changes_pending: register.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Pending proxy rules Service changes",
            ),
            service_changes: register.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Cumulative proxy rules Service changes",
            ),
            healthz: register.counters(
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Cumulative proxy healthz HTTP status",
                &["code"],
            ),
            livez: register.counters(
                "kubeproxy_proxy_livez_total",
                "[ALPHA] Cumulative proxy livez HTTP status",
                &["code"],
            ),
            no_local_endpoints: register.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "[ALPHA] Number of services with a Local traffic policy and no endpoints",
                &[FAMILY, "traffic_policy"],
            ),
            sync_failures: register.counters(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "[ALPHA] Cumulative proxy nftables sync failures",
                &[FAMILY],
            ),
            cleanup_failures: register.counters(
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                "[ALPHA] Cumulative proxy nftables cleanup failures",
                &[FAMILY],
            ),
            conntrack: register.histograms(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
                &[FAMILY],
                sync_buckets(),
            ),
            conntrack_deleted: register.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
                &[FAMILY],
            ),
        };
        // A rate over a counter that appears with its first failure misses that failure.
        for family in families {
            let label = &[family.kubernetes_name()];
            metrics.sync_failures.with_label_values(label);
            metrics.cleanup_failures.with_label_values(label);
            metrics.conntrack_deleted.with_label_values(label);
        }
        metrics
    }

    /// A sync has ended, well or not.
    pub(crate) fn synced(&self, family: IpFamily, is_full: bool, took: Duration) {
        let label = &[family.kubernetes_name()];
        let by_kind = if is_full {
            &self.full_sync
        } else {
            &self.partial_sync
        };
        for histogram in [&self.sync, by_kind] {
            histogram
                .with_label_values(label)
                .observe(took.as_secs_f64());
        }
    }

    /// A family's rules are in step now.
    pub(crate) fn succeeded(&self, family: IpFamily) {
        let gauge = &self.last_success;
        gauge
            .with_label_values(&[family.kubernetes_name()])
            .set(unix_time());
    }

    /// There is something to sync.
    pub(crate) fn queued(&self, family: IpFamily) {
        let gauge = &self.last_queued;
        gauge
            .with_label_values(&[family.kubernetes_name()])
            .set(unix_time());
    }

    pub(crate) fn sync_failed(&self, family: IpFamily) {
        let counter = &self.sync_failures;
        counter.with_label_values(&[family.kubernetes_name()]).inc();
    }

    pub(crate) fn cleanup_failed(&self, family: IpFamily) {
        let counter = &self.cleanup_failures;
        counter.with_label_values(&[family.kubernetes_name()]).inc();
    }

    /// What somebody changed so long ago is in the rules now.
    pub(crate) fn programmed(&self, family: IpFamily, after: Duration) {
        let histogram = &self.network_programming;
        histogram
            .with_label_values(&[family.kubernetes_name()])
            .observe(after.as_secs_f64());
    }

    /// Connection tracking was looked through.
    pub(crate) fn reconciled(&self, family: IpFamily, took: Duration) {
        let histogram = &self.conntrack;
        histogram
            .with_label_values(&[family.kubernetes_name()])
            .observe(took.as_secs_f64());
    }

    pub(crate) fn flows_deleted(&self, family: IpFamily, n: usize) {
        let counter = &self.conntrack_deleted;
        counter
            .with_label_values(&[family.kubernetes_name()])
            .inc_by(n as u64);
    }

    /// Service ports with a policy `Local` that have endpoints, but none here.
    pub(crate) fn set_no_local_endpoints(
        &self,
        family: IpFamily,
        internal: usize,
        external: usize,
    ) {
        for (policy, n) in [("internal", internal), ("external", external)] {
            let gauge = &self.no_local_endpoints;
            gauge
                .with_label_values(&[family.kubernetes_name(), policy])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}

/// Fine where service level objectives are: up to a minute.
fn network_programming_buckets() -> Vec<f64> {
    let steps = |range: std::ops::RangeInclusive<u32>, step| range.step_by(step).map(f64::from);
    let coarse = steps(1..=59, 1)
        .chain(steps(60..=115, 5))
        .chain(steps(120..=300, 30));
    [0.25, 0.5].into_iter().chain(coarse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-129
    #[test]
    fn network_programming_has_eighty_buckets() {
        let buckets = network_programming_buckets();
        assert_eq!(buckets.len(), 80);
        assert_eq!(buckets[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(buckets[60..64], [59.0, 60.0, 65.0, 70.0]);
        assert_eq!(
            buckets[72..],
            [115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0]
        );
    }
}
