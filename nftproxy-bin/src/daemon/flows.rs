//! Connection tracking, with a clock and a counter beside it.

use std::time::Instant;

use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::conntrack::Flow;
use nftproxy_core::compile::StaleFlows;
use nftproxy_core::engine::flows::FlowTable;
use nftproxy_core::model::Family;

use crate::metrics::ProxyMetrics;

/// Counts what is done to a table.
pub(crate) struct Measured<T> {
    table: T,
    metrics: ProxyMetrics,
}

impl<T> Measured<T> {
    pub(crate) fn new(table: T, metrics: ProxyMetrics) -> Self {
        Self { table, metrics }
    }

    fn timed<F: Family, R>(&mut self, find: impl FnOnce(&mut T) -> R) -> R {
        let started = Instant::now();
        let found = find(&mut self.table);
        self.metrics.reconciled(F::FAMILY, started.elapsed());
        found
    }
}

impl<T: FlowTable> FlowTable for Measured<T> {
    fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        self.timed::<F, _>(|table| table.find_stale(stale))
    }

    fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        self.timed::<F, _>(|table| table.find_one_way(ranges))
    }

    fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError> {
        self.table.delete(flows)?;
        self.metrics.flows_deleted(F::FAMILY, flows.len());
        Ok(())
    }
}
