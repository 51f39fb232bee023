//! The first sync, into an empty kernel: from the complete model to the kernel's consent.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use nftproxy_core::model::{Family, ServiceName, State, V4, V6};
use nftproxy_core::sync::Syncer;

use super::{Job, REPLAY, Scale, longest_batch};
use crate::cluster::{Cluster, node};
use crate::floor::{Bed, Cost, Twin, sync_dirty};
use crate::measure::{Memory, mean, ms, spread};
use crate::table::Row;

const GROUP: &str = "cold sync";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let single = scale.sizes().map(Cluster::new);
    let dual = Cluster {
        is_dual_stack: true,
        ..Cluster::new(scale.medium())
    };
    let job = |cluster: Cluster| {
        let stack = if cluster.is_dual_stack {
            ", dual-stack"
        } else {
            ""
        };
        let case = format!("{}{stack}", cluster.size);
        Job::new(format!("{GROUP}, {case}"), move || {
            Ok(vec![row(scale, &case, cluster)?])
        })
    };
    single.into_iter().chain([dual]).map(job).collect()
}

fn row(scale: Scale, case: &str, cluster: Cluster) -> Result<Row> {
    let before = Memory::read()?.now;
    let mut state = cluster.state();
    let dirty = state.take_dirty();
    let with_state = Memory::read()?.now;
    let mut memory = None;
    let costs = scale.few().repeat(|_| {
        let bed = Bed::new()?;
        let (cost, of_process) = cold(&bed, &cluster, &state, &dirty)?;
        // Later ones find what the first has left to the allocator.
        memory.get_or_insert(of_process);
        bed.clear::<V4>()?;
        if cluster.is_dual_stack {
            bed.clear::<V6>()?;
        }
        Ok(cost)
    })?;
    let (peak, after) = memory.map_or((0.0, 0.0), |memory| (memory.peak, memory.now));

    let ours = spread(costs.iter().map(|cost| cost.total));
    let floor = spread(costs.iter().map(|cost| cost.floor));
    let share =
        |part: fn(&Cost) -> f64| mean(costs.iter().map(|cost| 100.0 * part(cost) / ms(cost.total)));
    let last = costs[costs.len() - 1];
    let floor_is = REPLAY;
    Ok(Row::ms(GROUP, floor_is, case.into(), ours, floor)
        .with("compile %", share(|cost| ms(cost.timings.compile)))
        .with("diff %", share(|cost| ms(cost.timings.diff)))
        .with("encode %", share(|cost| ms(cost.timings.encode)))
        .with("kernel %", share(|cost| ms(cost.timings.kernel)))
        .with(
            "other %",
            share(|cost| ms(cost.total.saturating_sub(cost.timings.total()))),
        )
        .with("longest batch", longest_batch(&costs))
        .with("elements", last.counts.elements() as f64)
        .with("bytes", last.bytes as f64)
        .with("state MiB", with_state - before)
        .with("peak MiB", peak)
        .with("after MiB", after))
}

/// One cold sync of each family, and the memory of the process after it.
fn cold(
    bed: &Bed,
    cluster: &Cluster,
    state: &State,
    dirty: &BTreeSet<ServiceName>,
) -> Result<(Cost, Memory)> {
    let (v4, cost) = cold_family::<V4>(bed, state, dirty)?;
    if !cluster.is_dual_stack {
        return Ok((cost, Memory::read()?));
    }
    let (v6, more) = cold_family::<V6>(bed, state, dirty)?;
    let memory = Memory::read()?;
    drop((v4, v6));
    Ok((cost.and(&more), memory))
}

/// The syncer is handed back for its memory to be seen.
fn cold_family<F: Family>(
    bed: &Bed,
    state: &State,
    dirty: &BTreeSet<ServiceName>,
) -> Result<(Syncer<F, Twin>, Cost)> {
    let mut syncer = Syncer::new(bed.open()?);
    let cost = sync_dirty::<F>(&mut syncer, state, &node(), dirty, Instant::now())?;
    ensure!(
        cost.counts.deleted_elements == 0,
        "the kernel was not empty"
    );
    Ok((syncer, cost))
}
