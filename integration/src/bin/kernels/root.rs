//! The file system that a machine boots into: the suites, the product, and the few programs they
//! call, with the libraries of this system.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::list::{Kernel, run};

/// What the tests, the product or the kernel itself call.
const PROGRAMS: [&str; 26] = [
    "busybox",
    "cat",
    "conntrack",
    "depmod",
    "ip",
    "ip6tables-legacy-restore",
    "ip6tables-legacy-save",
    "ip6tables-nft",
    "ip6tables-nft-restore",
    "ip6tables-nft-save",
    "ip6tables-legacy",
    "ipset",
    "iptables-legacy",
    "iptables-legacy-restore",
    "iptables-legacy-save",
    "iptables-nft",
    "iptables-nft-restore",
    "iptables-nft-save",
    "ipvsadm",
    "modprobe",
    "nft",
    "rmmod",
    "setarch",
    "setpriv",
    "sh",
    "unshare",
];

/// Modules that may be asked for, below `/lib/modules/RELEASE/kernel`.
const MODULES: [&str; 6] = [
    "arch",
    "crypto",
    "drivers/net/dummy.ko",
    "drivers/net/veth.ko",
    "lib",
    "net",
];

/// What has been built to be run in the machines.
#[derive(Debug)]
pub(crate) struct Built {
    /// The suites: name and program.
    pub(crate) suites: Vec<(String, PathBuf)>,
    /// `target/PROFILE`, with `nftproxy` and `examples`.
    pub(crate) folder: PathBuf,
    /// What else the suites read at run time, under the same path.
    pub(crate) data: Vec<PathBuf>,
}

/// Makes the archive for a kernel in a folder, and returns its path.
///
/// # Errors
///
/// If a program is missing here, or something cannot be copied.
pub(crate) fn make(
    kernel: &Kernel,
    built: &Built,
    settings: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
    // As here, so that every path is as good as here.
    for folder in ["bin", "sbin", "lib", "lib64"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(folder)) {
            fs::create_dir_all(root.join(&target)).context("making a folder")?;
            link(&target, &root.join(folder))?;
        }
    }
    for path in [
        "dev",
        "proc",
        "sys",
        "tmp",
        "root",
        "etc",
        "built/deps",
        "built/examples",
    ] {
        let path = root.join(path);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    write_program(&root.join("init"), include_str!("init.sh"))?;
    fs::write(root.join("settings"), settings).context("writing the settings")?;

    let mut programs: Vec<PathBuf> = PROGRAMS
        .iter()
        .map(|program| find_program(program))
        .collect::<Result<_>>()?;
    for program in &programs {
        copy(program, &root.join(program.strip_prefix("/")?))?;
    }
    for (name, program) in &built.suites {
        strip(program, &root.join("built/deps").join(name))?;
        programs.push(program.clone());
    }
    strip(&built.folder.join("nftproxy"), &root.join("built/nftproxy"))?;
    programs.push(built.folder.join("nftproxy"));
    for example in ["cni", "dry_run", "filter", "own_loop", "two_instances"] {
        let program = built.folder.join("examples").join(example);
        strip(&program, &root.join("built/examples").join(example))?;
    }
    for library in libraries(&programs)? {
        copy(&library, &root.join(library.strip_prefix("/")?))?;
    }
    // For connections to an API server.
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if certificates.exists() {
        copy(certificates, &root.join(certificates.strip_prefix("/")?))?;
    }
    // What iptables loads for each match and target.
    let extensions = Path::new("/usr/lib")
        .join(format!("{}-linux-gnu", env::consts::ARCH))
        .join("xtables");
    copy_all(&extensions, &root.join(extensions.strip_prefix("/")?))?;
    for data in &built.data {
        copy_all(data, &root.join(data.strip_prefix("/")?))?;
    }
    if let Some(modules) = &kernel.modules {
        copy_modules(modules, &root)?;
    }
    pack(&root, &folder.join("root.cpio"))
}

fn find_program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed; `make kernels` installs it"))
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("making it a program")
}

fn prepare(target: &Path) -> Result<()> {
    let folder = target.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Copies a file; links are followed.
fn copy(source: &Path, target: &Path) -> Result<()> {
    prepare(target)?;
    fs::copy(source, target)
        .map(drop)
        .with_context(|| format!("copying {} to {}", source.display(), target.display()))
}

fn link(to: &Path, link: &Path) -> Result<()> {
    prepare(link)?;
    if link.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(to, link).with_context(|| format!("linking {}", link.display()))
}

/// Copies a program without what only debuggers need.
fn strip(source: &Path, target: &Path) -> Result<()> {
    run(Command::new("strip").arg("-o").args([target, source])).map(drop)
}

fn copy_all(source: &Path, target: &Path) -> Result<()> {
    if source.is_file() {
        return copy(source, target);
    }
    let entries = fs::read_dir(source).with_context(|| format!("listing {}", source.display()))?;
    for entry in entries {
        let entry = entry.context("listing")?;
        copy_all(&entry.path(), &target.join(entry.file_name()))?;
    }
    Ok(())
}

/// The shared libraries that programs need, their loader included.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let output = Command::new("ldd")
            .arg(program)
            .output()
            .context("running ldd")?;
        // A static program has none, which `ldd` takes for a failure.
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            !text.contains("not found"),
            "a library of {} is missing:\n{text}",
            program.display()
        );
        let paths = text
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from);
        libraries.extend(paths);
    }
    Ok(libraries)
}

fn copy_modules(modules: &Path, root: &Path) -> Result<()> {
    let release = modules.file_name().context("modules lie in a folder")?;
    let target = root.join("lib/modules").join(release);
    for part in MODULES {
        let mut found = Vec::from(["", ".xz", ".zst", ".gz"]);
        found.retain(|suffix| {
            modules
                .join("kernel")
                .join(format!("{part}{suffix}"))
                .exists()
        });
        for suffix in found {
            let part = format!("kernel/{part}{suffix}");
            copy_all(&modules.join(&part), &target.join(&part))?;
        }
    }
    for file in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if modules.join(file).exists() {
            copy(&modules.join(file), &target.join(file))?;
        }
    }
    run(Command::new(find_program("depmod")?)
        .arg("--basedir")
        .arg(root)
        .arg(release))
    .map(drop)
}

/// Packs the folder as the kernel wants it.
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let file = fs::File::create(archive).context("making the archive")?;
    let mut list = Command::new("find")
        .args([".", "-print0"])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("running find")?;
    let names = list.stdout.take().context("its output is a pipe")?;
    let status = Command::new("cpio")
        .args([
            "--null",
            "--create",
            "--format=newc",
            "--owner=0:0",
            "--quiet",
        ])
        .current_dir(root)
        .stdin(names)
        .stdout(file)
        .status()
        .context("running cpio")?;
    ensure!(list.wait()?.success() && status.success(), "cpio: {status}");
    Ok(archive.to_owned())
}
