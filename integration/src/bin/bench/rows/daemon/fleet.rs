//! Many nodes that start together, or lose the server together.
//!
//! A node here is all that talks to the API server, as in the real process, and nothing of what
//! becomes of it: so hundreds fit into one process, beside the server's. Each has a connection of
//! its own, over TLS and HTTP/2.

use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::fixtures::NODE_NAME;
use nftproxy_bin::bench::Follower;

use super::run::Bed;
use crate::cluster::grouped;
use crate::measure::{cpu_time, ms, spread};
use crate::rows::Scale;
use crate::table::Row;

const GROUP: &str = "daemon, fleet";
/// Kinds that each node watches.
const N_KINDS: usize = 4;
/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn rows(scale: Scale) -> Result<Vec<Row>> {
    let (n_nodes, size) = (scale.pick(5, 300), scale.small());
    let outage = scale.pick(Duration::from_secs(2), Duration::from_secs(20));
    let bed = Bed::new(size)?;
    let kubeconfig = bed.kubeconfig(bed.server.addr())?;
    let fleet = || Fleet::start(&bed, &kubeconfig, n_nodes);
    // Has the server encode what it will be asked for.
    drop(Fleet::start(&bed, &kubeconfig, 1)?);
    let nodes = format!("{} nodes, {size}", grouped(n_nodes as u32));

    let before = Figures::now(&bed)?;
    let fleet = fleet()?;
    let case = format!("{nodes}, start");
    let row = Row::new(GROUP, "ms", case, spread(fleet.waits.clone()));
    let mut rows = vec![Figures::now(&bed)?.since(before).on(row, n_nodes).with(
        "nodes' CPU ms each",
        ms(cpu_time(fleet.child.id())?) / n_nodes as f64,
    )];
    wait_for_watches(&bed, n_nodes * N_KINDS)?;
    for (what, forgets) in [("", false), (", versions forgotten", true)] {
        bed.server.refuse(true);
        bed.server.cut_connections();
        let before = Figures::now(&bed)?;
        sleep(outage);
        let refused = Figures::now(&bed)?.since(before);
        if forgets {
            bed.server.compact();
        }
        let before = Figures::now(&bed)?;
        bed.server.refuse(false);
        let back = wait_for_watches(&bed, n_nodes * N_KINDS)?;
        let seconds = outage.as_secs();
        let case = format!("{nodes}, after {seconds} s of 503{what}");
        let row = Row::new(GROUP, "ms", case, spread(back));
        let each = refused.requests as f64 / n_nodes as f64 / outage.as_secs_f64();
        rows.push(
            Figures::now(&bed)?
                .since(before)
                .on(row, n_nodes)
                .with("requests/s each in the outage", each),
        );
    }
    Ok(rows)
}

/// What the server has done so far.
#[derive(Clone, Copy)]
struct Figures {
    requests: usize,
    bytes: u64,
    cpu: Duration,
}

impl Figures {
    fn now(bed: &Bed) -> Result<Self> {
        let (requests, bytes) = bed.traffic();
        Ok(Self {
            requests,
            bytes,
            cpu: cpu_time(process::id())?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            bytes: self.bytes - before.bytes,
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }

    fn on(self, row: Row, n_nodes: usize) -> Row {
        let each = |figure: f64| figure / n_nodes as f64;
        row.with("requests each", each(self.requests as f64))
            .with("MB each", each(self.bytes as f64 / 1e6))
            .with("server's CPU ms each", each(ms(self.cpu)))
    }
}

/// Waits until so many watches are open, and returns when each was.
fn wait_for_watches(bed: &Bed, n: usize) -> Result<Vec<Duration>> {
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < n {
        ensure!(
            start.elapsed() < PATIENCE,
            "of {n} watches {} are open",
            times.len()
        );
        let n_open = bed.server.open_watches().min(n);
        times.resize(n_open.max(times.len()), start.elapsed());
        sleep(Duration::from_millis(1));
    }
    Ok(times)
}

/// A process of many nodes; dropping it ends it.
struct Fleet {
    child: Child,
    /// From the start of all to the complete lists of each.
    waits: Vec<Duration>,
}

impl Fleet {
    /// Starts it, and waits until all lists are complete.
    fn start(bed: &Bed, kubeconfig: &Path, n_nodes: usize) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command
            .arg("--nodes")
            .arg(n_nodes.to_string())
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = bed.node.spawn(command)?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let mut fleet = Self {
            child,
            waits: Vec::new(),
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let micros: Vec<u64> = serde_json::from_str(&line).context("reading what nodes say")?;
        ensure!(micros.len() == n_nodes, "not all nodes have said something");
        fleet.waits = micros.into_iter().map(Duration::from_micros).collect();
        Ok(fleet)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is so many nodes, until standard input ends. Prints how many microseconds each has waited for
/// its lists, as one line of JSON.
pub(crate) fn follow(kubeconfig: &Path, n_nodes: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let waits = runtime.block_on(async {
        let start = Instant::now();
        let nodes = (0..n_nodes).map(|_| {
            let mut node = Follower::start(kubeconfig, NODE_NAME)?;
            Ok(tokio::spawn(async move {
                node.wait_for_lists().await;
                let wait = start.elapsed();
                tokio::spawn(node.drain());
                wait
            }))
        });
        let nodes: Vec<_> = nodes.collect::<Result<_>>()?;
        let mut waits = Vec::new();
        for node in nodes {
            waits.push(node.await?.as_micros() as u64);
        }
        anyhow::Ok(waits)
    })?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", serde_json::to_string(&waits)?)?;
    stdout.flush()?;
    runtime.block_on(async {
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        // Whatever became of it, there is nobody any more.
        drop(end.await);
    });
    Ok(())
}
