//! Metrics as bytes: Prometheus' text, or protobuf for those who ask for it.
//!
//! kube-proxy offers no OpenMetrics, and answers those who ask for it with text; so do we.

use std::collections::BTreeMap;

use prometheus::{Encoder, ProtobufEncoder, TextEncoder};

use super::{Metrics, Register, process};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str = "application/vnd.google.protobuf; \
     proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// How names that are not legal everywhere are to be written. All of ours are, so it is said and
/// changes nothing.
const ESCAPINGS: [&str; 4] = ["allow-utf-8", "underscores", "dots", "values"];

/// Metrics in one of the formats.
pub(crate) struct Exposition {
    pub(crate) content_type: String,
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
    let Wish {
        is_protobuf,
        escaping,
    } = Wish::of(accept);
    // Writing into memory cannot fail, and families without metrics are not gathered.
    let name = if is_protobuf {
        let _ = ProtobufEncoder::new().encode(&families, &mut bytes);
        PROTOBUF
    } else {
        let _ = TextEncoder::new().encode(&families, &mut bytes);
        TEXT
    };
    Exposition {
        content_type: format!("{name}; escaping={escaping}"),
        bytes,
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    is_protobuf: bool,
    escaping: &'static str,
}

impl Wish {
    /// The first that there is, by quality and then by order, as Prometheus' library has it: what
    /// stands for anything counts for nothing there, and an escaping holds for what comes after it.
    fn of(accept: &str) -> Self {
        let mut wish = Self {
            is_protobuf: false,
            escaping: "underscores",
        };
        let entries = accept.split(',').map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let parameters: BTreeMap<_, _> =
                parts.filter_map(|part| part.split_once('=')).collect();
            let quality = parameters.get("q").and_then(|q| q.parse::<f64>().ok());
            (quality.unwrap_or(1.0), name, parameters)
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
        for (_, name, parameters) in entries {
            let asked = parameters.get("escaping");
            let known = ESCAPINGS.into_iter().find(|known| Some(known) == asked);
            wish.escaping = known.unwrap_or(wish.escaping);
            wish.is_protobuf = name == "application/vnd.google.protobuf"
                && parameters.get("proto") == Some(&"io.prometheus.client.MetricFamily")
                && parameters.get("encoding") == Some(&"delimited");
            let is_text = name == "text/plain"
                && parameters
                    .get("version")
                    .is_none_or(|version| *version == "0.0.4");
            if wish.is_protobuf || is_text {
                break;
            }
        }
        wish
    }
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
            assert_eq!(Wish::of(accept).is_protobuf, expected, "{accept}");
        }
    }

    /// O-109: as Prometheus asks from version 3 on.
    #[test]
    fn the_escaping_that_is_asked_for_is_said() {
        for (accept, expected) in [
            ("", "underscores"),
            ("text/plain;escaping=allow-utf-8", "allow-utf-8"),
            ("text/plain;escaping=nonsense", "underscores"),
            (
                "application/openmetrics-text;version=1.0.0;escaping=dots;q=0.6,*/*;q=0.5",
                "dots",
            ),
            ("text/plain,application/json;escaping=dots", "underscores"),
        ] {
            assert_eq!(Wish::of(accept).escaping, expected, "{accept}");
        }
        let registry = prometheus::Registry::new();
        let exposition = expose(&registry, "text/plain;version=0.0.4;escaping=allow-utf-8");
        let text = "text/plain; version=0.0.4; charset=utf-8; escaping=allow-utf-8";
        assert_eq!(exposition.content_type, text);
    }
}
