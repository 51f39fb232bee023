//! `nftproxy list --watch`: what changes in the kernel, as Services. Entry point: [`Watch`].

use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::fd::AsFd;

use anyhow::{Context, ensure};
use nftproxy_core::apply::netlink::Monitor;
use nftproxy_core::inspect::{OfFamily, ServiceChange, ServiceFilter, changes, services_of};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::{FamilyRuleset, Table};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::{ListArgs, ObservedFlags, Origin, OutputFormat};
use super::diff::document_change;
use super::inputs;
use super::paint::{self, Paint};

/// Changes that come closer to each other than so many milliseconds are shown as one.
const QUIET: u16 = 100;

/// A kernel's rules, and whoever tells of changes.
pub(super) struct Watch {
    monitor: Monitor,
    pub(super) listing: Listing,
}

impl Watch {
    /// Starts to listen, and lists after that, so that nothing is missed.
    pub(super) fn start(args: &ListArgs) -> anyhow::Result<Self> {
        ensure!(
            args.origin() == Origin::Kernel,
            "--watch follows the kernel: add --from kernel"
        );
        let monitor = Monitor::open(&Table::default(), None).context("listening for changes")?;
        Ok(Self {
            monitor,
            listing: list(args)?,
        })
    }

    /// Prints what changes, as long as somebody reads it.
    pub(super) fn follow(mut self, args: &ListArgs, filter: &ServiceFilter) -> anyhow::Result<()> {
        loop {
            self.wait(PollTimeout::NONE)?;
            while self.wait(PollTimeout::from(QUIET))? {}
            let listing = list(args)?;
            let mut all = Vec::new();
            let families = args.output.family.families();
            if families.contains(&IpFamily::V4) {
                all.extend(shown::<V4>(&self.listing, &listing, filter));
            }
            if families.contains(&IpFamily::V6) {
                all.extend(shown::<V6>(&self.listing, &listing, filter));
            }
            self.listing = listing;
            let mut out = String::new();
            for change in &all {
                match args.output.output {
                    OutputFormat::Text => text(&mut out, change, Paint::of_stdout()),
                    OutputFormat::Json => {
                        let line = serde_json::to_string(&document_change(change))?;
                        let _ = writeln!(out, "{line}");
                    }
                }
            }
            if !paint::is_printed(&out)? {
                return Ok(());
            }
        }
    }

    /// Waits until something has changed, and forgets what: returns whether anything has.
    fn wait(&mut self, timeout: PollTimeout) -> anyhow::Result<bool> {
        let mut descriptors = [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => anyhow::bail!("waiting for changes: {errno}"),
        }
        let incidents = self.monitor.read().context("hearing of changes")?;
        Ok(!incidents.is_empty())
    }
}

fn list(args: &ListArgs) -> anyhow::Result<Listing> {
    let this_kernel = ObservedFlags { ruleset: None };
    inputs::listing(&this_kernel, args.output.family.families())
}

/// The changes of Services that the filter shows, before or after.
fn shown<F: OfFamily>(
    before: &Listing,
    after: &Listing,
    filter: &ServiceFilter,
) -> Vec<ServiceChange> {
    let nothing = FamilyRuleset::<F>::empty();
    let [before, after] =
        [before, after].map(|listing| F::of(listing).map_or(&nothing, |table| &table.ruleset));
    let rows = services_of(before).into_iter().chain(services_of(after));
    let names: BTreeSet<_> = rows
        .filter(|row| filter.shows(row))
        .map(|row| row.service_port)
        .collect();
    let mut changes = changes(before, after);
    changes.retain(|change| names.contains(&change.service_port));
    changes
}

fn text(out: &mut String, change: &ServiceChange, paint: Paint) {
    let head = format!("{} ({})", change.service_port, change.family);
    let _ = writeln!(out, "{}", paint.strong(&head));
    for line in &change.removed {
        let _ = writeln!(out, "  {}", paint.bad(&format!("- {line}")));
    }
    for line in &change.added {
        let _ = writeln!(out, "  {}", paint.good(&format!("+ {line}")));
    }
}
