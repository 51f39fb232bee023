//! One soak: rounds of misfortune, each followed by a pause in which everything has to be right.
//!
//! Entry points: [`Soak::new`] and [`Soak::round`].

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use integration::daemon;
use integration::lab::{Lab, NODE};
use integration::traffic::Server;

use crate::api::Api;
use crate::expected::{Expected, NODE_NAME, NODE_PORT_ADDRESSES, PODS};
use crate::journal::Journal;
use crate::objects::{one_in, one_of};
use crate::probes::{Failure, Probes};
use crate::process::{Process, Usage};
use crate::windows::Windows;
use crate::{churn, damage, misfortune, stable};

/// Longer than anything takes that should happen by itself. Requests that were never answered are
/// given up after 70 s, and after failures the next try may be 24 s away.
const PATIENCE: Duration = Duration::from_secs(150);
/// The tables are to be whole again so soon after damage, with the process at work.
const REPAIR: Duration = Duration::from_secs(10);
/// An audit by the program itself, with each so many pauses.
const AUDIT_EVERY: usize = 8;
/// Addresses that come and go, by their last part.
const ADDRESSES: std::ops::Range<u8> = 40..48;

/// What is measured on the way.
#[derive(Default)]
pub(crate) struct Figures {
    /// How long tables were damaged, where the process was at work and had nothing else to wait for.
    pub(crate) repairs: Vec<Duration>,
    /// How long tables were damaged otherwise.
    pub(crate) outages: Vec<Duration>,
    /// Connections that failed while they were.
    pub(crate) n_excused: usize,
    /// What the process took at each pause.
    pub(crate) usages: Vec<Usage>,
    pub(crate) n_pauses: usize,
    pub(crate) n_audits: usize,
}

/// Everything there is.
pub(crate) struct Soak {
    pub(crate) journal: Journal,
    pub(crate) figures: Figures,
    pub(crate) probes: Probes,
    rng: Rng,
    api: Api,
    process: Option<Process>,
    addresses: Vec<IpAddr>,
    windows: Windows,
    /// Nothing has befallen the API server since the last pause.
    is_healthy: bool,
    // Dropped last: the network goes when nobody needs it.
    _servers: Vec<Server>,
    lab: Lab,
}

impl Soak {
    /// Sets the scene and waits until it is in step.
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let lab = Lab::new().context("building the namespaces; this needs root")?;
        // The other node has no proxy, so it leaves Services to the node.
        for (family, gateway) in ["-4", "-6"].into_iter().zip(NODE.both()) {
            let gateway = gateway.to_string();
            lab.node2
                .exec(&["ip", family, "route", "replace", "default", "via", &gateway])?;
        }
        let servers = stable::serve(&lab)?;
        let mut api = Api::start(&lab.node)?;
        churn::begin(&mut api)?;
        for object in stable::objects() {
            api.put(object)?;
        }
        let process = Process::start(&lab.node, &api.url())?;
        let mut windows = Windows::default();
        windows.open();
        let mut probe_rng = rng.fork();
        let mut soak = Self {
            journal: Journal::new(),
            figures: Figures::default(),
            probes: Probes::default(),
            rng,
            api,
            process: Some(process),
            addresses: Vec::new(),
            windows,
            is_healthy: true,
            _servers: servers,
            lab,
        };
        soak.wait_in_step(PATIENCE)?;
        soak.windows.close();
        soak.probes = Probes::start(&soak.lab, &mut probe_rng);
        Ok(soak)
    }

    /// The end of the process's log.
    pub(crate) fn log(&self) -> String {
        let process = self.process.as_ref();
        process.map_or("nftproxy is not running".to_owned(), Process::last_lines)
    }

    /// Some misfortunes, then a pause.
    pub(crate) fn round(&mut self) -> Result<()> {
        for _ in 0..self.rng.usize(1..16) {
            self.act()?;
            if self.rng.bool() {
                sleep(Duration::from_millis(self.rng.u64(..200)));
            }
        }
        self.pause()
    }

    fn act(&mut self) -> Result<()> {
        see_to(&mut self.process, &mut self.windows);
        match self.rng.u8(..100) {
            0..66 => churn::change(&mut self.api, &mut self.rng, &mut self.journal),
            66..78 => {
                self.is_healthy = false;
                let Self { api, lab, rng, .. } = self;
                misfortune::strike(api, &lab.node, rng, &mut self.journal)
            }
            78..84 => self.trouble_process(),
            84..94 => self.damage(),
            94..98 => self.change_address(),
            _ => {
                self.journal.note("others", "their table");
                let script = damage::others(&mut self.rng);
                self.nft(&script)
            }
        }
    }

    fn nft(&self, script: &str) -> Result<()> {
        let run = self.lab.node.exec_with_input(&["nft", "-f", "-"], script);
        run.map(drop)
    }

    /// Ends the process, starts it, or holds it up.
    fn trouble_process(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else {
            self.journal.note("process", "started");
            self.process = Some(Process::start(&self.lab.node, &self.api.url())?);
            return Ok(());
        };
        if process.is_held() {
            self.journal.note("process", "goes on");
            return process.go_on();
        }
        match self.rng.u8(..4) {
            0 | 1 => {
                self.journal.note("kill", "-9");
                if let Some(process) = self.process.take() {
                    process.kill();
                }
            }
            2 => {
                self.journal.note("kill", "-TERM");
                if let Some(process) = self.process.take() {
                    process.stop()?;
                }
            }
            _ => {
                self.journal.note("process", "held up");
                process.hold()?;
            }
        }
        Ok(())
    }

    /// Damages the tables, and mostly waits for the repair if there is one to be expected.
    fn damage(&mut self) -> Result<()> {
        let expected = Expected::of(&self.api, &self.addresses)?;
        let script = damage::script(&mut self.rng, &expected, self.api.port());
        // What is still on its way would be taken for damage.
        let is_whole = !self.windows.is_open()
            && self.is_undisturbed()
            && expected.wait(&self.lab, REPAIR, || ())?.is_empty();
        self.windows.open();
        let took = self.nft(&script);
        let refused = if took.is_err() { " (refused)" } else { "" };
        let first = script.lines().next().unwrap_or_default();
        self.journal
            .note("damage", format_args!("{first}{refused}"));
        if is_whole && !one_in(&mut self.rng, 3) {
            let start = Instant::now();
            let differences = expected.wait(&self.lab, REPAIR, || ())?;
            ensure!(
                differences.is_empty(),
                "not repaired after {:?}: {differences:#?}",
                start.elapsed()
            );
            if let Some(lasted) = self.windows.close() {
                self.figures.repairs.push(lasted);
            }
        }
        Ok(())
    }

    /// Whether the process has everything it needs to keep the tables in step.
    fn is_undisturbed(&self) -> bool {
        let is_running = self
            .process
            .as_ref()
            .is_some_and(|process| !process.is_held());
        is_running && self.is_healthy
    }

    fn change_address(&mut self) -> Result<()> {
        let number = self.rng.u8(ADDRESSES);
        let choices: [(IpAddr, u8); 2] = [
            ([192, 0, 2, number].into(), 24),
            (
                IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)]),
                64,
            ),
        ];
        let (address, length) = one_of(&mut self.rng, &choices);
        let prefix = format!("{address}/{length}");
        let known = self.addresses.iter().position(|known| *known == address);
        let verb = match known {
            Some(index) => {
                self.addresses.swap_remove(index);
                "del"
            }
            None => {
                self.addresses.push(address);
                "add"
            }
        };
        self.journal
            .note("address", format_args!("{verb} {prefix}"));
        let mut command = vec!["ip", "addr", verb, &prefix, "dev", "eth0"];
        if verb == "add" && address.is_ipv6() {
            // As the node's second address: not to be a source.
            command.extend(["nodad", "preferred_lft", "0"]);
        }
        self.lab.node.exec(&command).map(drop)
    }

    /// Ends all misfortune, and sees that everything is as it should be.
    fn pause(&mut self) -> Result<()> {
        misfortune::heal(&mut self.api, &self.lab.node, &mut self.rng)?;
        self.is_healthy = true;
        match &mut self.process {
            Some(process) => process.go_on()?,
            None => self.process = Some(Process::start(&self.lab.node, &self.api.url())?),
        }
        self.wait_in_step(PATIENCE)?;
        if let Some(lasted) = self.windows.close() {
            self.figures.outages.push(lasted);
        }
        self.figures.n_pauses += 1;
        self.judge_failures()?;
        if let Some(process) = &mut self.process {
            self.figures.usages.push(process.usage()?);
        }
        if self.figures.n_pauses.is_multiple_of(AUDIT_EVERY) {
            self.audit()?;
        }
        Ok(())
    }

    /// Waits until the kernel holds what follows from the objects.
    fn wait_in_step(&mut self, patience: Duration) -> Result<()> {
        let expected = Expected::of(&self.api, &self.addresses)?;
        let differences = {
            let Self {
                lab,
                process,
                windows,
                ..
            } = self;
            expected.wait(lab, patience, || see_to(process, windows))?
        };
        let n = differences.len();
        if n > 0 {
            let some = differences[..n.min(20)].join("\n");
            bail!("after {patience:?} the kernel differs from the objects in {n} points:\n{some}");
        }
        Ok(())
    }

    /// Sees that whatever failed had a reason to.
    fn judge_failures(&mut self) -> Result<()> {
        let failures = self.probes.take_failures();
        let (excused, others): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|failure| self.windows.excuse(failure.from, failure.to));
        self.figures.n_excused += excused.len();
        self.windows.forget();
        let now = Instant::now();
        let line = |failure: &Failure| {
            let ago = now - failure.from;
            let lasted = failure.to - failure.from;
            format!("{} ({ago:.3?} ago, took {lasted:.3?})\n", failure.what)
        };
        let lines: String = others.iter().take(20).map(line).collect();
        let n = others.len();
        ensure!(n == 0, "{n} connections failed without a reason:\n{lines}");
        Ok(())
    }

    /// Has the program itself compare kernel and API server.
    fn audit(&mut self) -> Result<()> {
        let url = self.api.url();
        let arguments = [
            "audit",
            "--master",
            &url,
            "--hostname-override",
            NODE_NAME,
            "--cluster-cidr",
            PODS,
            "--nodeport-addresses",
            NODE_PORT_ADDRESSES,
        ];
        let output = daemon::run(&self.lab.node, &arguments)?;
        self.figures.n_audits += 1;
        ensure!(
            output.code == Some(0),
            "nftproxy audit ended with {:?}:\n{}{}",
            output.code,
            output.out,
            output.err
        );
        Ok(())
    }
}

/// Notes whether the tables, if they are damaged, should be whole soon.
fn see_to(process: &mut Option<Process>, windows: &mut Windows) {
    if !process.as_mut().is_some_and(Process::is_at_work) {
        windows.prolong();
    }
}
