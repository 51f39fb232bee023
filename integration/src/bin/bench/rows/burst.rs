//! Many changes on end.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nftproxy_core::model::V4;

use super::change::Running;
use super::{Job, REPLAY, Scale, own, sync_row};
use crate::cluster::{Cluster, Event, Size, grouped};
use crate::floor::{Bed, Cost};
use crate::measure::{ms, spread};
use crate::table::Row;

/// What the daemon's queue of events holds.
const QUEUE: usize = 1024;

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let endpoints = scale.pick(100, 1_000);
    let n_events = scale.pick(100, 10_000);
    vec![
        Job::new(
            format!("rolling update of {} endpoints", grouped(endpoints)),
            move || Ok(vec![rolling_update(scale, endpoints)?]),
        ),
        Job::new(
            format!("storm of {} events", grouped(n_events)),
            move || Ok(vec![storm(scale, n_events)?]),
        ),
    ]
}

/// All endpoints of a Service are replaced one after the other, each with a sync of its own.
fn rolling_update(scale: Scale, endpoints: u32) -> Result<Row> {
    let bed = Bed::new()?;
    let size = Size::new(scale.pick(1, 10), endpoints);
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let costs: Vec<_> = (0..endpoints)
        .map(|endpoint| {
            let event = running
                .cluster
                .replaced(&running.state, 0, endpoint, endpoint);
            running.sync([event])
        })
        .collect::<Result<_>>()?;
    bed.clear::<V4>()?;
    let case = format!("each of {} endpoints", grouped(endpoints));
    let row = sync_row("rolling update", REPLAY, case, &costs);
    Ok(row.with("all ms", costs.iter().map(|cost| ms(cost.total)).sum()))
}

/// An endpoint of one Service after the other is replaced, as fast as the events are taken, and
/// whatever is in the queue is synced together.
fn storm(scale: Scale, n_events: u32) -> Result<Row> {
    let bed = Bed::new()?;
    let size = scale.medium();
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let mut storms = Vec::new();
    for round in 0..3 {
        let events: Vec<_> = (0..n_events)
            .map(|n| {
                let service = n % size.services;
                let endpoint = n / size.services % size.endpoints;
                let cluster = running.cluster;
                cluster.replaced(&running.state, service, endpoint, round * n_events + n)
            })
            .collect();
        storms.push(one_storm(&mut running, events)?);
    }
    bed.clear::<V4>()?;

    let total = spread(storms.iter().map(|storm| storm.total));
    let floor = spread(storms.iter().map(|storm| storm.floor()));
    storms.sort_by_key(|storm| storm.total);
    let Storm { costs, .. } = &storms[storms.len() / 2];
    let elements = costs
        .iter()
        .map(|cost| cost.counts.elements())
        .sum::<usize>();
    let case = format!("{} events", grouped(n_events));
    Ok(Row::ms("storm", REPLAY, case, total, floor)
        .with("syncs", costs.len() as f64)
        .with("own ms", ms(costs.iter().map(own).sum()))
        .with("elements", elements as f64))
}

struct Storm {
    /// From the first event to the last consent, without what the floors took.
    total: Duration,
    costs: Vec<Cost>,
}

impl Storm {
    fn floor(&self) -> Duration {
        self.costs.iter().map(|cost| cost.floor).sum()
    }
}

fn one_storm(running: &mut Running, events: Vec<Event>) -> Result<Storm> {
    let (sender, receiver) = sync_channel(QUEUE);
    let start = Instant::now();
    let source = thread::spawn(move || {
        // It ends early if the receiver is gone, which then says why.
        events.into_iter().all(|event| sender.send(event).is_ok())
    });
    let mut costs = Vec::new();
    while let Ok(event) = receiver.recv() {
        costs.push(running.sync_with(|state| {
            event.apply(state);
            receiver.try_iter().for_each(|event| event.apply(state));
        })?);
    }
    let elapsed = start.elapsed();
    drop(source.join());
    let mut storm = Storm {
        total: elapsed,
        costs,
    };
    storm.total = elapsed.saturating_sub(storm.floor());
    Ok(storm)
}
