//! What was asked of API servers.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::Register;

/// Requests to API servers, and the lists and watches that they make up.
#[derive(Clone)]
pub(crate) struct ApiMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    lists: IntCounterVec,
    watches: IntCounterVec,
}

/// The status code of a request that had no answer.
const ERROR: &str = "<error>";

impl ApiMetrics {
    pub(super) fn new(register: &Register) -> Self {
        Self {
            requests: register.counters(
                "rest_client_requests_total",
                "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
                &["code", "host", "method"],
            ),
            durations: register.histograms(
                "rest_client_request_duration_seconds",
                "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
                &["host", "verb"],
                vec![
                    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
                ],
            ),
            lists: register.counters(
                "nftproxy_lists_total",
                "Whole lists that came from the API server, by kind",
                &["kind"],
            ),
            watches: register.counters(
                "nftproxy_watches_total",
                "Watches that the API server began to answer, by kind",
                &["kind"],
            ),
        }
    }

    /// A request was answered with a status, or with none. A watch takes no time.
    pub(crate) fn requested(
        &self,
        host: &str,
        method: &str,
        status: Option<u16>,
        took: Option<Duration>,
    ) {
        let code = status.map_or_else(|| ERROR.to_owned(), |status| status.to_string());
        let requests = &self.requests;
        requests
            .with_label_values(&[code.as_str(), host, method])
            .inc();
        if let Some(took) = took {
            let durations = self.durations.with_label_values(&[host, method]);
            durations.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn listed(&self, kind: &str) {
        self.lists.with_label_values(&[kind]).inc();
    }

    pub(crate) fn watching(&self, kind: &str) {
        self.watches.with_label_values(&[kind]).inc();
    }
}
