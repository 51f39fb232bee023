//! One virtual machine: boots a kernel, and reports what the suites in it say.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How the processor is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// By the processor itself.
    Kvm,
    /// By software, some ten times slower.
    Emulation,
}

/// What became of a suite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Its name.
    pub(crate) name: String,
    /// How many of its tests passed.
    pub(crate) passed: usize,
    /// The names of those that failed.
    pub(crate) failed: Vec<String>,
    /// How many were left out.
    pub(crate) ignored: usize,
    /// What its tests said that this kernel cannot do.
    pub(crate) lacks: Vec<String>,
    /// How it ended; `None` if it did not.
    pub(crate) exit_code: Option<i32>,
    /// How long it took.
    pub(crate) duration: Duration,
}

/// What became of a machine.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What the kernel calls itself.
    pub(crate) release: String,
    /// The suites that were begun, in order.
    pub(crate) suites: Vec<Suite>,
    /// Why it ended early.
    pub(crate) problem: Option<String>,
}

/// How long a machine may take to come up. With a processor that works it is two seconds.
const BOOT_TIME_KVM: Duration = Duration::from_secs(20);
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long nothing may be heard from a suite.
const SILENCE: Duration = Duration::from_secs(600);

struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Boots, runs all suites, and returns what they said; `None` if it did not come up in time.
///
/// # Errors
///
/// If the emulator cannot be started.
pub(crate) fn run(
    image: &Path,
    archive: &Path,
    accelerator: Accelerator,
    folder: &Path,
) -> Result<Option<Outcome>> {
    let running = start(image, archive, accelerator, folder)?;
    let log = folder.join("suites.log");
    let mut log = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let mut outcome = Outcome::default();
    let boot_time = match accelerator {
        Accelerator::Kvm => BOOT_TIME_KVM,
        Accelerator::Emulation => BOOT_TIME,
    };
    let mut deadline = Instant::now() + boot_time;
    let mut begun = Instant::now();
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let line = match running.lines.recv_timeout(rest) {
            Ok(line) => line,
            Err(_) if outcome.release.is_empty() => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                outcome.problem = Some("nothing was heard of it any more".into());
                return Ok(Some(outcome));
            }
            Err(RecvTimeoutError::Disconnected) => {
                outcome.problem = Some("it ended before its suites".into());
                return Ok(Some(outcome));
            }
        };
        writeln!(log, "{line}").context("writing the log")?;
        deadline = Instant::now() + SILENCE;
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("@ready"), Some(release), _) => outcome.release = release.to_owned(),
            (Some("@begin"), Some(name), _) => {
                begun = Instant::now();
                outcome.suites.push(Suite {
                    name: name.to_owned(),
                    ..Suite::default()
                });
            }
            (Some("@end"), Some(_), Some(code)) => {
                if let Some(suite) = outcome.suites.last_mut() {
                    suite.exit_code = code.parse().ok();
                    suite.duration = begun.elapsed();
                }
            }
            (Some("@done"), ..) => return Ok(Some(outcome)),
            _ => {
                if let Some(suite) = outcome.suites.last_mut() {
                    suite.take(&line);
                }
            }
        }
    }
}

impl Suite {
    /// Takes a line of what the test harness prints.
    pub(crate) fn take(&mut self, line: &str) {
        if let Some((_, what)) = line.split_once(" in part: ") {
            if !self.lacks.iter().any(|known| known == what) {
                self.lacks.push(what.to_owned());
            }
        } else if let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|line| line.rsplit_once(" ... "))
        {
            match result.trim() {
                "ok" => self.passed += 1,
                "FAILED" => self.failed.push(name.to_owned()),
                result if result.starts_with("ignored") => self.ignored += 1,
                _ => {}
            }
        }
    }

    /// Whether all its tests passed, of which there were some.
    pub(crate) fn is_fine(&self) -> bool {
        self.exit_code == Some(0) && self.failed.is_empty() && self.passed > 0
    }
}

fn start(image: &Path, archive: &Path, accelerator: Accelerator, folder: &Path) -> Result<Running> {
    let accel = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Emulation => "tcg,thread=multi,tb-size=256",
    };
    let console = folder.join("console.log");
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-machine", "pc", "-accel", accel])
        .args(["-cpu", "max", "-smp", "2", "-m", "3072"])
        .args([
            "-append",
            "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on",
        ])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(archive)
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let Some(output) = child.stdout.take() else {
        bail!("its output is a pipe");
    };
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(Running { child, lines })
}
