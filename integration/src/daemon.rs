//! The real `nftproxy` binary, as a child process in a namespace.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::traffic::patience;

/// Where the binary is. It is built first if it is missing or older than its sources; cargo knows.
///
/// # Errors
///
/// Fails if it cannot be built.
pub fn binary() -> Result<PathBuf> {
    Ok(built()?.join("nftproxy"))
}

/// The folder that built programs are in, with the binary, and in tests the library's examples in
/// `examples/`.
///
/// # Errors
///
/// Fails if they cannot be built.
pub(crate) fn built() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// Says where the built programs are, where there is no cargo to ask.
const BUILT: &str = "NFTPROXY_BUILT";

fn build() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(BUILT) {
        return Ok(folder.into());
    }
    // This program lies in `target/PROFILE/deps` or `target/PROFILE`.
    let this = std::env::current_exe().context("looking for this program")?;
    let profile = this
        .ancestors()
        .find(|folder| folder.join(".cargo-lock").exists() || folder.join("deps").is_dir())
        .context("this program is not in a cargo target folder")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Build scripts see these, and would run again for each change of the package that runs us.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo.args(["build", "--quiet"]);
    // With other features than those of `cargo test --workspace`, all dependencies would be built
    // once more.
    if this.parent().is_some_and(|folder| folder.ends_with("deps")) {
        cargo.args(["--workspace", "--bins", "--tests", "--examples"]);
    } else {
        cargo.args(["--package", "nftproxy-bin"]);
    }
    cargo.arg("--target-dir");
    cargo.arg(profile.parent().context("a profile has a folder above")?);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let status = cargo.status().context("running cargo to build nftproxy")?;
    anyhow::ensure!(status.success(), "cargo could not build nftproxy");
    Ok(profile.to_owned())
}

/// What `nftproxy` printed, run to its end.
#[derive(Debug)]
pub struct Output {
    /// How it ended; none if by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `nftproxy` with these arguments inside a namespace, to its end.
///
/// # Errors
///
/// Fails if it cannot be built or started.
pub fn run(namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    let output = namespace.run(|| command.output());
    output.context("running nftproxy").map(Output::from)
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running nftproxy; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// Starts `nftproxy` with these arguments inside a namespace.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be built or started.
    pub fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null());
        let mut child = namespace.spawn(command)?;
        let stderr = child.stderr.take().context("standard error is a pipe")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(mut lines) = lines.lock() {
                    lines.push(line);
                }
            }
        });
        Ok(Self { child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .map(|lines| lines.join("\n"))
            .unwrap_or_default()
    }

    /// Waits until it has logged a line with this text.
    ///
    /// # Errors
    ///
    /// Fails with the log if that takes longer than ten seconds, or the process ends before.
    pub fn wait_for_log(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + 10 * patience();
        while Instant::now() < deadline {
            if self.log().contains(text) {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // The reader may be a moment behind the end of the process.
        thread::sleep(Duration::from_millis(50));
        if self.log().contains(text) {
            return Ok(());
        }
        bail!("nftproxy never logged {text:?}; its log is\n{}", self.log())
    }

    /// Asks it to stop, and returns its exit code.
    ///
    /// # Errors
    ///
    /// Fails if it does not stop within five seconds.
    pub fn stop(mut self) -> Result<Option<i32>> {
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )?;
        self.wait()
    }

    /// Waits until it ends by itself, and returns its exit code.
    ///
    /// # Errors
    ///
    /// Fails if it is still running after five seconds.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("nftproxy is still running; its log is\n{}", self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
