//! New connections as the kernel counts them, where that is switched on.
//!
//! The kernel is asked on a socket of its own, so no sync waits for it: when somebody scrapes, and
//! now and then, as elements take what they have counted with them. Entry point: [`start`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::counts::{Reason, Tally};
use nftproxy_core::model::{Family, IpFamily, V4, V6};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tracing::debug;

use super::Metrics;

/// Up to so many endpoints in a family, counted for each address of each Service port, they are
/// counted one by one; beyond, there are totals of Service ports only.
const ENDPOINTS_MAX: usize = 10_000;
/// Up to so many Service ports in a family have metrics of their own.
const SERVICES_MAX: usize = 10_000;
/// How often the kernel is asked though nobody scrapes.
const PERIOD: Duration = Duration::from_secs(10);
/// Whoever scrapes gets what is not older.
const FRESH: Duration = Duration::from_secs(1);

/// Adds metrics of connections, and starts the thread that keeps them.
///
/// # Errors
///
/// If there is no socket or no thread to be had.
pub(crate) fn start(metrics: &Metrics, families: &[IpFamily]) -> anyhow::Result<()> {
    let reader = Reader {
        netlink: Netlink::open()?,
        v4: families.contains(&IpFamily::V4).then(Tally::default),
        v6: families.contains(&IpFamily::V6).then(Tally::default),
        read_at: None,
    };
    let counts = Counts {
        reader: Arc::new(Mutex::new(reader)),
        families: families.to_vec(),
        descriptions: Vectors::new().descriptions(),
    };
    super::Register(metrics.registry.clone()).add(counts.clone());
    std::thread::Builder::new()
        .name("counts".into())
        .spawn(move || {
            loop {
                counts.refreshed(PERIOD, |_| ());
                std::thread::sleep(PERIOD);
            }
        })?;
    Ok(())
}

/// What the kernel counts, as metrics.
#[derive(Clone)]
struct Counts {
    reader: Arc<Mutex<Reader>>,
    families: Vec<IpFamily>,
    descriptions: Vec<Desc>,
}

struct Reader {
    netlink: Netlink,
    v4: Option<Tally<V4>>,
    v6: Option<Tally<V6>>,
    read_at: Option<Instant>,
}

impl Reader {
    fn read(&mut self) -> Result<(), ApplyError> {
        read(&mut self.netlink, &mut self.v4)?;
        read(&mut self.netlink, &mut self.v6)
    }
}

fn read<F: Family>(netlink: &mut Netlink, tally: &mut Option<Tally<F>>) -> Result<(), ApplyError> {
    if let Some(tally) = tally {
        tally.add(netlink.read_counts(ENDPOINTS_MAX)?);
    }
    Ok(())
}

impl Counts {
    /// Calls `f` with totals that are no older than that, unless the kernel cannot be asked.
    fn refreshed<R>(&self, age: Duration, f: impl FnOnce(&Reader) -> R) -> R {
        // A panic in between leaves numbers that are as good as any before.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.read_at.is_none_or(|at| at.elapsed() >= age) {
            let start = Instant::now();
            if let Err(error) = reader.read() {
                let error = crate::error::chain(&error);
                debug!(error, "the kernel's counters could not be read");
            }
            let took = start.elapsed();
            debug!(?took, "read the kernel's counters");
            reader.read_at = Some(Instant::now());
        }
        f(&reader)
    }
}

impl Collector for Counts {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let vectors = Vectors::new();
        self.refreshed(FRESH, |reader| {
            for family in &self.families {
                match (family, &reader.v4, &reader.v6) {
                    (IpFamily::V4, Some(tally), _) => vectors.add(*family, tally),
                    (IpFamily::V6, _, Some(tally)) => vectors.add(*family, tally),
                    _ => {}
                }
            }
        });
        vectors.collect()
    }
}

/// The metrics, made for one scrape: the totals are the tally's.
struct Vectors {
    connections: IntCounterVec,
    refusals: IntCounterVec,
    service_connections: IntCounterVec,
    service_refusals: IntCounterVec,
    endpoint_connections: IntCounterVec,
    left_out: IntGaugeVec,
}

const FAMILY: &str = "ip_family";
const SERVICE: [&str; 4] = [FAMILY, "namespace", "service", "port_name"];

impl Vectors {
    fn new() -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("the names are valid")
        };
        let with = |label| [&SERVICE[..], &[label]].concat();
        Self {
            connections: counters(
                "nftproxy_connections_total",
                "New connections to Service ports with usable endpoints",
                &[FAMILY],
            ),
            refusals: counters(
                "nftproxy_refusals_total",
                "New connections that were refused or dropped, by reason",
                &[FAMILY, "reason"],
            ),
            service_connections: counters(
                "nftproxy_service_connections_total",
                "New connections to a Service port while it had usable endpoints",
                &SERVICE,
            ),
            service_refusals: counters(
                "nftproxy_service_refusals_total",
                "New connections to a Service port that were refused or dropped, by reason",
                &with("reason"),
            ),
            endpoint_connections: counters(
                "nftproxy_endpoint_connections_total",
                "New connections that were led to an endpoint of a Service port, but for those of remembered clients",
                &with("endpoint"),
            ),
            left_out: IntGaugeVec::new(
                Opts::new(
                    "nftproxy_counts_left_out",
                    "Whether there are too many of a kind for metrics of their own",
                ),
                &[FAMILY, "kind"],
            )
            .expect("the names are valid"),
        }
    }

    fn all(&self) -> [&dyn Collector; 6] {
        [
            &self.connections,
            &self.refusals,
            &self.service_connections,
            &self.service_refusals,
            &self.endpoint_connections,
            &self.left_out,
        ]
    }

    fn descriptions(&self) -> Vec<Desc> {
        let all = self.all();
        let descriptions = all.iter().flat_map(|vector| vector.desc());
        descriptions.cloned().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.all();
        all.iter().flat_map(|vector| vector.collect()).collect()
    }

    fn add<F: Family>(&self, family: IpFamily, tally: &Tally<F>) {
        let family = family.kubernetes_name();
        let connections = self.connections.with_label_values(&[family]);
        connections.inc_by(tally.connections());
        for reason in Reason::ALL {
            let labels = &[family, reason.as_str()];
            let refusals = self.refusals.with_label_values(labels);
            refusals.inc_by(tally.refusals(reason));
        }
        for (name, service) in tally.services().take(SERVICES_MAX) {
            let (namespace, rest) = name.split_once('/').unwrap_or(("", name));
            let (service_name, port) = rest.split_once(':').unwrap_or((rest, ""));
            let labels = [family, namespace, service_name, port];
            let connections = self.service_connections.with_label_values(&labels);
            connections.inc_by(service.connections);
            for (reason, number) in &service.refusals {
                let labels = [&labels[..], &[reason.as_str()]].concat();
                let refusals = self.service_refusals.with_label_values(&labels);
                refusals.inc_by(*number);
            }
            for (endpoint, number) in &service.endpoints {
                let endpoint = endpoint.to_string();
                let labels = [&labels[..], &[&endpoint]].concat();
                let connections = self.endpoint_connections.with_label_values(&labels);
                connections.inc_by(*number);
            }
        }
        let are_too_many = tally.services().count() > SERVICES_MAX;
        let are_endpoints_left_out = tally.are_endpoints_left_out() || are_too_many;
        for (kind, is_left_out) in [
            ("services", are_too_many),
            ("endpoints", are_endpoints_left_out),
        ] {
            let left_out = self.left_out.with_label_values(&[family, kind]);
            left_out.set(i64::from(is_left_out));
        }
    }
}

/// Whether this kernel's maps can count.
///
/// # Errors
///
/// If it cannot be asked.
pub(crate) fn can_count() -> Result<bool, ApplyError> {
    Netlink::open()?.can_count()
}
