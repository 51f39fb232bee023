//! The whole process, from its start to the kernel's consent, with an API server of ours beside it.
//!
//! What the server holds is made of a recorded Service and a recorded slice, so that objects are as
//! large as real ones.

use std::fs;
use std::net::Ipv4Addr;
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use integration::apiserver::{ApiServer, Resource};
use integration::daemon::{self, Daemon};
use integration::fixtures::{self, NODE_NAME};
use integration::netns::Namespace;
use serde_json::Value;

use super::decode::recorded;
use super::{Job, Scale};
use crate::cluster::{ENDPOINTS_PER_SLICE, NODES, Size};
use crate::measure::{Memory, cpu_time, mean, ms, spread};
use crate::table::Row;

const GROUP: &str = "daemon";
/// The recorded Service that all are copies of: a ClusterIP, one port, nothing special.
const TEMPLATE: &str = "frontend";
/// Within the recorded ServiceCIDR.
const CLUSTER_IPS: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 0);
const PODS: &str = "10.128.0.0/9";
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Longer than any start takes.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let sizes = [scale.medium(), scale.many_endpoints()];
    vec![Job {
        skipped_because: Some("as it needs a release build of nftproxy"),
        ..Job::new(GROUP.into(), move || {
            // Built before any time counts.
            daemon::binary()?;
            let rows = sizes.map(|size| rows(scale, size));
            Ok(rows.into_iter().collect::<Result<Vec<_>>>()?.concat())
        })
    }]
}

fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let node = Namespace::new("node")?;
    let server = node.run(ApiServer::start)?;
    fill(&server, size)?;
    let folder = tempfile::tempdir().context("making a folder for the kubeconfig")?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())
        .with_context(|| format!("writing {}", kubeconfig.display()))?;
    let arguments = format!(
        "run --kubeconfig {} --hostname-override {NODE_NAME} --cluster-cidr {PODS}",
        kubeconfig.display()
    );

    let runs = scale.few().repeat(|_| {
        let start = Run::new(scale, &node, &arguments)?;
        let restart = Run::new(scale, &node, &arguments)?;
        node.exec(&["nft", "flush", "ruleset"])?;
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

fn row(case: String, runs: &[Run]) -> Row {
    let average = |figure: fn(&Run) -> f64| mean(runs.iter().map(figure));
    Row::new(GROUP, "ms", case, spread(runs.iter().map(|run| run.wall)))
        .with("CPU ms", average(|run| ms(run.cpu)))
        .with("server's CPU ms", average(|run| ms(run.server_cpu)))
        .with("added", average(|run| run.added as f64))
        .with("peak MiB", average(|run| run.memory.peak))
        .with("steady MiB", average(|run| run.memory.now))
        .with("idle CPU %", average(|run| 100.0 * run.idle))
}

/// A ClusterIP and a verdict for each Service, all slots, and for each endpoint on this node one
/// for what it sends to itself.
fn n_elements(size: Size) -> usize {
    let n_endpoints = size.services * size.endpoints;
    let n_local = (0..n_endpoints)
        .filter(|id| node_name(*id) == NODE_NAME)
        .count();
    (2 * size.services + n_endpoints) as usize + n_local
}

/// What a process did, and what it took.
struct Run {
    /// From its start to the first rules.
    wall: Duration,
    /// What it used of the CPUs in that time.
    cpu: Duration,
    /// What this process, which is the API server, used of them.
    server_cpu: Duration,
    added: usize,
    deleted: usize,
    /// When it has settled.
    memory: Memory,
    /// The share of a CPU that it uses while nothing happens.
    idle: f64,
}

impl Run {
    fn new(scale: Scale, node: &Namespace, arguments: &str) -> Result<Self> {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let server_before = cpu_time(process::id())?;
        let start = Instant::now();
        let daemon = Daemon::start(node, &arguments)?;
        let line = first_sync(&daemon, start)?;
        let wall = start.elapsed();
        let cpu = cpu_time(daemon.id())?;
        let server_cpu = cpu_time(process::id())?.saturating_sub(server_before);

        sleep(scale.pick(Duration::from_millis(200), Duration::from_secs(5)));
        let memory = Memory::of(daemon.id())?;
        let cpu_before = cpu_time(daemon.id())?;
        let start = Instant::now();
        sleep(scale.pick(Duration::from_millis(200), Duration::from_secs(3)));
        let idle = cpu_time(daemon.id())?.saturating_sub(cpu_before);
        let idle = idle.as_secs_f64() / start.elapsed().as_secs_f64();
        daemon.stop()?;
        Ok(Self {
            wall,
            cpu,
            server_cpu,
            added: field(&line, "added")?,
            deleted: field(&line, "deleted")?,
            memory,
            idle,
        })
    }
}

/// Waits for the line that says that the rules for IPv4 are there, and returns it.
fn first_sync(daemon: &Daemon, start: Instant) -> Result<String> {
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
fn field(line: &str, name: &str) -> Result<usize> {
    let prefix = format!("{name}=");
    let value = line.split(' ').find_map(|word| word.strip_prefix(&prefix));
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("finding {name} in {line:?}"))
}

/// Gives the server all that it is to hold.
fn fill(server: &ApiServer, size: Size) -> Result<()> {
    for (resource, file) in [
        (Resource::Nodes, "nodes.json"),
        (Resource::ServiceCidrs, "servicecidrs.json"),
    ] {
        server.load_list(resource, &fixtures::read(file))?;
    }
    let service = template(Resource::Services, |service| {
        service["metadata"]["name"] == TEMPLATE
    })?;
    let slice = template(Resource::EndpointSlices, |slice| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] == TEMPLATE
    })?;
    for number in 0..size.services {
        let name = format!("{TEMPLATE}-{number}");
        server.upsert(service_of(&service, &name, number))?;
        let ids: Vec<_> = (number * size.endpoints..(number + 1) * size.endpoints).collect();
        for (part, ids) in ids.chunks(ENDPOINTS_PER_SLICE as usize).enumerate() {
            server.upsert(slice_of(&slice, &name, part, ids))?;
        }
    }
    Ok(())
}

/// The recorded object that copies are made of.
fn template(resource: Resource, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let objects = recorded(&format!("{}.json", resource.plural()))?;
    let object = objects.into_iter().find(|object| is_wanted(object));
    let mut object = object.with_context(|| format!("finding a recorded {}", resource.kind()))?;
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind().into();
    Ok(object)
}

fn service_of(template: &Value, name: &str, number: u32) -> Value {
    let mut service = template.clone();
    service["metadata"]["name"] = name.into();
    let cluster_ip = offset(CLUSTER_IPS, number);
    service["spec"]["clusterIPs"] = vec![cluster_ip.clone()].into();
    service["spec"]["clusterIP"] = cluster_ip.into();
    service
}

fn slice_of(template: &Value, service: &str, part: usize, ids: &[u32]) -> Value {
    let mut slice = template.clone();
    slice["metadata"]["name"] = format!("{service}-{part}").into();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = service.into();
    let endpoint = |id: &u32| {
        let mut endpoint = template["endpoints"][0].clone();
        endpoint["addresses"] = vec![offset(ENDPOINTS, *id)].into();
        endpoint["nodeName"] = node_name(*id).into();
        endpoint["targetRef"]["name"] = format!("{service}-{id}").into();
        endpoint
    };
    slice["endpoints"] = ids.iter().map(endpoint).collect();
    slice
}

fn node_name(id: u32) -> String {
    format!("node-{}", id % NODES)
}

fn offset(base: Ipv4Addr, by: u32) -> String {
    Ipv4Addr::from_bits(base.to_bits() + by).to_string()
}
