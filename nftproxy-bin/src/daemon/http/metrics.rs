//! The metrics server: `/metrics`, and pages that tell how the proxy is configured.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, HeaderValue, LOCATION};
use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::respond::{JSON, PLAIN_TEXT, bare, chunked, error, header, not_found, typed};
use super::zpages::{Flagz, Statusz};
use super::{Handler, Response};
use crate::daemon::logging::Levels;
use crate::metrics::Metrics;
use crate::metrics::exposition::{Exposition, Slis, start_time};

/// What `/proxyMode` says. Tests of conformance read it.
const MODE: &str = "nftables";
/// A level, or a list of modules, is shorter.
const MAX_BODY: usize = 4096;
const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");

/// What the pages show.
pub(crate) struct Pages {
    pub(crate) metrics: Metrics,
    pub(crate) slis: Slis,
    /// The effective configuration as JSON.
    pub(crate) configuration: String,
    /// `/flagz`, if it is served.
    pub(crate) flags: Option<BTreeMap<&'static str, String>>,
    /// Whether `/statusz` is served.
    pub(crate) has_statusz: bool,
    /// Whether `/debug/` is served; it can change levels.
    pub(crate) levels: Option<Arc<Levels>>,
}

impl Handler for Pages {
    async fn respond(&self, request: Request<Incoming>) -> Response {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        match parts.uri.path() {
            "/metrics" => exposed(&parts, self.metrics.expose(&header(&parts, ACCEPT))),
            "/metrics/slis" if parts.method == Method::DELETE => {
                self.slis.reset();
                error(StatusCode::OK, "metrics reset")
            }
            "/metrics/slis" => exposed(&parts, self.slis.expose(&header(&parts, ACCEPT))),
            "/proxyMode" => typed(StatusCode::OK, PLAIN_TEXT, MODE),
            "/healthz" | "/healthz/ping" => {
                self.slis.pinged();
                let is_verbose = query.split('&').any(|pair| pair.starts_with("verbose"));
                if is_verbose && parts.uri.path() == "/healthz" {
                    typed(
                        StatusCode::OK,
                        PLAIN_TEXT,
                        "[+]ping ok\nhealthz check passed\n",
                    )
                } else {
                    typed(StatusCode::OK, PLAIN_TEXT, "ok")
                }
            }
            "/configz" => {
                let body = format!("{{\"kubeproxy.config.k8s.io\":{}}}", self.configuration);
                typed(StatusCode::OK, JSON, body)
            }
            "/flagz" => match &self.flags {
                Some(flags) => Flagz(flags).respond(&header(&parts, ACCEPT)),
                None => not_found(),
            },
            "/statusz" if self.has_statusz => {
                Statusz::now(self.flags.is_some()).respond(&header(&parts, ACCEPT))
            }
            path if path.starts_with("/debug/") => match &self.levels {
                Some(levels) => debug(path.to_owned(), &parts.method, body, levels).await,
                None => not_found(),
            },
            _ => not_found(),
        }
    }
}

/// Metrics, packed if the client can unpack them.
fn exposed(parts: &http::request::Parts, exposition: Exposition) -> Response {
    let Exposition {
        content_type,
        bytes,
    } = exposition;
    let encodings = header(parts, ACCEPT_ENCODING);
    let wants_gzip = encodings.split(',').any(|encoding| {
        let mut parameters = encoding.split(';').map(str::trim);
        parameters.next() == Some("gzip")
            && !parameters.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    });
    let body = if wants_gzip { gzip(&bytes) } else { bytes };
    let mut response = bare(StatusCode::OK, &content_type, chunked(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(PROCESS_START, start_time().into());
    if wants_gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("memory takes whatever is written to it")
}

/// `/debug/`: levels of the log, which operators raise while the proxy runs.
async fn debug(path: String, method: &Method, body: Incoming, levels: &Levels) -> Response {
    match path.as_str() {
        "/debug/flags" | "/debug/flags/" => typed(
            StatusCode::OK,
            PLAIN_TEXT,
            "PUT a number to /debug/flags/v, or MODULE=LEVEL,... to /debug/flags/log-filter\n",
        ),
        "/debug/flags/v" | "/debug/flags/log-filter" if method != Method::PUT => {
            let mut response = error(StatusCode::NOT_ACCEPTABLE, "unsupported http method");
            let allowed = HeaderValue::from_static("PUT");
            response.headers_mut().insert(ALLOW, allowed);
            response
        }
        "/debug/flags/v" | "/debug/flags/log-filter" => {
            let body = Limited::new(body, MAX_BODY).collect().await;
            let bytes = body
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let changed = if path.ends_with("/v") {
                let verbosity = text.trim().parse::<i32>();
                let verbosity = verbosity
                    .map_err(|error| format!("failed set klog.logging.verbosity {text}: {error}"));
                verbosity.map(|verbosity| {
                    levels.set_verbosity(u32::try_from(verbosity).unwrap_or_default());
                    format!("successfully set klog.logging.verbosity to {}", text.trim())
                })
            } else {
                levels
                    .set_filter(text.trim())
                    .map(|()| format!("successfully set log-filter to {}", text.trim()))
            };
            match changed {
                Ok(message) => typed(StatusCode::OK, PLAIN_TEXT, message),
                Err(message) => error(StatusCode::BAD_REQUEST, &message),
            }
        }
        "/debug/pprof" => {
            let mut response = error(StatusCode::FOUND, "Found.");
            let target = HeaderValue::from_static("/debug/pprof/");
            response.headers_mut().insert(LOCATION, target);
            response
        }
        path if path.starts_with("/debug/pprof/") => error(
            StatusCode::NOT_IMPLEMENTED,
            "nftproxy has no Go runtime to profile; use perf(1) with the debug symbols",
        ),
        _ => not_found(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::SocketAddr;

    use nftproxy_core::model::IpFamily;
    use tracing::level_filters::LevelFilter;

    use super::super::testing::{Head, ask, ask_with_body, recorded, start};
    use super::*;

    fn pages(is_debugged: bool) -> Pages {
        let families = [IpFamily::V4, IpFamily::V6];
        let recorded = recorded("configz.txt").1;
        let configuration = recorded
            .strip_prefix("{\"kubeproxy.config.k8s.io\":")
            .and_then(|rest| rest.strip_suffix('}'));
        Pages {
            metrics: Metrics::new(&families, &[("ComponentFlagz", "BETA", true)]),
            slis: Slis::new(),
            configuration: configuration.unwrap().to_owned(),
            flags: Some([("v", "2".to_owned())].into()),
            has_statusz: true,
            levels: is_debugged.then(|| Arc::new(Levels::for_test())),
        }
    }

    async fn serve(pages: Pages) -> SocketAddr {
        start(Arc::new(pages)).await
    }

    /// O-110, O-111, O-112, O-109 (unknown paths), O-31 (without profiling there are no levels to
    /// change): byte for byte as recorded.
    #[tokio::test]
    async fn pages_are_those_of_kube_proxy() {
        let address = serve(pages(false)).await;
        for (name, line) in [
            ("proxymode.txt", "GET /proxyMode"),
            ("proxymode.txt", "POST /proxyMode"),
            ("metrics-healthz.txt", "GET /healthz"),
            ("metrics-healthz.txt", "GET /healthz/ping"),
            ("configz.txt", "GET /configz"),
            ("metrics-root.txt", "GET /"),
            ("metrics-root.txt", "GET /metrics/"),
            ("metrics-root.txt", "GET /livez"),
            ("metrics-root.txt", "GET /debug/flags/v"),
        ] {
            let (head, body) = ask(address, line, &[]).await;
            let (recorded_head, recorded_body) = recorded(name);
            assert_eq!(body, recorded_body, "{name}: {line}");
            // The recording of this one had another path in it, and kept its length.
            let (head, recorded_head) = if name == "configz.txt" {
                (head.without_length(), recorded_head.without_length())
            } else {
                (head, recorded_head)
            };
            assert_eq!(head, recorded_head, "{name}: {line}");
        }
        let (_, verbose) = ask(address, "GET /healthz?verbose", &[]).await;
        assert_eq!(verbose, "[+]ping ok\nhealthz check passed\n");
        let (head, body) = ask(address, "HEAD /proxyMode", &[]).await;
        assert_eq!((head, body), (recorded("proxymode.txt").0, String::new()));
    }

    fn without_start(mut head: Head) -> (Head, String) {
        let start = head.headers.remove("Process-Start-Time-Unix").unwrap();
        (head, start)
    }

    /// O-109: headers as recorded in both formats, which are one; gzip when asked.
    #[tokio::test]
    async fn metrics_have_the_headers_of_kube_proxy() {
        let address = serve(pages(false)).await;
        let openmetrics = "Accept: application/openmetrics-text; version=1.0.0";
        for (name, asked) in [
            ("metrics.txt", &[][..]),
            ("metrics-openmetrics.txt", &[openmetrics]),
            ("metrics-gzip-headers.txt", &["Accept-Encoding: gzip"]),
        ] {
            let (head, body) = ask_with_body(address, "GET /metrics", asked, "").await;
            // hyper writes each word of a name with a capital, and Go the first letters too.
            let (head, start) = without_start(head);
            assert!(start.parse::<u64>().unwrap() > 1_700_000_000, "{start}");
            assert_eq!(head, without_start(recorded(name).0).0, "{name}");
            let text = if name.contains("gzip") {
                let mut text = String::new();
                let mut decoder = flate2::read::GzDecoder::new(body.as_slice());
                decoder.read_to_string(&mut text).unwrap();
                text
            } else {
                String::from_utf8(body).unwrap()
            };
            assert!(text.starts_with("# HELP kubeproxy_"), "{text}");
        }
        let refused = ["Accept-Encoding: gzip;q=0"];
        let (head, _) = ask(address, "GET /metrics", &refused).await;
        assert!(!head.headers.contains_key("Content-Encoding"));
        let protobuf = "Accept: application/vnd.google.protobuf; \
                        proto=io.prometheus.client.MetricFamily; encoding=delimited";
        let (head, body) = ask_with_body(address, "GET /metrics", &[protobuf], "").await;
        assert!(head.headers["Content-Type"].starts_with("application/vnd.google.protobuf;"));
        assert!(
            body.windows(21)
                .any(|part| part == b"kubernetes_build_info")
        );
    }

    /// The `# HELP` and `# TYPE` lines and the series of a family, without values.
    fn family(text: &str, name: &str) -> Vec<String> {
        let lines = text.lines().filter(|line| {
            let line = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ");
            let found = line.split([' ', '{']).next().unwrap_or_default();
            let suffixes = ["", "_bucket", "_sum", "_count"];
            suffixes
                .iter()
                .any(|suffix| found.strip_suffix(suffix) == Some(name))
        });
        let without_value = |line: &str| {
            let is_comment = line.starts_with('#');
            let end = line.rfind(' ').filter(|_| !is_comment);
            line[..end.unwrap_or(line.len())].to_owned()
        };
        lines.map(without_value).collect()
    }

    /// O-124 to O-140, O-142: each family that was recorded of kube-proxy and that we have reads the
    /// same, bounds of buckets and order of labels included.
    #[tokio::test]
    async fn metrics_have_kube_proxys_names_labels_and_buckets() {
        use std::time::Duration;
        let pages = pages(false);
        let metrics = pages.metrics.clone();
        for counter in [&metrics.proxy.healthz, &metrics.proxy.livez] {
            counter.with_label_values(&["200"]).inc();
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            metrics.proxy.synced(family, true, Duration::from_millis(3));
            metrics.proxy.succeeded(family);
            metrics.proxy.queued(family);
            metrics.proxy.set_no_local_endpoints(family, 0, 1);
        }
        metrics
            .proxy
            .synced(IpFamily::V4, false, Duration::from_millis(3));
        let took = Some(Duration::from_millis(1));
        let host = "127.0.0.1:6443";
        metrics.api.requested(host, "GET", Some(200), None);
        metrics.api.requested(host, "POST", Some(201), took);
        let address = serve(pages).await;
        let (_, text) = ask(address, "GET /metrics", &[]).await;
        let (_, recorded) = recorded("metrics.txt");
        let ours = recorded
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        let names: Vec<_> = ours
            .filter_map(|line| line.split_once(' '))
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("kubeproxy_") || name.starts_with("process_"))
            .chain([
                "rest_client_requests_total",
                "rest_client_request_duration_seconds",
            ])
            .collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            let expected = family(&recorded, name);
            assert!(!expected.is_empty(), "{name}");
            assert_eq!(family(&text, name), expected);
        }
        for help in ["kubernetes_build_info", "kubernetes_feature_enabled"] {
            assert_eq!(family(&text, help)[..2], family(&recorded, help)[..2]);
        }
        // O-137, O-138, O-140: failures are there before the first.
        for series in [
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv6\"} 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series}");
        }
        // O-141: nothing of another mode, and nothing of a runtime that is not there.
        for absent in ["_iptables_", "\ngo_", "_ipvs_"] {
            assert!(!text.contains(absent), "{absent}");
        }
    }

    /// O-31, O-114
    #[tokio::test]
    async fn levels_can_be_changed_while_it_runs() {
        let pages = pages(true);
        let levels = pages.levels.clone().unwrap();
        let address = serve(pages).await;
        let put = async |path: &str, body: &str| {
            let line = format!("PUT {path}");
            let (head, body) = ask_with_body(address, &line, &[], body).await;
            (head.status, String::from_utf8(body).unwrap())
        };
        let (status, body) = put("/debug/flags/v", "4").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(body, "successfully set klog.logging.verbosity to 4");
        assert_eq!(levels.level(), LevelFilter::DEBUG);
        let (status, _) = put("/debug/flags/v", "loud").await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request");
        let (status, _) = put("/debug/flags/log-filter", "source=trace").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(levels.filter(), "source=trace");
        let (status, _) = put("/debug/flags/log-filter", "source").await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request");
        let (head, _) = ask(address, "GET /debug/flags/v", &[]).await;
        assert_eq!(head.status, "HTTP/1.1 406 Not Acceptable");
        let (head, _) = ask(address, "GET /debug/pprof", &[]).await;
        assert_eq!(head.headers["Location"], "/debug/pprof/");
        let (head, _) = ask(address, "GET /debug/pprof/heap", &[]).await;
        assert_eq!(head.status, "HTTP/1.1 501 Not Implemented");
    }

    /// O-109
    #[tokio::test]
    async fn slis_count_pings_and_can_be_reset() {
        let address = serve(pages(false)).await;
        ask(address, "GET /healthz", &[]).await;
        let total =
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1";
        let (_, text) = ask(address, "GET /metrics/slis", &[]).await;
        assert!(text.contains(total), "{text}");
        assert!(text.contains("process_start_time_seconds"), "{text}");
        let (_, body) = ask(address, "DELETE /metrics/slis", &[]).await;
        assert_eq!(body, "metrics reset\n");
        let (_, text) = ask(address, "GET /metrics/slis", &[]).await;
        assert!(!text.contains(total), "{text}");
    }

    /// O-113: text to whoever takes it, JSON and YAML only to those who name the version.
    #[tokio::test]
    async fn flagz_and_statusz_are_text_or_named_json() {
        let address = serve(pages(false)).await;
        for (path, kind, name) in [
            ("/flagz", "Flagz", "flagz.txt"),
            ("/statusz", "Statusz", "statusz.txt"),
        ] {
            let line = format!("GET {path}");
            for accept in [&[][..], &["Accept: */*"], &["Accept: text/plain"]] {
                let (head, body) = ask(address, &line, accept).await;
                let (recorded_head, recorded_body) = recorded(name);
                assert_eq!(head.without_length(), recorded_head.without_length());
                let intro =
                    |text: &str| text.lines().take(3).map(str::to_owned).collect::<Vec<_>>();
                assert_eq!(intro(&body), intro(&recorded_body));
            }
            for media_type in ["application/json", "application/yaml"] {
                let accept = format!("Accept: {media_type};v=v1beta1;g=config.k8s.io;as={kind}");
                let (head, body) = ask(address, &line, &[&accept]).await;
                // kube-proxy puts them in this order.
                let content_type = format!("{media_type};g=config.k8s.io;v=v1beta1;as={kind}");
                assert_eq!(head.headers["Content-Type"], content_type);
                let body: serde_json::Value = if media_type == "application/json" {
                    serde_json::from_str(&body).unwrap()
                } else {
                    assert!(
                        body.starts_with("apiVersion: config.k8s.io/v1beta1\n"),
                        "{body}"
                    );
                    serde_norway::from_str(&body).unwrap()
                };
                assert_eq!(body["kind"], kind);
                assert_eq!(body["apiVersion"], "config.k8s.io/v1beta1");
                assert_eq!(body["metadata"]["name"], "kube-proxy");
            }
            for refused in [
                "application/json",
                "application/yaml",
                "application/cbor",
                "text/html",
            ] {
                let accept = format!("Accept: {refused}");
                let (head, _) = ask(address, &line, &[&accept]).await;
                assert_eq!(head.status, "HTTP/1.1 406 Not Acceptable", "{refused}");
            }
        }
        let (_, body) = ask(address, "GET /flagz", &[]).await;
        assert!(body.ends_with("\nv: 2\n"), "{body}");
        let (_, body) = ask(address, "GET /statusz", &[]).await;
        let (_, recorded_body) = recorded("statusz.txt");
        let names = |text: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.map(|(name, _)| name.to_owned()).collect()
        };
        assert_eq!(names(&body), names(&recorded_body), "{body}");
        assert!(body.ends_with("Paths= /configz /flagz /healthz /metrics /proxyMode\n"));
    }

    /// O-65: the gates take both pages away.
    #[tokio::test]
    async fn gates_take_pages_away() {
        let mut pages = pages(false);
        pages.flags = None;
        pages.has_statusz = false;
        let address = serve(pages).await;
        for line in ["GET /flagz", "GET /statusz"] {
            let (head, _) = ask(address, line, &[]).await;
            assert_eq!(head.status, "HTTP/1.1 404 Not Found", "{line}");
        }
    }
}
