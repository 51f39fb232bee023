//! What needs a machine of its own, as it changes what the kernel has loaded: run by `make kernels`
//! only.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use integration::daemon::Daemon;
use integration::lab::PODS;
use integration::manifest::{Conditions, Endpoint, Folder, service, slices};
use integration::netns::{Namespace, unsupported};
use integration::traffic::{Protocol, Server};

/// Whether this is such a machine, and not somebody's.
fn is_expendable() -> bool {
    let is_expendable = env::var_os("NFTPROXY_VM").is_some();
    if !is_expendable {
        unsupported("only `make kernels` runs this, in a machine of its own");
    }
    is_expendable
}

fn is_loaded(module: &str) -> bool {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    modules
        .lines()
        .any(|line| line.split(' ').next() == Some(module))
}

/// S-150: Services with SCTP ports do not make the kernel load the SCTP module, which some hosts
/// forbid for good reasons.
#[test]
fn sctp_is_never_loaded() {
    if !is_expendable() {
        return;
    }
    let can_be_loaded = Command::new("modprobe")
        .args(["--dry-run", "sctp"])
        .output();
    if !can_be_loaded.unwrap().status.success() {
        return unsupported("this kernel has no sctp");
    }
    // Other tests may have used it.
    if is_loaded("sctp") {
        let unloaded = Command::new("modprobe").args(["--remove", "sctp"]).status();
        assert!(unloaded.unwrap().success());
    }
    let namespace = Namespace::new("node").unwrap();
    let manifests = Folder::new().unwrap();
    let endpoint = Endpoint {
        address: PODS[0],
        node: Some("node"),
        conditions: Conditions::READY,
        for_zone: None,
        for_node: None,
    };
    let mut web = service("web", 1);
    web["spec"]["sessionAffinity"] = "ClientIP".into();
    let [v4, v6] = slices("web", &[endpoint]);
    manifests.put("web", &[web, v4, v6]).unwrap();
    let folder = manifests.path().to_str().unwrap().to_owned();
    let arguments = [
        "run",
        "--manifests",
        &folder,
        "--hostname-override=node",
        "-v=4",
    ];
    let mut daemon = Daemon::start(&namespace, &arguments).unwrap();
    daemon.wait_for_log("family=IPv6 full=true").unwrap();
    manifests.remove("web").unwrap();
    daemon.wait_for_log("full=false").unwrap();
    daemon.stop().unwrap();
    let listed = namespace.exec(&["nft", "list", "ruleset"]).unwrap();
    assert!(listed.contains("sctp"), "{listed}");
    assert!(!is_loaded("sctp"));

    // A socket does what the rules did not.
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    drop(Server::start(&namespace, "any", Protocol::Sctp, anywhere).unwrap());
    assert!(is_loaded("sctp"));
}
