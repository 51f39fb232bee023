//! Services whose endpoints are chosen by Maglev's tables, beside the same at random.

use std::time::Instant;

use anyhow::{Result, ensure};
use nftproxy_core::model::{Method, V4};
use nftproxy_core::sync::Syncer;

use super::change::{Running, there_and_back};
use super::{Job, REPLAY, Scale, sync_row};
use crate::cluster::{Cluster, Size, node};
use crate::floor::{Bed, sync_dirty};
use crate::table::Row;

const GROUP: &str = "balancing";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    // Tables of 1,009 and of 10,007 slots: a million in all, either way.
    let sizes = [
        scale.pick(Size::new(10, 4), Size::new(1_000, 4)),
        scale.pick(Size::new(2, 5), Size::new(100, 5)),
    ];
    let jobs = sizes.into_iter().flat_map(|size| {
        [Method::Random, Method::Maglev].map(|method| {
            let name = format!("{GROUP}, {method}, {size}");
            Job::new(name, move || rows(scale, size, method))
        })
    });
    jobs.collect()
}

fn rows(scale: Scale, size: Size, method: Method) -> Result<Vec<Row>> {
    let cluster = Cluster {
        method,
        ..Cluster::new(size)
    };
    let group = format!("{GROUP}, {size}");
    let row =
        |case: &str, costs: &[_]| sync_row(&group, REPLAY, format!("{case}, {method}"), costs);
    let mut state = cluster.state();
    let dirty = state.take_dirty();
    let cold = scale.few().repeat(|_| {
        let bed = Bed::new()?;
        let mut syncer = Syncer::<V4, _>::new(bed.open()?);
        let cost = sync_dirty(&mut syncer, &state, &node(), &dirty, Instant::now())?;
        bed.clear::<V4>()?;
        Ok(cost)
    })?;

    let bed = Bed::new()?;
    let mut running = Running::start(&bed, cluster)?;
    let (removed, _) = there_and_back(scale.effort(), |n| {
        let (gone, back) = running.cluster.endpoint_removed(&running.state, n);
        Ok((running.sync([gone])?, running.sync([back])?))
    })?;
    ensure!(
        removed.iter().all(|cost| cost.counts.deleted_elements > 0),
        "nothing has changed"
    );
    bed.clear::<V4>()?;
    Ok(vec![
        row("cold sync", &cold),
        row("endpoint removed", &removed),
    ])
}
