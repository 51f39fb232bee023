//! What needs a machine of its own, as it changes what the kernel has loaded and can load: run by
//! `make kernels` only.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs};

use integration::daemon::{Daemon, binary};
use integration::lab::PODS;
use integration::manifest::{Conditions, Endpoint, Folder, service, slices};
use integration::netns::{Namespace, unsupported};
use integration::traffic::{Protocol, Server};

/// The machine, for one test at a time; `None` if it is somebody's.
fn machine() -> Option<MutexGuard<'static, ()>> {
    static MACHINE: Mutex<()> = Mutex::new(());
    if env::var_os("NFTPROXY_VM").is_none() {
        unsupported("only `make kernels` runs this, in a machine of its own");
        return None;
    }
    Some(MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
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
    let Some(_machine) = machine() else { return };
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
    daemon.wait_for_log("ipFamily=\"IPv6\" full=true").unwrap();
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

/// Every module that the rules need, by what is missing without it.
const MODULES: [(&str, &str); 8] = [
    ("nft_chain_nat", "chains of type nat"),
    ("nft_ct", "ct expressions"),
    ("nft_fib_ipv4", "fib expressions for IPv4"),
    ("nft_masq", "masquerade statements"),
    ("nft_nat", "dnat statements"),
    ("nft_numgen", "numgen expressions"),
    ("nft_reject_ipv4", "reject statements for IPv4"),
    ("nf_tables", "tables"),
];

/// The file of a module; `None` if it is built in.
fn file(module: &str) -> Option<PathBuf> {
    let output = Command::new("modprobe")
        .args(["--show-depends", module])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let path = text.lines().last()?.strip_prefix("insmod ")?.trim();
    Some(path.into())
}

/// Takes a module out of the kernel, with those that need it.
fn unload(module: &str) {
    // A namespace that is gone may hold its tables for a moment.
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_loaded(module) {
        assert!(Instant::now() < deadline, "{module} stays in use");
        let modules = fs::read_to_string("/proc/modules").unwrap();
        let mut in_the_way = vec![module];
        // Whoever needs one of them goes before it.
        let mut at = 0;
        while let Some(needed) = in_the_way.get(at) {
            let line = modules
                .lines()
                .find(|line| line.split(' ').next() == Some(needed));
            let users = line.and_then(|line| line.split(' ').nth(3));
            let users = users.unwrap_or_default().split(',');
            in_the_way.extend(users.filter(|user| !user.is_empty() && *user != "-"));
            at += 1;
        }
        let _ = Command::new("rmmod").args(in_the_way.iter().rev()).output();
    }
}

/// The code and the output of `nftproxy` with these arguments.
fn nftproxy(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary().unwrap()).args(arguments).output();
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// `nftproxy check` and `nftproxy run` fail, and their words have this.
#[track_caller]
fn assert_both_say(wanted: &[&str]) {
    let manifests = Folder::new().unwrap();
    let manifests = manifests.path().to_str().unwrap();
    for (arguments, fails) in [
        (["check"].as_slice(), 2),
        (&["run", "--manifests", manifests], 1),
    ] {
        let (code, text) = nftproxy(arguments);
        assert_eq!(code, Some(fails), "{text}");
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted} is missing from {text}");
        }
    }
}

fn depmod() {
    assert!(Command::new("depmod").status().unwrap().success());
}

/// A file that is not where it should be; it is back when this is dropped.
struct Hidden {
    path: PathBuf,
}

impl Hidden {
    const ELSEWHERE: &str = "/root/hidden";

    fn new(path: &Path) -> Self {
        fs::rename(path, Self::ELSEWHERE).unwrap();
        let path = path.to_owned();
        Self { path }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::rename(Self::ELSEWHERE, &self.path).unwrap();
    }
}

/// A part that is not there is named, with what to do, and told apart from one that could be.
#[test]
fn a_missing_module_is_named() {
    let Some(_machine) = machine() else { return };
    if file("nf_tables").is_none() {
        return unsupported("this kernel has nf_tables built in");
    }
    let (code, text) = nftproxy(&["check", "--allow-warnings"]);
    assert_eq!(code, Some(0), "{text}");
    for (module, part) in MODULES {
        let Some(path) = file(module) else {
            println!("{module} is built in");
            continue;
        };
        unload(module);
        let _hidden = Hidden::new(&path);
        assert_both_say(&[
            &format!("the kernel has no {part}"),
            &format!("module {module} does not exist: its file"),
            "is gone",
        ]);
    }
    // One that was never installed.
    let Some(path) = file("nft_numgen") else {
        return;
    };
    let hidden = Hidden::new(&path);
    depmod();
    assert_both_say(&[
        "module nft_numgen does not exist for kernel ",
        "install the package with the rest of this kernel's modules",
    ]);
    drop(hidden);
    depmod();
}

/// One family's part that is missing costs that family only, unless it is wanted.
#[test]
fn a_family_goes_without_the_other() {
    let Some(_machine) = machine() else { return };
    let Some(path) = file("nft_fib_ipv6") else {
        return unsupported("this kernel has nft_fib_ipv6 built in");
    };
    unload("nft_fib_ipv6");
    let _hidden = Hidden::new(&path);
    let missing = "no table ip6 nftproxy: the kernel has no fib expressions for IPv6, as module \
                   nft_fib_ipv6 does not exist: its file";
    let (code, text) = nftproxy(&["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(missing), "{text}");
    let (code, text) = nftproxy(&["check", "--cluster-cidr=10.0.0.0/8,fd00::/48"]);
    assert_eq!(code, Some(2), "{text}");

    let namespace = Namespace::new("node").unwrap();
    let manifests = Folder::new().unwrap();
    manifests.put("web", &[service("web", 1)]).unwrap();
    let folder = manifests.path().to_str().unwrap();
    let mut daemon = Daemon::start(&namespace, &["run", "--manifests", folder]).unwrap();
    daemon
        .wait_for_log("SyncProxyRules complete\" ipFamily=\"IPv4\"")
        .unwrap();
    assert!(daemon.log().contains(missing), "{}", daemon.log());
    daemon.stop().unwrap();
    assert_eq!(
        namespace.exec(&["nft", "list", "tables"]).unwrap(),
        "table ip nftproxy\n"
    );
}

/// O-148: looking for what mode ipvs has left loads none of its modules.
#[test]
fn looking_for_leftovers_loads_no_module() {
    let Some(_machine) = machine() else { return };
    let modules = ["ip_vs", "ip_set", "dummy"];
    modules.iter().for_each(|module| unload(module));
    let namespace = Namespace::new("node").unwrap();
    let output = namespace.run(|| {
        let mut command = Command::new(binary().unwrap());
        command.arg("cleanup").output().unwrap()
    });
    assert!(output.status.success(), "{output:?}");
    for module in modules {
        assert!(!is_loaded(module), "{module}");
    }
}

/// O-81: sysctls of connection tracking that is not loaded yet are set, as the rules load it first.
#[test]
fn sysctls_of_a_module_that_is_not_loaded_are_set() {
    let Some(_machine) = machine() else { return };
    if file("nf_conntrack").is_none() {
        return unsupported("this kernel has nf_conntrack built in");
    }
    unload("nf_conntrack");
    let namespace = Namespace::new("node").unwrap();
    let manifests = Folder::new().unwrap();
    let arguments = [
        "run",
        "--manifests",
        manifests.path().to_str().unwrap(),
        "--conntrack-tcp-timeout-established=1h1m1s",
    ];
    let mut daemon = Daemon::start(&namespace, &arguments).unwrap();
    let set =
        "Set sysctl\" entry=\"net/netfilter/nf_conntrack_tcp_timeout_established\" value=3661";
    daemon.wait_for_log(set).unwrap();
    daemon.wait_for_log("SyncProxyRules complete").unwrap();
    daemon.stop().unwrap();
    let sysctl = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    assert_eq!(namespace.exec(&["cat", sysctl]).unwrap().trim(), "3661");
    assert!(is_loaded("nf_conntrack"));
}

/// A module that exists and is not to be had is told with the reason.
#[test]
fn a_module_that_cannot_be_loaded_is_told_why() {
    const MODPROBE: &str = "/proc/sys/kernel/modprobe";
    let Some(_machine) = machine() else { return };
    if file("nft_numgen").is_none() {
        return unsupported("this kernel has nft_numgen built in");
    }
    unload("nft_numgen");
    let usual = fs::read_to_string(MODPROBE).unwrap();
    let usual = usual.trim();
    let cannot = "exists and cannot be loaded: ";
    fs::write(MODPROBE, "/nowhere/modprobe").unwrap();
    assert_both_say(&[
        cannot,
        "the kernel calls /nowhere/modprobe, which is not there",
    ]);
    fs::write(MODPROBE, "\n").unwrap();
    assert_both_say(&[cannot, "kernel.modprobe is empty"]);
    fs::write(MODPROBE, usual).unwrap();

    fs::create_dir_all("/etc/modprobe.d").unwrap();
    let file = Path::new("/etc/modprobe.d/hardening.conf");
    fs::write(file, "blacklist nft-numgen\n").unwrap();
    assert_both_say(&[
        "module nft_numgen exists and cannot be loaded: ",
        "`blacklist nft-numgen` in /etc/modprobe.d/hardening.conf forbids it; remove that line",
    ]);
    fs::remove_file(file).unwrap();
    assert_eq!(nftproxy(&["check", "--allow-warnings"]).0, Some(0));
}

/// Without the module that hands out connections the proxy runs, and says what will not work.
#[test]
fn connection_tracking_that_cannot_be_asked_is_warned_of() {
    let Some(_machine) = machine() else { return };
    let Some(path) = file("nf_conntrack_netlink") else {
        return unsupported("this kernel has nf_conntrack_netlink built in");
    };
    unload("nf_conntrack_netlink");
    let _hidden = Hidden::new(&path);
    let (code, text) = nftproxy(&["check"]);
    assert_eq!(code, Some(1), "{text}");
    let missing = "connection tracking cannot be asked, as module nf_conntrack_netlink does not \
                   exist: its file";
    assert!(text.contains(missing), "{text}");
}
