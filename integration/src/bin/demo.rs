//! The main job, for a person to watch: `make demo`.
//!
//! It makes a node, a client and three endpoints out of network namespaces, runs the real binary on
//! a folder of manifests, sends real connections, changes the manifests, and cleans up. Nothing
//! outside these namespaces is touched.

#![allow(clippy::print_stdout, reason = "it is made to be read")]

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::daemon::Daemon;
use integration::lab::{CLIENT, Lab, NODE, PODS};
use integration::netns::Namespace;
use integration::traffic::{Counts, Flow, ProbeOptions, Protocol, Server, probe, probe_many};

const N_CONNECTIONS: usize = 90;
const ENDPOINT_PORT: u16 = 8080;
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the manifests promise: each destination in both families.
const DESTINATIONS: [(&str, [&str; 2]); 3] = [
    ("ClusterIP", ["10.96.0.80:80", "[fd00:10:96::80]:80"]),
    ("NodePort", ["192.0.2.10:30080", "[2001:db8:1::10]:30080"]),
    ("LoadBalancer", ["203.0.113.80:80", "[2001:db8:113::80]:80"]),
];

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let manifests = tempfile::tempdir().context("making a folder for the manifests")?;
    let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/demo"));

    step("A network of namespaces: a node, a client outside, three endpoints on the node");
    let lab = Lab::new().context("building the namespaces; this needs root")?;
    println!("    client {} {}", CLIENT.v4, CLIENT.v6);
    println!("    node   {} {}", NODE.v4, NODE.v6);
    let mut servers = Vec::new();
    for (number, (namespace, address)) in lab.pods.iter().zip(PODS).enumerate() {
        let name = format!("pod{}", number + 1);
        println!(
            "    {name}   {} {}  listens on {ENDPOINT_PORT}",
            address.v4, address.v6
        );
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, ENDPOINT_PORT));
        servers.push(Server::start(namespace, &name, Protocol::Tcp, any)?);
    }

    step("nftproxy on the node, on a folder with a Service and its EndpointSlices");
    for file in ["web-service.yaml", "web-endpoints.yaml"] {
        fs::copy(source.join(file), manifests.path().join(file))
            .with_context(|| format!("copying {file}"))?;
        println!("    {file}");
    }
    println!(
        "    $ nftproxy run --manifests FOLDER --hostname-override node --cluster-cidr 10.244.0.0/16,fd00:10:244::/48"
    );
    let mut daemon = start(&lab.node, manifests.path())?;
    daemon.wait_for_log("ipFamily=\"IPv6\" full=true")?;

    step("What it put into the kernel for this Service (nft list map ip nftproxy services)");
    println!(
        "{}",
        indented(
            &lab.node
                .exec(&["nft", "list", "map", "ip", "nftproxy", "services"])?
        )
    );
    println!(
        "{}",
        indented(
            &lab.node
                .exec(&["nft", "list", "map", "ip", "nftproxy", "endpoints"])?
        )
    );

    step(&format!(
        "{N_CONNECTIONS} connections from the client to each address, and who answered"
    ));
    for counts in connect_to_all(&lab.client)? {
        expect_only(&counts, &["pod1", "pod2", "pod3"])?;
    }
    step("The same from an endpoint, which may reach itself");
    for counts in connect_to_all(&lab.pods[0])? {
        expect_only(&counts, &["pod1", "pod2", "pod3"])?;
    }

    step("A connection that stays open, while pod3 is taken out of the manifests");
    let mut flow = Flow::open(&lab.client, DESTINATIONS[0].1[0].parse()?)?;
    println!("    the open connection is with {}", flow.ping()?);
    let endpoints = manifests.path().join("web-endpoints.yaml");
    let all = fs::read_to_string(&endpoints)?;
    fs::write(&endpoints, without_last_endpoints(&all))?;
    let last = last_met(&lab.client, "pod3")?;
    println!(
        "    pod3 was met for the last time {} ms after the file was written",
        last.as_millis()
    );
    for counts in connect_to_all(&lab.client)? {
        expect_only(&counts, &["pod1", "pod2"])?;
    }
    println!("    the open connection is still with {}", flow.ping()?);

    step("All endpoints gone: the client is refused at once, rather than left waiting");
    fs::remove_file(&endpoints)?;
    wait_for(&lab.client, &["refused"])?;
    for counts in connect_to_all(&lab.client)? {
        expect_only(&counts, &["refused"])?;
    }

    step("And back again");
    fs::write(&endpoints, all)?;
    wait_for(&lab.client, &["pod1", "pod2", "pod3"])?;
    for counts in connect_to_all(&lab.client)? {
        expect_only(&counts, &["pod1", "pod2", "pod3"])?;
    }

    step("What nftproxy said meanwhile");
    println!("{}", indented(&daemon.log()));
    daemon.stop()?;
    step("Done. The namespaces go with this process; nothing else was touched.");
    Ok(())
}

fn start(node: &Namespace, manifests: &Path) -> Result<Daemon> {
    let folder = manifests.to_str().context("the folder's path is UTF-8")?;
    Daemon::start(
        node,
        &[
            "run",
            "--manifests",
            folder,
            "--hostname-override",
            "node",
            "--cluster-cidr",
            "10.244.0.0/16,fd00:10:244::/48",
        ],
    )
}

/// Connects to every destination, and prints and returns who answered how often.
fn connect_to_all(from: &Namespace) -> Result<Vec<Counts>> {
    let mut all = Vec::new();
    for (kind, addresses) in DESTINATIONS {
        for address in addresses {
            let counts = probe_many(from, Protocol::Tcp, address.parse()?, N_CONNECTIONS);
            let summary: Vec<_> = counts
                .iter()
                .map(|(who, n)| format!("{who} {n:>2}"))
                .collect();
            println!("    {kind:<13} {address:<24} {}", summary.join("   "));
            all.push(counts);
        }
    }
    Ok(all)
}

/// Everybody who should answer does, and nobody else.
fn expect_only(counts: &Counts, wanted: &[&str]) -> Result<()> {
    let found: Vec<_> = counts.keys().map(String::as_str).collect();
    ensure!(
        found == wanted,
        "expected answers of {wanted:?}, got {counts:?}"
    );
    Ok(())
}

/// Connects one time after the other until an endpoint has not been met for so many connections that
/// it cannot be chance, and returns when it was met for the last time.
fn last_met(from: &Namespace, endpoint: &str) -> Result<Duration> {
    const ENOUGH: usize = 50;
    let start = Instant::now();
    let to = DESTINATIONS[0].1[0].parse()?;
    let (mut last, mut n_others) = (Duration::ZERO, 0);
    while n_others < ENOUGH {
        let outcome = probe(from, Protocol::Tcp, to, ProbeOptions::default());
        let now = start.elapsed();
        ensure!(now < PATIENCE, "{endpoint} is still met");
        n_others += 1;
        if outcome.to_string() == endpoint {
            (last, n_others) = (now, 0);
        }
    }
    Ok(last)
}

/// Waits until new connections meet just these.
fn wait_for(from: &Namespace, wanted: &[&str]) -> Result<()> {
    let start = Instant::now();
    loop {
        let counts = probe_many(
            from,
            Protocol::Tcp,
            DESTINATIONS[0].1[0].parse()?,
            N_CONNECTIONS,
        );
        match expect_only(&counts, wanted) {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The manifest without the last endpoint of each slice.
fn without_last_endpoints(manifest: &str) -> String {
    let keep = |address: &str| {
        !["10.244.1.13", "fd00:10:244:1::13"]
            .iter()
            .any(|gone| address.contains(gone))
    };
    let mut lines = Vec::new();
    let mut is_kept = true;
    for line in manifest.lines() {
        if line.contains("- addresses:") {
            is_kept = keep(line);
        } else if !line.starts_with("    nodeName:") {
            is_kept = true;
        }
        if is_kept {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

fn step(title: &str) {
    println!("\n==> {title}");
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
