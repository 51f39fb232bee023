//! Network namespaces without names: each is held by an open file and is gone with it.
//!
//! Nothing here touches the namespace of the calling thread, and nothing here knows what a
//! namespace is used for; that is [`lab`](crate::lab).
//! Read [`Namespace`] first. Tests wrap themselves in [`in_sandbox`], which makes them work for
//! ordinary users too.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::process::{self, Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

/// A network namespace that lives as long as this value, or as the sockets, interfaces and
/// processes still in it.
#[derive(Debug)]
pub struct Namespace {
    label: String,
    handle: File,
}

impl Namespace {
    /// Creates an empty namespace whose loopback interface is up. The label only shows up in error
    /// messages.
    ///
    /// # Errors
    ///
    /// Fails without `CAP_SYS_ADMIN` in the current user namespace, and without `ip`.
    pub fn new(label: &str) -> Result<Self> {
        // Unsharing moves only the thread that calls it, so a short-lived one does.
        let handle = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace")?;
            let path = "/proc/thread-self/ns/net";
            File::open(path).with_context(|| format!("open {path}"))
        })
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))
        .with_context(|| format!("create network namespace {label}"))?;
        let namespace = Self {
            label: label.to_owned(),
            handle,
        };
        namespace.exec(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name this namespace was given.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path other processes of this user can open while `self` lives, as in
    /// `ip link add … netns PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.handle.as_raw_fd())
    }

    /// Runs `work` on a fresh thread inside the namespace and waits for it.
    ///
    /// Sockets made by `work` stay in the namespace wherever they are used later, and processes
    /// started by it inherit the namespace. Threads started by it do as well.
    ///
    /// # Panics
    ///
    /// Panics when `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.handle, CloneFlags::CLONE_NEWNET)
                        .expect("a process may enter a namespace it created");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a program inside, waits for it and returns what it printed on standard output.
    ///
    /// # Errors
    ///
    /// Fails when the program does not start or does not succeed; the error holds the command and
    /// its standard error.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.exec_with_input(command, "")
    }

    /// Like [`exec`](Self::exec), with `input` as the program's standard input.
    ///
    /// # Errors
    ///
    /// As [`exec`](Self::exec).
    pub fn exec_with_input(&self, command: &[&str], input: &str) -> Result<String> {
        let shown = format!("`{}` in namespace {}", command.join(" "), self.label);
        let (program, arguments) = command.split_first().context("run an empty command")?;
        // A file, unlike a pipe, cannot block on a program that writes before it has read.
        let stdin = input_file(input).with_context(|| format!("store the input of {shown}"))?;
        let output = self
            .run(|| {
                Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::from(stdin))
                    .output()
            })
            .with_context(|| format!("run {shown}"))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{shown}: {}: {}", output.status, stderr.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("read the output of {shown}"))
    }

    /// Starts a program inside and leaves it running. Dropping the child does not end it.
    ///
    /// # Errors
    ///
    /// Fails when the program cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        self.run(|| command.spawn())
            .with_context(|| format!("start {command:?} in namespace {}", self.label))
    }

    /// Sets a kernel parameter below `net.`, as in `sysctl("net.ipv4.ip_forward", "1")`.
    ///
    /// # Errors
    ///
    /// Fails when the kernel does not know the key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // The rest of /proc/sys belongs to the host.
        if !key.starts_with("net.") {
            bail!("set sysctl {key}: not part of a network namespace");
        }
        // /proc/sys/net shows the namespace of the thread that opens the file.
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("set sysctl {key} to {value} in namespace {}", self.label))
    }
}

fn input_file(input: &str) -> std::io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Runs the body of the current test with the right to create namespaces.
///
/// Root has it. For anyone else the test binary runs this one test again as root of a fresh user
/// namespace; where that is not allowed the test is [skipped](skip).
///
/// # Panics
///
/// Panics when the test fails in there, and when called from a thread that is not a test's.
pub fn in_sandbox(body: impl FnOnce()) {
    if geteuid().is_root() {
        return body();
    }
    let thread = thread::current();
    let test = thread
        .name()
        .filter(|name| *name != "main")
        .expect("the test harness names each test's thread after the test");

    match unshare_command("true").output() {
        Err(error) => return skip(&format!("cannot run `unshare`: {error}")),
        Ok(trial) if !trial.status.success() => {
            let reason = String::from_utf8_lossy(&trial.stderr);
            return skip(&format!(
                "not root, and user namespaces fail: {}",
                reason.trim()
            ));
        }
        Ok(_) => {}
    }

    let binary = env::current_exe().expect("/proc is mounted");
    let output = unshare_command(&binary)
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .output()
        .expect("`unshare` has just been run");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // The harness also succeeds when no test has the name.
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(
        passed,
        "{test} failed in its user namespace\n{stdout}{stderr}"
    );
    tell(&stderr);
}

fn unshare_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(program);
    command
}

/// Says on standard error why the current test is skipped; the caller then returns.
///
/// # Panics
///
/// Panics where the environment variable `CI` is set, since a check that never runs is no check.
pub fn skip(reason: &str) {
    assert!(env::var_os("CI").is_none(), "CI must not skip: {reason}");
    let thread = thread::current();
    tell(&format!(
        "{} skipped: {reason}\n",
        thread.name().unwrap_or("test")
    ));
}

/// Says on standard error what of the current test this machine's kernel cannot do, even in CI.
pub fn unsupported(reason: &str) {
    let thread = thread::current();
    tell(&format!(
        "{} in part: {reason}\n",
        thread.name().unwrap_or("test")
    ));
}

/// Writes past the test harness, which hides what a passing test prints through the macros.
fn tell(text: &str) {
    // A closed standard error is no reason to fail a test.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
