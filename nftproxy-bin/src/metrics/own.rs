//! What kube-proxy does not tell: sizes, the kernel's share, repairs, and what is left out.

use nftproxy_core::compile::Note;
use nftproxy_core::engine::{Cause, Outcome};
use nftproxy_core::model::IpFamily;
use nftproxy_core::sync::Report;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};

use super::{Register, exponential};

const FAMILY: &str = "ip_family";
/// How it was found out that a table had to be repaired: the words of [`Cause::as_str`].
const CAUSES: [&str; 4] = ["lost", "touched", "comparison", "other-family"];
/// The reasons of [`Note::reason`].
const REASONS: [&str; 3] = ["Conflict", "Refused", "NoHash"];

/// Metrics of nftproxy's own.
#[derive(Clone)]
pub(crate) struct OwnMetrics {
    batch_bytes: HistogramVec,
    batch_elements: HistogramVec,
    kernel: HistogramVec,
    repairs: IntCounterVec,
    notes: IntGaugeVec,
    flows_forgotten: IntCounter,
    flow_failures: IntCounter,
}

impl OwnMetrics {
    pub(super) fn new(register: &Register, families: &[IpFamily]) -> Self {
        let metrics = Self {
            batch_bytes: register.histograms(
                "nftproxy_sync_batch_bytes",
                "Size of the netlink batch of a sync that changed something",
                &[FAMILY],
                exponential(256.0, 4.0, 10),
            ),
            batch_elements: register.histograms(
                "nftproxy_sync_batch_elements",
                "Elements of sets and maps that a sync added or deleted",
                &[FAMILY],
                exponential(1.0, 4.0, 11),
            ),
            kernel: register.histograms(
                "nftproxy_sync_kernel_duration_seconds",
                "Time from sending a batch to the kernel's consent",
                &[FAMILY],
                exponential(0.0001, 2.0, 18),
            ),
            repairs: register.counters(
                "nftproxy_repairs_total",
                "Tables that were not as they should be, and are again, by cause",
                &[FAMILY, "cause"],
            ),
            notes: register.gauges(
                "nftproxy_notes",
                "Things that Services ask for and the rules leave out now, by reason",
                &[FAMILY, "reason"],
            ),
            flows_forgotten: register.counter(
                "nftproxy_flows_forgotten_total",
                "Entries of connection tracking that were deleted as they led astray",
            ),
            flow_failures: register.counter(
                "nftproxy_flow_failures_total",
                "Attempts to look through connection tracking that failed, and are repeated",
            ),
        };
        for family in families {
            let family = family.kubernetes_name();
            for cause in CAUSES {
                metrics.repairs.with_label_values(&[family, cause]);
            }
            for reason in REASONS {
                metrics.notes.with_label_values(&[family, reason]);
            }
        }
        metrics
    }

    /// What a sync took. One that sent nothing had no batch.
    pub(crate) fn synced(&self, family: IpFamily, report: &Report) {
        if report.committed.bytes == 0 {
            return;
        }
        let label = &[family.kubernetes_name()];
        let bytes = self.batch_bytes.with_label_values(label);
        bytes.observe(report.committed.bytes as f64);
        let elements = self.batch_elements.with_label_values(label);
        elements.observe(report.counts.elements() as f64);
        let kernel = self.kernel.with_label_values(label);
        kernel.observe(report.timings.kernel.as_secs_f64());
    }

    /// What was done about flows.
    pub(crate) fn flows(&self, outcome: &Outcome) {
        match outcome {
            Outcome::FlowsForgotten { count } => self.flows_forgotten.inc_by(*count as u64),
            Outcome::FlowsFailed { .. } => self.flow_failures.inc(),
            _ => {}
        }
    }

    pub(crate) fn repaired(&self, family: IpFamily, cause: &Cause) {
        let counter = &self.repairs;
        counter
            .with_label_values(&[family.kubernetes_name(), cause.as_str()])
            .inc();
    }

    /// A note is in force since now, or no longer.
    pub(crate) fn note(&self, family: IpFamily, note: &Note, is_in_force: bool) {
        let gauge = self
            .notes
            .with_label_values(&[family.kubernetes_name(), note.reason()]);
        if is_in_force {
            gauge.inc();
        } else {
            gauge.dec();
        }
    }
}
