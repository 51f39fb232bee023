//! What is counted and measured, for `/metrics`.
//!
//! Names, labels, buckets and help texts that start with `kubeproxy_` and `rest_client_` are
//! kube-proxy's, as dashboards and alerts know them; those that start with `nftproxy_` are ours.
//! Whoever does something counts it here; nobody reads it but [`exposition`].
//! Entry point: [`Metrics::new`].

mod api;
mod build;
pub(crate) mod counts;
pub(crate) mod exposition;
mod own;
mod process;
mod proxy;

use nftproxy_core::model::IpFamily;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

pub(crate) use api::ApiMetrics;
pub(crate) use own::OwnMetrics;
pub(crate) use proxy::ProxyMetrics;

/// All metrics of the process; clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) proxy: ProxyMetrics,
    pub(crate) own: OwnMetrics,
    pub(crate) api: ApiMetrics,
}

impl Metrics {
    /// Nothing has happened yet. `features` are the feature gates, by name.
    pub(crate) fn new(
        families: &[IpFamily],
        features: &[(&'static str, &'static str, bool)],
    ) -> Self {
        let register = Register(Registry::new());
        build::register(&register, features);
        register.add(process::Process::new());
        Self {
            proxy: ProxyMetrics::new(&register, families),
            own: OwnMetrics::new(&register, families),
            api: ApiMetrics::new(&register),
            registry: register.0,
        }
    }
}

/// Makes metrics and registers them.
struct Register(Registry);

impl Register {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        let result = self.0.register(Box::new(collector.clone()));
        result.expect("each name is registered once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect("the name is valid"))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect("the name is valid"))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels).expect("the names are valid"))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels).expect("the names are valid"))
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels).expect("the names are valid"))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help).expect("the name is valid"))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.add(HistogramVec::new(options, labels).expect("the names are valid"))
    }
}

/// `n` bounds, each `factor` times the one before.
fn exponential(first: f64, factor: f64, n: usize) -> Vec<f64> {
    prometheus::exponential_buckets(first, factor, n).expect("the bounds grow")
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> f64 {
    crate::wall_clock::now().as_duration().as_secs_f64()
}
