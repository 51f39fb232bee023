//! `nftproxy trace`: what becomes of real packets, beside what is explained of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nftproxy_core::apply::netlink::{Flow, FlowStep, FlowTrace};
use nftproxy_core::host;
use nftproxy_core::inspect::{Explanation, OfFamily, Query, explain, rule_texts};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::Table;
use nftproxy_core::ruleset::name::ChainName;
use nftproxy_core::trace::{Outcome, Packet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::args::{ObservedFlags, TraceArgs};
use super::ends::{Ends, ends};
use super::inputs::{self, Addresses, Cluster, Progress};
use super::paint::{self, Paint};
use crate::config::Settings;

/// A packet of which nothing has been heard for so long has gone its way.
const QUIET: Duration = Duration::from_millis(200);

/// Follows packets until there were enough of them, the time is over, or somebody interrupts.
pub(crate) fn run(args: &TraceArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    progress.tell("reading what is desired");
    let cluster = inputs::cluster(&args.desired, settings, Addresses::OfThisHost)?;
    let local = host::addresses().context("asking for this host's addresses")?;
    let ends = ends(&args.from, &args.to, true, Some(&cluster), &local)?;
    // A client outside may have any address, and this node has several.
    let source = match args.from.as_str() {
        "outside" | "node" => None,
        _ => Some(ends.from),
    };
    drop(progress);
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("blocking signals")?;
    let signals = SignalFd::new(&signals).context("waiting for signals")?;
    match IpFamily::of(ends.to) {
        IpFamily::V4 => Watch::<V4>::start(args, &cluster, local, source, &ends)?.run(&signals),
        IpFamily::V6 => Watch::<V6>::start(args, &cluster, local, source, &ends)?.run(&signals),
    }
}

struct Watch<'a, F: OfFamily> {
    args: &'a TraceArgs,
    cluster: &'a Cluster,
    local: Vec<IpAddr>,
    protocol: u8,
    trace: FlowTrace,
    listing: Listing,
    texts: BTreeMap<(ChainName, usize), String>,
    numbers: BTreeMap<(String, String, u64), usize>,
    packets: Vec<Seen>,
    paint: Paint,
    n_shown: usize,
    /// Whether a packet went another way than it should.
    is_bad: bool,
    family: std::marker::PhantomData<F>,
}

/// A packet, as far as it has come.
struct Seen {
    number: u32,
    steps: Vec<FlowStep>,
    last: Instant,
}

impl<'a, F: OfFamily> Watch<'a, F> {
    fn start(
        args: &'a TraceArgs,
        cluster: &'a Cluster,
        local: Vec<IpAddr>,
        source: Option<IpAddr>,
        ends: &Ends,
    ) -> anyhow::Result<Self> {
        let flow = Flow {
            source,
            destination: ends.to,
            protocol: ends.protocol,
            port: ends.port,
        };
        let trace = FlowTrace::start(&flow).context("starting to trace")?;
        let mut watch = Self {
            args,
            cluster,
            local,
            protocol: ends.protocol.number(),
            trace,
            listing: Listing::default(),
            texts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            packets: Vec::new(),
            paint: Paint::of_stdout(),
            n_shown: 0,
            is_bad: false,
            family: std::marker::PhantomData,
        };
        watch.list()?;
        let head = format!(
            "following new connections {} → {}/{}; Ctrl-C ends it",
            args.from,
            SocketAddr::new(flow.destination, flow.port),
            ends.protocol.nft_name()
        );
        paint::print(&format!("{}\n", watch.paint.strong(&head)))?;
        Ok(watch)
    }

    /// Reads the rules, whose handles are known by then.
    fn list(&mut self) -> anyhow::Result<()> {
        self.numbers = self.trace.rule_numbers().context("listing rules")?;
        self.listing = inputs::listing(&ObservedFlags { ruleset: None }, &[F::FAMILY])?;
        self.texts = F::of(&self.listing)
            .map(|table| rule_texts(&table.ruleset))
            .unwrap_or_default();
        Ok(())
    }

    fn run(mut self, signals: &SignalFd) -> anyhow::Result<ExitCode> {
        let end = Instant::now() + Duration::from_secs(self.args.timeout);
        let mut is_lost = false;
        loop {
            let mut descriptors = [
                PollFd::new(self.trace.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let is_interrupted = match poll(&mut descriptors, PollTimeout::from(50u8)) {
                Ok(_) => descriptors[1].any().unwrap_or_default(),
                Err(nix::errno::Errno::EINTR) => false,
                Err(errno) => bail!("waiting for packets: {errno}"),
            };
            let steps = self
                .trace
                .read(&mut is_lost)
                .context("hearing of packets")?;
            for step in steps {
                self.take(step);
            }
            let is_over = is_interrupted || Instant::now() >= end;
            while let Some(at) = self
                .packets
                .iter()
                .position(|packet| is_over || packet.last.elapsed() >= QUIET)
            {
                let packet = self.packets.remove(at);
                self.show(&packet)?;
                if self.args.count != 0 && self.n_shown >= self.args.count {
                    return Ok(self.exit_code());
                }
            }
            if is_lost {
                tracing::warn!("there were more packets than could be told of");
                is_lost = false;
            }
            if is_over {
                if self.n_shown == 0 {
                    bail!("no packet of this flow was seen");
                }
                return Ok(self.exit_code());
            }
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(self.is_bad))
    }

    fn take(&mut self, step: FlowStep) {
        let last = Instant::now();
        match self
            .packets
            .iter_mut()
            .find(|packet| packet.number == step.packet)
        {
            Some(packet) => {
                packet.last = last;
                packet.steps.push(step);
            }
            None => self.packets.push(Seen {
                number: step.packet,
                steps: vec![step],
                last,
            }),
        }
    }

    fn show(&mut self, packet: &Seen) -> anyhow::Result<()> {
        let ends: Vec<_> = packet.steps.iter().filter_map(|step| step.ends).collect();
        let (Some((from, to)), Some((_, last))) = (ends.first(), ends.last()) else {
            return Ok(());
        };
        let is_unknown = |step: &&FlowStep| {
            let rule = step.rule?;
            let key = (step.table.clone(), step.chain.clone(), rule);
            (is_ours(step) && !self.numbers.contains_key(&key)).then_some(())
        };
        if packet.steps.iter().any(|step| is_unknown(&step).is_some()) {
            // The rules have changed since they were read.
            self.list()?;
        }
        let arrival = packet.steps.iter().find_map(|step| step.input_interface);
        if self.args.from == "node" && arrival.is_some() {
            return Ok(());
        }
        let explanation = self.explain(*from, *to, arrival)?;
        let service_port = explanation.as_ref().and_then(|it| it.service_port.clone());
        let service_port = service_port.map(|name| format!(" ({name})"));
        let mut out = String::new();
        let head = format!("{from} → {to}{}", service_port.unwrap_or_default());
        let _ = writeln!(out, "{}", self.paint.strong(&head));
        for step in &packet.steps {
            let _ = writeln!(out, "  {}", self.step_text(step));
        }
        let came = came(packet, *to, *last);
        let _ = writeln!(out, "  {}", self.verdict(&came, explanation.as_ref()));
        self.n_shown += 1;
        paint::print(&out)
    }

    fn step_text(&self, step: &FlowStep) -> String {
        let FlowStep {
            table,
            chain,
            rule,
            verdict,
            family,
            ..
        } = step;
        let key = rule.map(|rule| (table.clone(), chain.clone(), rule));
        let number = key.and_then(|key| self.numbers.get(&key));
        let place = match (rule, number) {
            (None, _) => "end".to_owned(),
            (Some(_), Some(number)) => format!("rule {}", number + 1),
            (Some(handle), None) => format!("rule with handle {handle}"),
        };
        if !is_ours(step) {
            let family = family.map_or("inet", |family| family.nft_name());
            return format!("table {family} {table}, {chain} {place} → {verdict}");
        }
        let text = ChainName::parse(chain).zip(number);
        let text = text.and_then(|(chain, number)| self.texts.get(&(chain, *number)));
        match text {
            Some(text) => format!("{chain} {place}: {text} → {verdict}"),
            None => format!("{chain} {place} → {verdict}"),
        }
    }

    fn explain(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        arrival: Option<u32>,
    ) -> anyhow::Result<Option<Explanation<F>>> {
        let Some((source, destination)) = F::address(from.ip()).zip(F::address(to.ip())) else {
            return Ok(None);
        };
        let query = Query::<F> {
            packet: Packet {
                source,
                destination,
                protocol: self.protocol,
                destination_port: to.port(),
                input_interface: arrival.map(interface_name),
                mark: 0,
            },
            local: self.local.clone(),
        };
        let node_of = |ip| self.cluster.places.get(&ip).cloned();
        let desired = Some(self.cluster.desired());
        explain::<F>(desired, Some(&self.listing), &query, &node_of)
            .context("the rules cannot be followed")
            .map(Some)
    }

    /// What became of a packet, and whether that is what is explained.
    fn verdict(&mut self, came: &Came, explanation: Option<&Explanation<F>>) -> String {
        let place = |ip: IpAddr| match self.cluster.places.get(&ip) {
            Some(node) => format!(" on {node}"),
            None => String::new(),
        };
        let what = match came {
            Came::To(at) => format!("came to {at}{}", place(at.ip())),
            Came::Through => "went on as it was".into(),
            Came::Refused => "was refused".into(),
            Came::Dropped(by) => format!("was dropped by {by}"),
        };
        let Some(explanation) = explanation else {
            return what;
        };
        let fits = |outcome: &Outcome<F>| match (came, outcome) {
            (Came::To(at), Outcome::Endpoint { endpoint, .. }) => {
                *at == SocketAddr::new(endpoint.address.into(), endpoint.port.get())
            }
            (Came::Through, Outcome::Pass { .. }) => true,
            (Came::Refused, Outcome::Refuse { .. }) => true,
            (Came::Dropped(by), Outcome::Drop) => by == OURS,
            _ => false,
        };
        let way = explanation.ways.iter().find(|way| fits(&way.outcome));
        let text = match way {
            Some(way) => self.paint.good(&format!(
                "{what}, as explained ({} of such connections)",
                way.share
            )),
            None => {
                self.is_bad = true;
                let ways = explanation.ways.iter();
                let ways: Vec<_> = ways.map(|way| way.outcome.to_string()).collect();
                self.paint
                    .bad(&format!("{what}, but explained is: {}", ways.join(", ")))
            }
        };
        match &explanation.desired {
            None => text,
            Some(ways) => {
                self.is_bad = true;
                let ways: Vec<_> = ways.iter().map(|way| way.outcome.to_string()).collect();
                format!("{text}; the cluster asks for: {}", ways.join(", "))
            }
        }
    }
}

/// Our table, as messages call it.
const OURS: &str = "nftproxy";

/// Where a packet came to.
enum Came {
    To(SocketAddr),
    Through,
    Refused,
    /// By a table.
    Dropped(String),
}

fn came(packet: &Seen, to: SocketAddr, last: SocketAddr) -> Came {
    let dropped = packet.steps.iter().find(|step| step.verdict == "drop");
    match dropped {
        Some(step) if is_ours(step) && step.chain == ChainName::Refuse.to_string() => Came::Refused,
        Some(step) if is_ours(step) => Came::Dropped(OURS.into()),
        Some(step) => Came::Dropped(format!("table {}, chain {}", step.table, step.chain)),
        None if last != to => Came::To(last),
        None => Came::Through,
    }
}

fn is_ours(step: &FlowStep) -> bool {
    step.family.is_some() && step.table == Table::default().name()
}

fn interface_name(number: u32) -> String {
    let all = nix::net::if_::if_nameindex();
    let name = all.ok().and_then(|all| {
        let it = all.iter().find(|interface| interface.index() == number)?;
        Some(it.name().to_string_lossy().into_owned())
    });
    name.unwrap_or_else(|| format!("(number {number})"))
}
