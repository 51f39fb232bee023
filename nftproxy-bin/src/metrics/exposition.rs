//! Metrics as bytes: Prometheus' text, or protobuf for those who ask for it.
//!
//! kube-proxy offers no OpenMetrics, and answers those who ask for it with text; so do we.

use prometheus::{Encoder, ProtobufEncoder, TextEncoder};

use super::{Metrics, Register, process};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const PROTOBUF: &str = "application/vnd.google.protobuf; \
     proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores";

/// Metrics in one of the formats.
pub(crate) struct Exposition {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Metrics {
    /// All metrics as they are now, in the best format of a header `Accept`.
    pub(crate) fn expose(&self, accept: &str) -> Exposition {
        expose(&self.registry, accept)
    }
}

fn expose(registry: &prometheus::Registry, accept: &str) -> Exposition {
    let families = registry.gather();
    let mut bytes = Vec::new();
    if prefers_protobuf(accept) {
        // Writing into memory cannot fail, and families without metrics are not gathered.
        let _ = ProtobufEncoder::new().encode(&families, &mut bytes);
        return Exposition {
            content_type: PROTOBUF,
            bytes,
        };
    }
    let _ = TextEncoder::new().encode(&families, &mut bytes);
    Exposition {
        content_type: TEXT,
        bytes,
    }
}

/// Whether protobuf comes before text for a client, by quality and then by order.
fn prefers_protobuf(accept: &str) -> bool {
    let mut best = (0.0, false);
    for entry in accept.split(',') {
        let mut parameters = entry.split(';').map(str::trim);
        let name = parameters.next().unwrap_or_default();
        let parameters: Vec<_> = parameters.collect();
        let is_protobuf = name == "application/vnd.google.protobuf"
            && parameters.contains(&"proto=io.prometheus.client.MetricFamily")
            && parameters.contains(&"encoding=delimited");
        if !is_protobuf && !matches!(name, "text/plain" | "text/*" | "*/*") {
            continue;
        }
        let quality = parameters.iter().find_map(|part| part.strip_prefix("q="));
        let quality: f64 = quality.and_then(|q| q.parse().ok()).unwrap_or(1.0);
        if quality > best.0 {
            best = (quality, is_protobuf);
        }
    }
    best.1
}

/// The page `/metrics/slis`: how often this process was asked whether it lives.
pub(crate) struct Slis {
    registry: prometheus::Registry,
    total: prometheus::IntCounterVec,
}

impl Slis {
    pub(crate) fn new() -> Self {
        let register = Register(prometheus::Registry::new());
        let last = register.gauges(
            "kubernetes_healthcheck",
            "[STABLE] This metric records the result of a single healthcheck.",
            &["name", "type"],
        );
        last.with_label_values(&["ping", "healthz"]).set(1);
        let total = register.counters(
            "kubernetes_healthchecks_total",
            "[STABLE] This metric records the results of all healthcheck.",
            &["name", "status", "type"],
        );
        process::register_start_time(&register);
        Self {
            registry: register.0,
            total,
        }
    }

    /// Somebody asked.
    pub(crate) fn pinged(&self) {
        let labels = &["ping", "success", "healthz"];
        self.total.with_label_values(labels).inc();
    }

    pub(crate) fn reset(&self) {
        self.total.reset();
    }

    pub(crate) fn expose(&self, accept: &str) -> Exposition {
        expose(&self.registry, accept)
    }
}

/// When this process started, in whole seconds since 1970.
pub(crate) fn start_time() -> u64 {
    process::start_time().unwrap_or_default() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &str = "application/vnd.google.protobuf;\
         proto=io.prometheus.client.MetricFamily;encoding=delimited";

    /// O-109: as Prometheus asks, with and without native histograms.
    #[test]
    fn protobuf_is_for_those_who_ask_for_it_first() {
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
                false,
            ),
            ("application/vnd.google.protobuf", false),
            (
                &format!("{ASKED};q=0.7,text/plain;version=0.0.4;q=0.3"),
                true,
            ),
            (&format!("text/plain;q=0.9,{ASKED};q=0.7"), false),
            (ASKED, true),
            (&ASKED.replace(';', "; "), true),
        ] {
            assert_eq!(prefers_protobuf(accept), expected, "{accept}");
        }
    }
}
