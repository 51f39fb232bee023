//! A proxy that starts on a kernel which holds what one before it left.

use std::time::Instant;

use anyhow::{Result, ensure};
use nftproxy_core::model::V4;
use nftproxy_core::sync::Syncer;

use super::change::Running;
use super::{Job, Scale};
use crate::cluster::{Cluster, Size, node};
use crate::floor::{Bed, Cost, sync_dirty};
use crate::measure::{mean, ms, spread};
use crate::table::Row;

const GROUP: &str = "restart";
const FLOOR: &str = "the kernel's dump of the same sets, received and thrown away, and the batch";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    [
        scale.medium(),
        scale.many_endpoints(),
        scale.many_services(),
    ]
    .map(|size| Job::new(format!("{GROUP}, {size}"), move || rows(scale, size)))
    .into()
}

fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let bed = Bed::new()?;
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let unchanged = scale.few().repeat(|_| {
        let cost = restart(&bed, &mut running)?;
        ensure!(
            cost.counts.elements() == 0 && cost.bytes == 0,
            "nothing had changed, and {} bytes were sent",
            cost.bytes
        );
        Ok(cost)
    })?;
    let n_changed = (size.services / 100).max(1);
    let changed = scale.few().repeat(|round| {
        for n in round * n_changed..(round + 1) * n_changed {
            let event = running.cluster.endpoint_replaced(&running.state, n);
            event.apply(&mut running.state);
        }
        restart(&bed, &mut running)
    })?;
    bed.clear::<V4>()?;
    Ok(vec![
        row(format!("{size}, nothing changed"), &unchanged),
        row(format!("{size}, 1 % of Services changed"), &changed),
    ])
}

/// A new syncer takes over from the one before.
fn restart(bed: &Bed, running: &mut Running) -> Result<Cost> {
    running.state.mark_all_dirty();
    let dirty = running.state.take_dirty();
    running.syncer = Syncer::new(bed.open()?);
    let start = Instant::now();
    sync_dirty(&mut running.syncer, &running.state, &node(), &dirty, start)
}

fn row(case: String, costs: &[Cost]) -> Row {
    let ours = spread(costs.iter().map(|cost| cost.total));
    let floor = spread(costs.iter().map(|cost| cost.floor));
    let part = |part: fn(&Cost) -> f64| mean(costs.iter().map(part));
    Row::ms(GROUP, FLOOR, case, ours, floor)
        .with("list ms", part(|cost| ms(cost.timings.list)))
        .with("compile ms", part(|cost| ms(cost.timings.compile)))
        .with("diff ms", part(|cost| ms(cost.timings.diff)))
        .with("encode ms", part(|cost| ms(cost.timings.encode)))
        .with("kernel ms", part(|cost| ms(cost.timings.kernel)))
        .with("deleted", part(|cost| cost.counts.deleted_elements as f64))
        .with("added", part(|cost| cost.counts.added_elements as f64))
}
