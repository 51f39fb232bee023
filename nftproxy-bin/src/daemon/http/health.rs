//! The health server: `/healthz`, which load balancers ask whether to send traffic to this node,
//! and `/livez`, which the kubelet asks whether to restart the proxy.

use std::sync::Arc;
use std::time::Instant;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::time;

use super::respond::{JSON, not_found, typed};
use super::{Handler, Response};
use crate::daemon::standing::{FamilyStanding, Standing};
use crate::metrics::ProxyMetrics;
use crate::wall_clock;

/// Answers for the proxy as a whole.
pub(crate) struct Health {
    pub(crate) standing: Arc<Standing>,
    pub(crate) metrics: ProxyMetrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Healthz,
    Livez,
}

impl Handler for Health {
    async fn respond(&self, request: Request<Incoming>) -> Response {
        let page = match request.uri().path() {
            "/healthz" => Page::Healthz,
            "/livez" => Page::Livez,
            _ => return not_found(),
        };
        let (status, body) = self.answer(page, time::Instant::now().into_std());
        let counter = match page {
            Page::Healthz => &self.metrics.healthz,
            Page::Livez => &self.metrics.livez,
        };
        counter.with_label_values(&[status.as_str()]).inc();
        typed(status, JSON, body)
    }
}

/// The body, in the order of its keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "by_family")]
    status: Vec<FamilyStanding>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyAnswer {
    last_updated: Timestamp,
    healthy: bool,
}

fn by_family<S: Serializer>(families: &[FamilyStanding], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(families.iter().map(|standing| {
        let answer = FamilyAnswer {
            last_updated: standing.last_updated,
            healthy: standing.is_healthy,
        };
        (standing.family.kubernetes_name(), answer)
    }))
}

impl Health {
    fn answer(&self, page: Page, now: Instant) -> (StatusCode, String) {
        let mut families = self.standing.families(now);
        if page == Page::Healthz {
            // Traffic should not come before there are rules for it, though nothing is amiss.
            for standing in &mut families {
                standing.is_healthy &= standing.has_synced;
            }
        }
        let healthy = families.iter().all(|standing| standing.is_healthy);
        let node_eligible = (page == Page::Healthz).then(|| self.standing.is_node_eligible());
        let is_ok = healthy && node_eligible.unwrap_or(true);
        let current_time = wall_clock::now();
        let last_updated = if is_ok {
            current_time
        } else {
            // Go's zero time, where there is no family.
            let newest = families.iter().map(|standing| standing.last_updated).max();
            newest.unwrap_or_else(year_one)
        };
        let answer = Answer {
            last_updated,
            current_time,
            node_eligible,
            healthy,
            status: families,
        };
        let body = serde_json::to_string(&answer).expect("an answer has a JSON form");
        let status = if is_ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (status, body)
    }
}

fn year_one() -> Timestamp {
    "0001-01-01T00:00:00Z".parse().expect("it is a time")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nftproxy_core::engine;
    use nftproxy_core::model::IpFamily;
    use serde_json::Value;

    use super::super::testing::{ask, recorded, start};
    use super::*;
    use crate::metrics::Metrics;

    const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
    const SYNC_PERIOD: Duration = Duration::from_secs(30);

    struct Fixture {
        engine: engine::Health,
        health: Arc<Health>,
        metrics: Metrics,
    }

    fn fixture() -> Fixture {
        let engine = engine::Health::new(SYNC_PERIOD);
        let metrics = Metrics::new(&FAMILIES, &[]);
        let health = Arc::new(Health {
            standing: Arc::new(Standing::new(engine.clone(), &FAMILIES, true)),
            metrics: metrics.proxy.clone(),
        });
        Fixture {
            engine,
            health,
            metrics,
        }
    }

    impl Fixture {
        fn get(&self, page: Page, now: Instant) -> (u16, Value) {
            let (status, body) = self.health.answer(page, now);
            (status.as_u16(), serde_json::from_str(&body).unwrap())
        }

        fn sync(&self) {
            for family in FAMILIES {
                self.health.standing.synced(family);
            }
        }
    }

    /// The text with each time replaced by `T`.
    fn without_times(text: &str) -> String {
        let parts = text.split('"').map(|part| match part.parse::<Timestamp>() {
            Ok(_) => "T",
            Err(_) => part,
        });
        parts.collect::<Vec<_>>().join("\"")
    }

    /// O-115, O-106: as recorded, but for times; any method is fine.
    #[tokio::test]
    async fn answers_are_those_of_kube_proxy() {
        let fixture = fixture();
        fixture.health.standing.set_node_eligible(true);
        fixture.sync();
        let address = start(fixture.health.clone()).await;
        for (name, request) in [
            ("healthz.txt", "GET /healthz"),
            ("livez.txt", "GET /livez"),
            ("healthz-post.txt", "POST /healthz"),
            ("healthz-head.txt", "HEAD /healthz"),
            ("healthz-root.txt", "GET /"),
            ("healthz-tainted.txt", "GET /healthz"),
            ("livez-tainted.txt", "GET /livez"),
        ] {
            let is_tainted = name.contains("tainted");
            fixture.health.standing.set_node_eligible(!is_tainted);
            let (head, body) = ask(address, request, &[]).await;
            let (recorded_head, recorded_body) = recorded(name);
            // Times have as many digits as they need.
            let is_json = recorded_body.contains("lastUpdated") || name == "healthz-head.txt";
            assert_eq!(head.names(), recorded_head.names(), "{name}");
            let (head, recorded_head) = if is_json {
                (head.without_length(), recorded_head.without_length())
            } else {
                (head, recorded_head)
            };
            assert_eq!(head, recorded_head, "{name}");
            assert_eq!(
                without_times(&body),
                without_times(&recorded_body),
                "{name}"
            );
        }
        // O-134, O-135
        let text = fixture.metrics.expose("").bytes;
        let text = String::from_utf8(text).unwrap();
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 3",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }

    /// O-68, O-119: before the first sync the process lives, and takes no traffic.
    #[test]
    fn no_traffic_before_the_first_sync() {
        let fixture = fixture();
        let now = Instant::now();
        assert_eq!(fixture.get(Page::Livez, now).0, 200);
        let (status, body) = fixture.get(Page::Healthz, now);
        assert_eq!((status, &body["nodeEligible"]), (503, &false.into()));
        fixture.health.standing.set_node_eligible(true);
        let (status, body) = fixture.get(Page::Healthz, now);
        assert_eq!((status, &body["healthy"]), (503, &false.into()));
        fixture.health.standing.synced(IpFamily::V4);
        assert_eq!(fixture.get(Page::Healthz, now).0, 503, "one is not both");
        fixture.health.standing.synced(IpFamily::V6);
        assert_eq!(fixture.get(Page::Healthz, now).0, 200);
    }

    /// O-116, O-118: one stale family makes both pages 503; eligibility only one of them.
    #[test]
    fn a_stale_family_fails_both_and_the_node_one() {
        let fixture = fixture();
        let now = Instant::now();
        fixture.sync();
        let (status, body) = fixture.get(Page::Healthz, now);
        assert_eq!((status, &body["healthy"]), (503, &true.into()));
        assert_eq!(fixture.get(Page::Livez, now).0, 200);
        fixture.health.standing.set_node_eligible(true);
        fixture.engine.changed(IpFamily::V6, now);
        let later = now + 2 * SYNC_PERIOD;
        for page in [Page::Healthz, Page::Livez] {
            let (status, body) = fixture.get(page, later);
            assert_eq!(status, 503);
            assert_eq!(body["status"]["IPv4"]["healthy"], true);
            assert_eq!(body["status"]["IPv6"]["healthy"], false);
            assert_eq!(body["healthy"], false);
        }
    }

    /// O-117
    #[test]
    fn the_last_update_is_now_or_the_newest() {
        let fixture = fixture();
        fixture.sync();
        let time = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
        let now = Instant::now();
        let (_, body) = fixture.get(Page::Healthz, now);
        let newest = time(&body["status"]["IPv6"]["lastUpdated"]);
        assert_eq!(time(&body["lastUpdated"]), newest);
        let (_, body) = fixture.get(Page::Livez, now);
        assert!(time(&body["lastUpdated"]) > newest);

        let standing = Standing::new(fixture.engine.clone(), &[], true);
        let none = Health {
            standing: Arc::new(standing),
            metrics: fixture.metrics.proxy.clone(),
        };
        let (_, body) = none.answer(Page::Healthz, now);
        assert!(
            body.starts_with("{\"lastUpdated\":\"0001-01-01T00:00:00Z\""),
            "{body}"
        );
        assert!(!body.contains("status"), "{body}");
    }
}
