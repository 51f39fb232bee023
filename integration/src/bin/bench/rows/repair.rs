//! Others' hands: what it takes to hear of them, and to set right what they did to our table.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nftproxy_core::apply::netlink::Monitor;
use nftproxy_core::model::V4;

use super::change::Running;
use super::{Job, REPLAY, Scale, sync_row};
use crate::cluster::{Cluster, Size, destination};
use crate::floor::{self, Bed, Cost};
use crate::measure::{ms, spread};
use crate::table::Row;

const GROUP: &str = "repair";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let sizes = [scale.medium(), scale.many_endpoints()];
    let job = |size: Size| Job::new(format!("{GROUP}, {size}"), move || rows(scale, size));
    let mut jobs = Vec::from(sizes.map(job));
    jobs.push(Job::new(format!("{GROUP}, others' elements"), move || {
        others(scale)
    }));
    jobs
}

/// From the moment at which another program's change is in force to the kernel's consent to the
/// repair.
fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let bed = Bed::new()?;
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let mut monitor = bed.listen(running.syncer.kernel_mut())?;
    let (address, port) = destination(0);
    let element = format!("delete element ip nftproxy services {{ {address} . tcp . {port} }}");
    let damages = [
        ("table deleted", "delete table ip nftproxy"),
        (
            "all Services' elements deleted",
            "flush map ip nftproxy services",
        ),
        ("one element deleted", element.as_str()),
        ("rules deleted", "flush chain ip nftproxy services"),
    ];
    let mut rows = Vec::new();
    for (case, damage) in damages {
        let costs = scale.few().repeat(|_| {
            let command: Vec<_> = ["nft"].into_iter().chain([damage]).collect();
            bed.exec(&command)?;
            let cost = repair(&mut running, &mut monitor)?;
            ensure!(cost.messages > 0, "{case}: there was nothing to repair");
            Ok(cost)
        })?;
        rows.push(sync_row(GROUP, REPLAY, format!("{size}, {case}"), &costs));
    }
    bed.clear::<V4>()?;
    Ok(rows)
}

fn repair(running: &mut Running, monitor: &mut Monitor) -> Result<Cost> {
    let start = Instant::now();
    let mut incidents = monitor.read().context("reading notifications")?.into_iter();
    let mut incident = incidents.next().context("nobody has told of the damage")?;
    incidents.for_each(|other| incident.merge(other));
    floor::repair(&mut running.syncer, &incident.scope, &running.state, start)
}

/// What it costs to hear of 10,000 elements that another program adds to its own set, beside what
/// it costs to receive as many bytes.
fn others(scale: Scale) -> Result<Vec<Row>> {
    const N_ELEMENTS: u32 = 10_000;
    let bed = Bed::new()?;
    let mut twin = bed.open()?;
    let mut monitor = bed.listen(&mut twin)?;
    let mut socket = bed.listening_socket()?;
    bed.exec(&[
        "nft",
        "add table ip other; add set ip other s { type ipv4_addr; }",
    ])?;
    let elements: Vec<_> = (0..N_ELEMENTS)
        .map(|n| format!("10.0.{}.{}", n / 256, n % 256))
        .collect();
    let add = format!("add element ip other s {{ {} }}", elements.join(", "));
    let flush = "flush set ip other s";
    socket.receive_all()?;
    monitor.read()?;
    let mut times: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..scale.few().at_least {
        for command in [&add, flush] {
            bed.exec(&["nft", command])?;
            let start = Instant::now();
            let incidents = monitor.read()?;
            let ours = start.elapsed();
            ensure!(
                incidents.is_empty(),
                "that is none of our business: {incidents:?}"
            );
            let start = Instant::now();
            let received = socket.receive_all()?;
            let floor = start.elapsed();
            ensure!(received > 100_000, "only {received} bytes were told");
            times.push((ours, floor));
        }
    }
    let case = "another program's 10,000 elements".to_owned();
    let ours = spread(times.iter().map(|(ours, _)| *ours));
    let floor = spread(times.iter().map(|(_, floor)| *floor));
    let floor_is = "the same notifications received and thrown away";
    let share = times.iter().map(|(ours, _)| ms(*ours)).sum::<f64>() / times.len() as f64;
    Ok(vec![
        Row::ms(GROUP, floor_is, case, ours, floor)
            .with("% of a core at one batch a second", share / 10.0),
    ])
}
