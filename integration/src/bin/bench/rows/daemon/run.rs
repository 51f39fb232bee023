//! One start of the real process, and what it took.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use integration::apiserver::{ApiServer, Resource, StreamingLists};
use integration::daemon::Daemon;
use integration::fixtures::NODE_NAME;
use integration::netns::Namespace;
use integration::tls::Tls;
use tempfile::TempDir;

use super::cluster::{PODS, fill};
use crate::cluster::Size;
use crate::measure::{Memory, cpu_time};
use crate::rows::Scale;

/// Longer than any start takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A node with an API server beside it, which speaks TLS and HTTP/2 and has streaming lists.
pub(super) struct Bed {
    pub(super) node: Namespace,
    pub(super) server: ApiServer,
    folder: TempDir,
}

impl Bed {
    pub(super) fn new(size: Size) -> Result<Self> {
        let node = Namespace::new("node")?;
        let tls = Tls::loopback()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = node.run(|| ApiServer::bind_tls(addr, &tls))?;
        server.set_streaming_lists(StreamingLists::Served);
        fill(&server, size)?;
        let folder = tempfile::tempdir().context("making a folder for the kubeconfig")?;
        Ok(Self {
            node,
            server,
            folder,
        })
    }

    /// Writes a kubeconfig that leads to the server by this address.
    pub(super) fn kubeconfig(&self, addr: SocketAddr) -> Result<std::path::PathBuf> {
        let path = self
            .folder
            .path()
            .join(format!("kubeconfig-{}", addr.port()));
        let url = self.server.url();
        let text = self.server.kubeconfig();
        fs::write(&path, text.replace(&url, &format!("https://{addr}")))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Starts the process, with more arguments.
    pub(super) fn start(&self, kubeconfig: &Path, more: &[&str]) -> Result<Daemon> {
        let kubeconfig = kubeconfig.to_str().context("its path is text")?;
        let arguments = ["run", "--kubeconfig", kubeconfig, "--cluster-cidr", PODS];
        let name = ["--hostname-override", NODE_NAME];
        Daemon::start(&self.node, &[&arguments[..], &name, more].concat())
    }

    /// Requests and bytes of bodies since the server started.
    pub(super) fn traffic(&self) -> (usize, u64) {
        let counters = Resource::ALL.map(|resource| self.server.counters(resource));
        let requests = counters.map(|c| c.gets + c.lists + c.watches);
        let bytes = counters.map(|c| c.body_bytes);
        (requests.iter().sum(), bytes.iter().sum())
    }
}

/// What a process did, and what it took.
pub(super) struct Run {
    /// From its start to the first rules.
    pub(super) wall: Duration,
    /// What it used of the CPUs in that time.
    pub(super) cpu: Duration,
    /// What this process, which is the API server, used of them.
    pub(super) server_cpu: Duration,
    /// The longest of its lists, as it says.
    pub(super) lists: Duration,
    pub(super) requests: usize,
    pub(super) bytes: u64,
    pub(super) added: usize,
    pub(super) deleted: usize,
    pub(super) peak: f64,
    daemon: Daemon,
}

impl Run {
    pub(super) fn new(bed: &Bed, kubeconfig: &Path) -> Result<Self> {
        let (requests, bytes) = bed.traffic();
        let server_before = cpu_time(process::id())?;
        let start = Instant::now();
        let daemon = bed.start(kubeconfig, &[])?;
        let line = first_sync(&daemon, start)?;
        let wall = start.elapsed();
        let cpu = cpu_time(daemon.id())?;
        let server_cpu = cpu_time(process::id())?.saturating_sub(server_before);
        let log = daemon.log();
        let lists = log.lines().filter(|line| line.contains("list complete"));
        let lists: Vec<_> = lists.map(|line| field(line, "ms")).collect::<Result<_>>()?;
        let longest = lists.into_iter().max().context("there was no list")?;
        let traffic = bed.traffic();
        Ok(Self {
            wall,
            cpu,
            server_cpu,
            lists: Duration::from_millis(longest as u64),
            requests: traffic.0 - requests,
            bytes: traffic.1 - bytes,
            added: field(&line, "added")?,
            deleted: field(&line, "deleted")?,
            peak: Memory::of(daemon.id())?.peak,
            daemon,
        })
    }

    pub(super) fn stop(self) -> Result<()> {
        self.daemon.stop().map(drop)
    }

    /// Waits until it has settled: its memory, and the share of a CPU that it uses while nothing
    /// happens.
    pub(super) fn settle(&self, scale: Scale) -> Result<(Memory, f64)> {
        let id = self.daemon.id();
        sleep(scale.pick(Duration::from_millis(200), Duration::from_secs(5)));
        let memory = Memory::of(id)?;
        let cpu_before = cpu_time(id)?;
        let start = Instant::now();
        sleep(scale.pick(Duration::from_millis(200), Duration::from_secs(3)));
        let idle = cpu_time(id)?.saturating_sub(cpu_before);
        Ok((memory, idle.as_secs_f64() / start.elapsed().as_secs_f64()))
    }
}

/// Waits for the line that says that the rules for IPv4 are there, and returns it.
pub(super) fn first_sync(daemon: &Daemon, start: Instant) -> Result<String> {
    while start.elapsed() < DEADLINE {
        let log = daemon.log();
        let mut lines = log.lines();
        if let Some(line) = lines.find(|line| line.contains("ipFamily=\"IPv4\" full=true")) {
            return Ok(line.to_owned());
        }
        // Short beside what is measured.
        sleep(Duration::from_millis(1));
    }
    bail!("there are no rules yet; the log is\n{}", daemon.log())
}

/// The number in a field of a log line.
pub(super) fn field(line: &str, name: &str) -> Result<usize> {
    let prefix = format!("{name}=");
    let value = line.split(' ').find_map(|word| word.strip_prefix(&prefix));
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("finding {name} in {line:?}"))
}
