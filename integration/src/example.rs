//! An example of the library, as a child process in a namespace that is talked to by lines.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::daemon::built;
use crate::netns::Namespace;

/// How long it may take to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running example; killed when dropped.
#[derive(Debug)]
pub struct Example {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts an example of `nftproxy-core` with these arguments inside a namespace. What it prints
    /// on standard error is shown.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be built or started.
    pub fn start(namespace: &Namespace, name: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(built()?.join("examples").join(name));
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = namespace.spawn(command)?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            lines,
        })
    }

    /// The next line that it prints.
    ///
    /// # Errors
    ///
    /// Fails if it takes too long for that, or has ended.
    pub fn line(&self) -> Result<String> {
        self.lines
            .recv_timeout(PATIENCE)
            .with_context(|| format!("example {} prints nothing", self.name))
    }

    /// Waits for this line, whatever it prints before.
    ///
    /// # Errors
    ///
    /// Fails if it takes too long for that, or ends before.
    pub fn wait_for(&self, wanted: &str) -> Result<()> {
        while self
            .line()
            .with_context(|| format!("waiting for {wanted:?}"))?
            != wanted
        {}
        Ok(())
    }

    /// Gives it a line on standard input.
    ///
    /// # Errors
    ///
    /// Fails if it has ended.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("standard input is open")?;
        writeln!(stdin, "{line}").with_context(|| format!("example {} reads nothing", self.name))
    }

    /// Closes its standard input, waits until it has ended well, and returns what is left of what
    /// it printed.
    ///
    /// # Errors
    ///
    /// Fails if it does not end well.
    pub fn finish(mut self) -> Result<Vec<String>> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("example {}: {status}", self.name);
        }
        Ok(self.lines.iter().collect())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
