//! A start by each way to list, in each encoding, beside the server and over a long line.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use integration::apiserver::{Encodings, Fault, Resource, Rule, Status, StreamingLists, Verb};
use integration::relay::Relay;

use super::run::{Bed, Run};
use crate::measure::{mean, ms, spread};
use crate::rows::Scale;
use crate::table::Row;

const GROUP: &str = "daemon, lists";
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Name, what the server makes of streaming lists, and whether it refuses lists from its cache. The
/// requests that are refused count.
const WAYS: [(&str, StreamingLists, bool); 3] = [
    ("streamed", StreamingLists::Served, false),
    ("whole", StreamingLists::SwitchedOff, false),
    ("in pages", StreamingLists::SwitchedOff, true),
];

pub(super) fn rows(scale: Scale) -> Result<Vec<Row>> {
    let size = scale.medium();
    let bed = Bed::new(size)?;
    let relay = bed
        .node
        .run(|| Relay::start(bed.server.addr(), ROUND_TRIP))?;
    let mut rows = Vec::new();
    for (line, addr) in [("", bed.server.addr()), (", 20 ms away", relay.addr())] {
        for (way, streaming_lists, refuses_cached) in WAYS {
            for (name, encodings) in [
                ("protobuf", Encodings::Both),
                ("JSON", Encodings::JsonRegardless),
            ] {
                bed.server.set_streaming_lists(streaming_lists);
                bed.server.set_encodings(encodings);
                let case = format!("{way}, {name}{line}");
                rows.push(row(scale, &bed, addr, case, refuses_cached)?);
            }
        }
    }
    Ok(rows)
}

/// Has the server encode what it will be asked for.
pub(super) fn warm_up(bed: &Bed, kubeconfig: &Path) -> Result<()> {
    let run = Run::new(bed, kubeconfig)?;
    run.stop()?;
    bed.node.exec(&["nft", "flush", "ruleset"])?;
    Ok(())
}

fn row(
    scale: Scale,
    bed: &Bed,
    addr: SocketAddr,
    case: String,
    refuses_cached: bool,
) -> Result<Row> {
    let kubeconfig = bed.kubeconfig(addr)?;
    let start = || -> Result<Run> {
        bed.server.heal();
        for resource in Resource::ALL.into_iter().filter(|_| refuses_cached) {
            let refused = Fault::Refuse(Status::of(400));
            let rule = Rule::new(refused).on(resource).verb(Verb::List);
            bed.server.inject(rule.times(1));
        }
        Run::new(bed, &kubeconfig)
    };
    // Has the server encode what it will be asked for.
    start()?.stop()?;
    bed.node.exec(&["nft", "flush", "ruleset"])?;
    let runs = scale.few().repeat(|_| {
        let run = start()?;
        bed.node.exec(&["nft", "flush", "ruleset"])?;
        let figures = [
            ms(run.lists),
            ms(run.cpu),
            ms(run.server_cpu),
            run.requests as f64,
            run.bytes as f64 / 1e6,
            run.peak,
        ];
        let wall = run.wall;
        run.stop()?;
        // What the kernel takes apart by then does not disturb the next.
        std::thread::sleep(scale.pick(Duration::ZERO, Duration::from_millis(300)));
        Ok((wall, figures))
    })?;
    let names = [
        "lists ms",
        "CPU ms",
        "server's CPU ms",
        "requests",
        "MB",
        "peak MiB",
    ];
    let walls = spread(runs.iter().map(|(wall, _)| *wall));
    let row = Row::new(GROUP, "ms", case, walls);
    Ok(names.into_iter().enumerate().fold(row, |row, (i, name)| {
        row.with(name, mean(runs.iter().map(|(_, figures)| figures[i])))
    }))
}
