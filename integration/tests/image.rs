//! The root file system that `deploy/Dockerfile` makes, by hand: the program runs in it, read-only and
//! with the one capability that the manifest gives it.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Resource};
use integration::daemon::binary;
use integration::fixtures::{NODE_NAME, read};
use integration::netns::{Namespace, in_sandbox, unsupported};
use nix::unistd::geteuid;

/// `CAP_NET_ADMIN` alone, as the kernel prints sets of capabilities.
const NET_ADMIN: &str = "0000000000001000";
/// A user that is nobody else.
const USER: u32 = 65532;

fn recipe() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile");
    fs::read_to_string(file).unwrap()
}

/// The libraries of a program, and its loader.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// The packages that the recipe installs have the libraries that the program needs beside libc's, and
/// the programs that it calls.
#[test]
fn the_recipe_installs_what_the_program_needs() {
    let recipe = recipe();
    let run_time = recipe.split("\nFROM debian:").nth(1).unwrap();
    for program in ["iptables", "ipset", "ipvsadm", "iproute2", "nftables"] {
        assert!(run_time.contains(&format!(" {program}")), "{program}");
    }
    for library in libraries(&binary().unwrap()) {
        let name = library.file_name().unwrap().to_str().unwrap().to_owned();
        let is_of_libc = ["ld-", "libc.", "libm.", "libgcc_s."]
            .iter()
            .any(|start| name.starts_with(start));
        // Debian's package of libmnl.so.0 is libmnl0.
        let package = name.replace(".so.", "");
        assert!(
            is_of_libc || run_time.contains(&format!(" {package}")),
            "{name}"
        );
    }
}

/// A root file system, mounted read-only where the program runs.
struct Image {
    root: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let image = Self { root };
        let setpriv = Path::new("/usr/bin/setpriv");
        let program = binary().unwrap();
        image.copy(&program, "usr/local/bin/nftproxy");
        image.copy(setpriv, "usr/bin/setpriv");
        for library in libraries(&program).union(&libraries(setpriv)) {
            image.copy(
                library,
                library.strip_prefix("/").unwrap().to_str().unwrap(),
            );
        }
        symlink("nftproxy", image.path("usr/local/bin/kube-proxy")).unwrap();
        for folder in ["proc", "sys", "tmp", "var/lib/kube-proxy"] {
            fs::create_dir_all(image.path(folder)).unwrap();
        }
        image
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn copy(&self, source: &Path, target: &str) {
        let target = self.path(target);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(source, target).unwrap();
    }

    /// Runs the manifest's command with the configuration in place, as a container would.
    fn run(&self, namespace: &Namespace, privileges: &[&str]) -> Child {
        let root = self.root.path().display();
        let script = format!(
            "set -e; mount --make-rprivate /; mount --bind {root} {root}; \
             mount -t proc -o ro proc {root}/proc; mount -t sysfs -o ro sys {root}/sys; \
             mount -o remount,bind,ro {root}; exec chroot {root} \"$@\""
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh", "/usr/bin/setpriv"])
            .args([
                "--no-new-privs",
                "--clear-groups",
                "--inh-caps=-all,+net_admin",
            ])
            .args(privileges)
            .args([
                "--bounding-set=-all,+net_admin",
                "/usr/local/bin/kube-proxy",
                "--config=/var/lib/kube-proxy/config.conf",
            ])
            .arg(format!("--hostname-override={NODE_NAME}"))
            .arg("-v=2")
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.path("tmp/log")).unwrap());
        namespace.spawn(command).unwrap()
    }
}

/// O-162: what the manifest gives is enough, for root with one capability, and for another user that
/// has it as an ambient one; nothing is written, and what it may not set is said.
#[test]
fn the_program_runs_in_the_image_with_one_capability() {
    in_sandbox(|| {
        if !geteuid().is_root() {
            return unsupported("mounting takes root");
        }
        let user = format!("--reuid={USER}");
        for (privileges, uid) in [
            (&["--reuid=0"][..], 0),
            (&[user.as_str(), "--ambient-caps=-all,+net_admin"], USER),
        ] {
            let image = Image::new();
            let namespace = Namespace::new("image").unwrap();
            let server = namespace.run(|| ApiServer::start().unwrap());
            server
                .load_list(Resource::Nodes, &read("nodes.json"))
                .unwrap();
            let folder = image.path("var/lib/kube-proxy");
            fs::write(folder.join("kubeconfig.conf"), server.kubeconfig()).unwrap();
            let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
                          kind: KubeProxyConfiguration\nmode: nftables\n\
                          clusterCIDR: 10.244.0.0/16\nclientConnection:\n\
                          \x20 kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n";
            fs::write(folder.join("config.conf"), config).unwrap();
            let mut child = image.run(&namespace, privileges);
            let log = || fs::read_to_string(image.path("tmp/log")).unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while !log().contains("\"SyncProxyRules complete\" ipFamily=\"IPv6\"") {
                assert!(child.try_wait().unwrap().is_none(), "it ended: {}", log());
                assert!(Instant::now() < deadline, "{}", log());
                std::thread::sleep(Duration::from_millis(20));
            }
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
            };
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                assert_eq!(field(set), NET_ADMIN, "{set} of user {uid}");
            }
            assert_eq!(field("Uid:"), uid.to_string());
            assert_eq!(field("NoNewPrivs:"), "1");
            let tables = namespace.exec(&["nft", "list", "tables"]).unwrap();
            assert!(tables.contains("table ip nftproxy") && tables.contains("table ip6 nftproxy"));
            // Sysctls are the init container's.
            assert!(log().contains("left to whoever may"), "{}", log());
            for level in ["E", "panicked"] {
                let mut lines = log()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
                    .into_iter();
                let found = lines.find(|line| line.starts_with(level));
                assert_eq!(found, None, "user {uid}: {}", log());
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    });
}
