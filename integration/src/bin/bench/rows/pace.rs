//! Changes that keep coming: how long each waits until it is in the kernel, and what all of them cost.

use std::collections::VecDeque;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::netns::Namespace;
use nftproxy_core::engine::{Engine, Event, Families, FlowOption, Options, Outcome, Task};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{Job, Scale};
use crate::cluster::{self, Cluster, Size, grouped, node};
use crate::measure::spread;
use crate::table::Row;

const GROUP: &str = "pace";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let size = scale.medium();
    let per_second = [scale.pick(20, 100), scale.pick(200, 5_000)];
    let job = |per_second: u32| {
        let name = format!("{GROUP}, {} changes a second", grouped(per_second));
        Job::new(name, move || Ok(vec![row(scale, size, per_second)?]))
    };
    per_second.map(job).into()
}

/// An endpoint goes or comes back, so many times a second, as the engine is paced by default.
fn row(scale: Scale, size: Size, per_second: u32) -> Result<Row> {
    let seconds = scale.pick(1, 10);
    let namespace = Namespace::new("paced")?;
    let options = Options {
        families: Families::V4,
        flows: FlowOption::Ignore,
        node: node(),
        ..Options::default()
    };
    let mut engine = namespace.run(|| Engine::open(options, Instant::now()))?;
    // Nobody else commits anything here, so nothing would be told.
    drop(engine.take_monitor());
    engine.apply(Event::Watched(true), Instant::now());
    let cluster = Cluster::new(size);
    let state = cluster.state();
    let changes: Vec<Event> = (0..per_second * seconds / 2)
        .flat_map(|n| {
            let (gone, back) = cluster.endpoint_removed(&state, n);
            [gone, back].map(event)
        })
        .collect();
    for number in 0..size.services {
        for it in cluster.service_added(number) {
            engine.apply(event(it), Instant::now());
        }
    }
    let services = state.services().map(|service| service.name.clone());
    engine.apply(Event::ServicesListed(services.collect()), Instant::now());
    let slices = state
        .services()
        .flat_map(|service| state.slices(&service.name));
    let slices = slices.map(|slice| slice.name.clone()).collect();
    engine.apply(Event::SlicesListed(slices), Instant::now());
    succeed(engine.perform(Task::Sync, Instant::now()))?;
    ensure!(
        engine.has_synced(),
        "the first sync has not come to its end"
    );
    drop(state);

    // The first sync's pause is over by then.
    sleep(Duration::from_secs(2));
    let interval = Duration::from_secs(1) / per_second;
    let start = Instant::now();
    let used = cpu_time()?;
    let mut changes = changes.into_iter().zip(0_u32..).peekable();
    let (mut waiting, mut waits, mut n_syncs) = (VecDeque::new(), Vec::new(), 0_usize);
    loop {
        let now = Instant::now();
        while let Some((change, n)) = changes.next_if(|(_, n)| start + interval * *n <= now) {
            engine.apply(change, now);
            waiting.push_back((engine.revision(), start + interval * n));
        }
        let change_at = changes.peek().map(|(_, n)| start + interval * *n);
        let due = engine.next(now).filter(|due| due.task != Task::Look);
        match due.filter(|due| due.at <= now) {
            Some(due) => {
                succeed(engine.perform(due.task, now))?;
                n_syncs += usize::from(due.task == Task::Sync);
                let (in_force, done) = (engine.synced_revision(), Instant::now());
                let n_done = waiting.partition_point(|(at, _)| *at <= in_force);
                let came = waiting.drain(..n_done).map(|(_, came)| came);
                waits.extend(came.map(|came| done.saturating_duration_since(came)));
            }
            None if change_at.is_none() && waiting.is_empty() => break,
            None => {
                let at = [change_at, due.map(|due| due.at)]
                    .into_iter()
                    .flatten()
                    .min();
                let at = at.context("there is something that waits, and nothing due")?;
                sleep(at.saturating_duration_since(now));
            }
        }
    }
    let share = (cpu_time()? - used).as_secs_f64() / start.elapsed().as_secs_f64();
    let case = format!("{size}, {} changes a second", grouped(per_second));
    Ok(Row::new(GROUP, "ms", case, spread(waits))
        .with("syncs a second", n_syncs as f64 / f64::from(seconds))
        .with("% of a core", share * 100.0))
}

fn succeed(outcomes: Vec<Outcome>) -> Result<()> {
    for outcome in outcomes {
        if let Outcome::Failed { error, .. } = outcome {
            return Err(error).context("syncing");
        }
    }
    Ok(())
}

fn event(event: cluster::Event) -> Event {
    match event {
        cluster::Event::Service(service) => Event::ServiceApplied(service),
        cluster::Event::ServiceDeleted(name) => Event::ServiceDeleted(name),
        cluster::Event::Slice(slice) => Event::SliceApplied(slice),
        cluster::Event::SliceDeleted(name) => Event::SliceDeleted(name),
    }
}

/// What this thread has used of the CPU, the kernel's part included.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).context("asking for the CPU time")?;
    let of = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
