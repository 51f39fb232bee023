//! The whole process, from its start to the kernel's consent, with an API server of ours beside it.
//!
//! The server encodes each list once for all who ask, so that it takes little beside the process.

mod change;
mod cluster;
mod fleet;
mod lists;
mod run;

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::daemon;

use self::cluster::n_elements;
pub(crate) use self::fleet::follow;
use self::run::{Bed, Run};
use super::{Job, Scale};
use crate::cluster::Size;
use crate::measure::{Memory, mean, ms, spread};
use crate::table::Row;

const GROUP: &str = "daemon";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let job = |name: &str, run: fn(Scale) -> Result<Vec<Row>>| Job {
        skipped_because: Some("as it needs a release build of nftproxy"),
        ..Job::new(name.into(), move || {
            // Built before any time counts.
            daemon::binary()?;
            run(scale)
        })
    };
    vec![
        job(GROUP, starts),
        job("daemon, lists", lists::rows),
        job("daemon, one change", change::rows),
        job("daemon, fleet", fleet::rows),
    ]
}

fn starts(scale: Scale) -> Result<Vec<Row>> {
    let sizes = [scale.medium(), scale.many_endpoints()];
    let rows = sizes.map(|size| starts_of(scale, size));
    Ok(rows.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// A start, and what it was like when it had settled.
struct Settled {
    wall: Duration,
    cpu: Duration,
    server_cpu: Duration,
    added: usize,
    deleted: usize,
    memory: Memory,
    idle: f64,
}

fn starts_of(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let bed = Bed::new(size)?;
    let kubeconfig = bed.kubeconfig(bed.server.addr())?;
    let run = || -> Result<Settled> {
        let run = Run::new(&bed, &kubeconfig)?;
        let (memory, idle) = run.settle(scale)?;
        let settled = Settled {
            wall: run.wall,
            cpu: run.cpu,
            server_cpu: run.server_cpu,
            added: run.added,
            deleted: run.deleted,
            memory,
            idle,
        };
        run.stop()?;
        Ok(settled)
    };
    lists::warm_up(&bed, &kubeconfig)?;
    let runs = scale.few().repeat(|_| {
        let (start, restart) = (run()?, run()?);
        bed.node.exec(&["nft", "flush", "ruleset"])?;
        ensure!(
            (start.added, start.deleted) == (n_elements(size), 0),
            "of {} elements {} were added",
            n_elements(size),
            start.added
        );
        ensure!(
            (restart.added, restart.deleted) == (0, 0),
            "nothing had changed, and {} elements were added, {} deleted",
            restart.added,
            restart.deleted
        );
        Ok((start, restart))
    })?;
    let (starts, restarts): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    Ok(vec![
        row(format!("{size}, start"), &starts),
        row(format!("{size}, restart"), &restarts),
    ])
}

fn row(case: String, runs: &[Settled]) -> Row {
    let average = |figure: fn(&Settled) -> f64| mean(runs.iter().map(figure));
    Row::new(GROUP, "ms", case, spread(runs.iter().map(|run| run.wall)))
        .with("CPU ms", average(|run| ms(run.cpu)))
        .with("server's CPU ms", average(|run| ms(run.server_cpu)))
        .with("added", average(|run| run.added as f64))
        .with("peak MiB", average(|run| run.memory.peak))
        .with("steady MiB", average(|run| run.memory.now))
        .with("idle CPU %", average(|run| 100.0 * run.idle))
}
