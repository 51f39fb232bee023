//! The program under test: started, killed, held up, and what it takes of the machine.
//!
//! Entry point: [`Process`].

use std::fs;

use anyhow::{Context as _, Result, ensure};
use integration::daemon::Daemon;
use integration::netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::expected::{NODE_NAME, NODE_PORT_ADDRESSES, PODS};

/// What a process takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Resident memory, in KiB.
    pub(crate) memory: usize,
    /// Open files, without sockets that listen: there is one for each health-check node port.
    pub(crate) n_files: usize,
}

/// How much more a process may take after a while than it took at its first pause. Nearly all of
/// the memory is what few or many Services and their changes need, which the allocator keeps.
const MORE_MEMORY: usize = 32 * 1024;
/// Each kind of object takes a connection or two, and so may whoever asks for metrics.
const MOST_FILES: usize = 64;

/// A running `nftproxy`.
pub(crate) struct Process {
    daemon: Daemon,
    first: Option<Usage>,
    is_held: bool,
    has_synced: bool,
}

impl Process {
    /// Starts it for the API server at this address, without waiting for anything.
    pub(crate) fn start(host: &Namespace, url: &str) -> Result<Self> {
        let arguments = [
            "run",
            "--master",
            url,
            "--hostname-override",
            NODE_NAME,
            "--cluster-cidr",
            PODS,
            "--nodeport-addresses",
            NODE_PORT_ADDRESSES,
        ];
        Ok(Self {
            daemon: Daemon::start(host, &arguments)?,
            first: None,
            is_held: false,
            has_synced: false,
        })
    }

    /// Kills it.
    pub(crate) fn kill(self) {
        drop(self.daemon);
    }

    /// Asks it to end, and sees that it does in good order, unless it had hardly begun.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.go_on()?;
        let has_begun = self.is_at_work();
        let code = self.daemon.stop()?;
        ensure!(
            code == Some(0) || !has_begun,
            "nftproxy ended with {code:?} when asked to end"
        );
        Ok(())
    }

    /// Whether it keeps the tables as they should be, for all it knows.
    pub(crate) fn is_at_work(&mut self) -> bool {
        self.has_synced = self.has_synced || {
            let log = self.daemon.log();
            let mut families = ["IPv4", "IPv6"].iter();
            families.all(|family| log.contains(&format!("ipFamily=\"{family}\" full=true")))
        };
        self.has_synced && !self.is_held
    }

    /// Whether it does not run for the time being.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Gives it no time until it may go on.
    pub(crate) fn hold(&mut self) -> Result<()> {
        self.is_held = true;
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it run again.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.is_held = false;
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.daemon.id().cast_signed()), signal)?)
    }

    /// The end of its log.
    pub(crate) fn last_lines(&self) -> String {
        let log = self.daemon.log();
        // The server keeps no Events, which is said of each.
        let lines = log
            .lines()
            .filter(|line| !line.contains("an Event cannot be written"));
        let lines: Vec<_> = lines.collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What it takes, once it is at rest.
    ///
    /// # Errors
    ///
    /// Fails if it has ended, or takes much more than at the first call.
    pub(crate) fn usage(&mut self) -> Result<Usage> {
        let id = self.daemon.id();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let usage = Usage {
            memory: memory.context("nftproxy has ended by itself")?,
            n_files: fs::read_dir(format!("/proc/{id}/fd"))?
                .count()
                .saturating_sub(listeners(id)?),
        };
        let first = *self.first.get_or_insert(usage);
        ensure!(
            usage.memory <= first.memory + MORE_MEMORY,
            "memory has grown from {} to {} KiB",
            first.memory,
            usage.memory
        );
        ensure!(
            usage.n_files <= MOST_FILES,
            "{} files are open",
            usage.n_files
        );
        Ok(usage)
    }
}

/// TCP sockets that listen in the process's network namespace.
fn listeners(id: u32) -> Result<usize> {
    /// The fourth field of such a line, after number, local and remote address.
    const LISTEN: &str = "0A";
    let mut n = 0;
    for file in ["tcp", "tcp6"] {
        let sockets = fs::read_to_string(format!("/proc/{id}/net/{file}"))?;
        let states = sockets.lines().map(|line| line.split_whitespace().nth(3));
        n += states.filter(|state| *state == Some(LISTEN)).count();
    }
    Ok(n)
}
