//! One endpoint that changes, from the server's answer to the kernel's consent.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use integration::daemon::Daemon;
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;

use super::cluster::changed_slice;
use super::run::{Bed, first_sync};
use crate::measure::spread;
use crate::rows::Scale;
use crate::table::Row;

const GROUP: &str = "daemon, one change";
/// Changes come so far apart that each is the only one of its sync.
const APART: Duration = Duration::from_millis(30);

pub(super) fn rows(scale: Scale) -> Result<Vec<Row>> {
    let size = scale.medium();
    let bed = Bed::new(size)?;
    let kubeconfig = bed.kubeconfig(bed.server.addr())?;
    let more = ["--iptables-min-sync-period=10ms", "-v=4"];
    let daemon = bed.start(&kubeconfig, &more)?;
    first_sync(&daemon, Instant::now())?;
    sleep(scale.pick(Duration::from_millis(100), Duration::from_secs(2)));
    let times = scale.effort().repeat(|n| {
        let slice = changed_slice(size, n)?;
        let n_before = syncs(&daemon).len();
        #[allow(
            clippy::disallowed_methods,
            reason = "lines of the log have such times"
        )]
        let sent = Timestamp::now();
        bed.server.upsert(slice)?;
        let line = next_sync(&daemon, n_before)?;
        sleep(APART);
        let text = line.split(' ').nth(1).context("a line has a time")?;
        let committed: Time = text.parse().context("reading the time of a line")?;
        let sent = sent.to_zoned(TimeZone::UTC).time();
        Ok(between(sent, committed))
    })?;
    daemon.stop()?;
    let case = format!("endpoint replaced, {size}");
    Ok(vec![Row::new(GROUP, "ms", case, spread(times))])
}

/// From one time of day to the next other one, in whatever time zones they are.
fn between(from: Time, to: Time) -> Duration {
    // Time zones differ by quarters of an hour.
    const QUARTER: i128 = 15 * 60 * 1_000_000_000;
    let nanoseconds = to.duration_since(from).as_nanos().rem_euclid(QUARTER);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default())
}

/// The lines about syncs that replaced one element.
fn syncs(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines();
    lines
        .filter(|line| line.contains("ipFamily=\"IPv4\" full=false added=1 deleted=1"))
        .map(str::to_owned)
        .collect()
}

fn next_sync(daemon: &Daemon, n_before: usize) -> Result<String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if let Some(line) = syncs(daemon).into_iter().nth(n_before) {
            return Ok(line);
        }
        sleep(Duration::from_millis(1));
    }
    bail!("there was no sync; the log is\n{}", daemon.log())
}
