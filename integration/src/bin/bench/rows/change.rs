//! One change in a running cluster: from the event to the kernel's consent.

use anyhow::Result;
use nftproxy_core::model::{Node, State, V4};
use nftproxy_core::sync::Syncer;

use super::{Job, REPLAY, Scale, sync_row};
use crate::cluster::{Cluster, Event, NODES, Size, node};
use crate::floor::{self, Bed, Cost, Twin};
use crate::measure::Effort;
use crate::table::Row;

/// A proxy in step with its cluster.
pub(crate) struct Running {
    pub(crate) cluster: Cluster,
    pub(crate) state: State,
    node: Node,
    pub(crate) syncer: Syncer<V4, Twin>,
}

impl Running {
    /// Brings a cluster into the bed.
    pub(crate) fn start(bed: &Bed, cluster: Cluster) -> Result<Self> {
        let mut running = Self {
            cluster,
            state: cluster.state(),
            node: node(),
            syncer: Syncer::new(bed.open()?),
        };
        running.sync([])?;
        Ok(running)
    }

    /// Syncs what these events change.
    pub(crate) fn sync(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Cost> {
        let events: Vec<_> = events.into_iter().collect();
        self.sync_with(|state| events.into_iter().for_each(|event| event.apply(state)))
    }

    /// Syncs what `apply` changes.
    pub(crate) fn sync_with(&mut self, apply: impl FnOnce(&mut State)) -> Result<Cost> {
        floor::sync(&mut self.syncer, &mut self.state, &self.node, apply)
    }
}

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let job = |size: Size| Job::new(format!("one change, {size}"), move || rows(scale, size));
    scale.sizes().map(job).into()
}

fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let bed = Bed::new()?;
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let group = format!("one change, {size}");
    let row = |case: &str, costs: &[Cost]| sync_row(&group, REPLAY, case.into(), costs);
    let effort = scale.effort();

    let mut replace = |n| {
        let event = running.cluster.endpoint_replaced(&running.state, n);
        running.sync([event])
    };
    replace(0)?;
    let replaced = effort.repeat(|n| replace(n + 1))?;
    let (removed, added) = there_and_back(effort, |n| {
        let (gone, back) = running.cluster.endpoint_removed(&running.state, n);
        Ok((running.sync([gone])?, running.sync([back])?))
    })?;
    let (service_added, service_deleted) = there_and_back(effort, |n| {
        let number = size.services + n;
        let (come, go) = (
            running.cluster.service_added(number),
            running.cluster.service_deleted(number),
        );
        Ok((running.sync(come)?, running.sync(go)?))
    })?;
    let (not_ready, _) = there_and_back(effort, |n| {
        let (state, cluster) = (&running.state, &running.cluster);
        // Node 0 is this one.
        let node = 1 + n % (NODES - 1);
        let go = cluster.node_ready(state, node, false);
        let come = cluster.node_ready(state, node, true);
        Ok((running.sync(go)?, running.sync(come)?))
    })?;
    let rows = vec![
        row("endpoint replaced", &replaced),
        row("endpoint removed", &removed),
        row("endpoint added", &added),
        row("Service added", &service_added),
        row("Service deleted", &service_deleted),
        row("a node's endpoints gone", &not_ready),
    ];
    bed.clear::<V4>()?;
    Ok(rows)
}

/// Repeats a change and what takes it back. The first time does not count: it makes pick chains
/// that later ones find.
pub(super) fn there_and_back(
    effort: Effort,
    mut both: impl FnMut(u32) -> Result<(Cost, Cost)>,
) -> Result<(Vec<Cost>, Vec<Cost>)> {
    both(0)?;
    let costs = effort.repeat(|n| both(n + 1))?;
    Ok(costs.into_iter().unzip())
}
