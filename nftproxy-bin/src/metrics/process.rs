//! `process_*`, as Go's client library has them, from `/proc/self`.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

use super::Register;

/// What the kernel says of this process, read when it is asked for.
#[derive(Clone)]
pub(super) struct Process {
    gauges: [Gauge; 6],
    counters: [Counter; 3],
}

const GAUGES: [(&str, &str); 6] = [
    (
        "process_max_fds",
        "Maximum number of open file descriptors.",
    ),
    ("process_open_fds", "Number of open file descriptors."),
    (
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
    ),
    (
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
    ),
    (
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
    ),
    (
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
    ),
];
const COUNTERS: [(&str, &str); 3] = [
    (
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
    ),
    (
        "process_network_receive_bytes_total",
        "Number of bytes received by the process over the network.",
    ),
    (
        "process_network_transmit_bytes_total",
        "Number of bytes sent by the process over the network.",
    ),
];

impl Process {
    pub(super) fn new() -> Self {
        Self {
            gauges: GAUGES.map(|(name, help)| Gauge::new(name, help).expect("the name is valid")),
            counters: COUNTERS
                .map(|(name, help)| Counter::new(name, help).expect("the name is valid")),
        }
    }

    /// The values in the order of [`GAUGES`] and [`COUNTERS`]. What cannot be read is left out.
    fn values() -> ([Option<f64>; 6], [Option<f64>; 3]) {
        let stat = Stat::read();
        let stat = stat.as_ref();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let limit = |name: &str| {
            let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
            match rest.split_whitespace().next()? {
                "unlimited" => Some(-1.0),
                number => number.parse().ok(),
            }
        };
        let open = fs::read_dir("/proc/self/fd").ok();
        // One is the folder itself.
        let open = open.map(|entries| entries.count().saturating_sub(1) as f64);
        let (received, sent) = network().unzip();
        let gauges = [
            limit("Max open files"),
            open,
            stat.map(|stat| stat.resident_bytes),
            start_time(),
            stat.map(|stat| stat.virtual_bytes),
            limit("Max address space"),
        ];
        (gauges, [stat.map(|stat| stat.cpu_seconds), received, sent])
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = self.gauges.iter().flat_map(Collector::desc);
        gauges
            .chain(self.counters.iter().flat_map(Collector::desc))
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (gauges, counters) = Self::values();
        let mut families = Vec::new();
        for (gauge, value) in self.gauges.iter().zip(gauges) {
            if let Some(value) = value {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        for (counter, value) in self.counters.iter().zip(counters) {
            if let Some(value) = value {
                counter.reset();
                counter.inc_by(value);
                families.extend(counter.collect());
            }
        }
        families
    }
}

struct Stat {
    cpu_seconds: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    start_seconds_after_boot: f64,
}

impl Stat {
    /// `/proc/self/stat`, proc_pid_stat(5).
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program may hold anything, and ends with the last parenthesis.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        // The first of these is field 3 of the manual.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let per_second = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
        let page = sysconf(SysconfVar::PAGE_SIZE).ok()?? as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / per_second,
            start_seconds_after_boot: field(22)? / per_second,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page,
        })
    }
}

/// When this process started, in seconds since 1970.
pub(super) fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + Stat::read()?.start_seconds_after_boot)
}

/// Bytes received and sent in this network namespace, which is how Go's library counts.
fn network() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let values: BTreeMap<_, _> = names.split(' ').zip(values.split(' ')).collect();
    let value = |name| values.get(name)?.parse().ok();
    Some((value("InOctets")?, value("OutOctets")?))
}

/// Registers when the process started, for pages that have little else.
pub(super) fn register_start_time(register: &Register) {
    let (name, help) = GAUGES[3];
    register
        .float_gauge(name, help)
        .set(start_time().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-142
    #[test]
    fn the_kernel_says_all_of_this_process() {
        let (gauges, counters) = Process::values();
        assert!(gauges.iter().all(Option::is_some), "{gauges:?}");
        assert!(counters.iter().all(Option::is_some), "{counters:?}");
        let age = super::super::unix_time() - gauges[3].unwrap();
        assert!((-2.0..3600.0).contains(&age), "started {age} seconds ago");
        assert!(gauges[2].unwrap() > 1e6, "memory is counted in bytes");
    }
}
