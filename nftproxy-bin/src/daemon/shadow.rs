//! A dry run: rules in memory, beside a kube-proxy whose rules count.
//!
//! [`Shadow`] is the kernel that the engine has then. Now and then what is in it is compared with
//! kube-proxy's rules, and what a takeover would change for traffic is logged. Entry points:
//! [`Shadow::default`] and [`compare_in_background`].

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::apply::{ApplyError, Committed, Kernel, Scope};
use nftproxy_core::diff::{Delta, Observed};
use nftproxy_core::inspect::{Difference, differences};
use nftproxy_core::model::Family;
use nftproxy_core::neighbour::Served;
use nftproxy_core::ruleset::element::Element;
use nftproxy_core::ruleset::{FamilyRuleset, Table};
use tracing::{info, warn};

use crate::leftovers::{self, KUBE_PROXY_TABLE};

/// How often kube-proxy's rules are looked at when ours do not change.
const PERIOD: Duration = Duration::from_secs(30);
/// How often it is looked whether ours have changed.
const TICK: Duration = Duration::from_secs(1);
/// What both proxies learn, they do not apply at the same moment. So a difference counts once it is
/// found twice, this long one after the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many differences are logged at once.
const SHOWN: usize = 50;

/// A kernel's table in memory, which others may look at.
pub(crate) struct Shadow<F: Family>(Arc<Mutex<FakeKernel<F>>>);

impl<F: Family> Default for Shadow<F> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<F: Family> Clone for Shadow<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Family> Shadow<F> {
    /// What a panic leaves behind is no worse than what it found.
    fn lock(&self) -> MutexGuard<'_, FakeKernel<F>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as it would be, once there is one.
    fn ruleset(&self) -> Option<FamilyRuleset<F>> {
        self.lock().ruleset()
    }
}

impl<F: Family> Kernel<F> for Shadow<F> {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        self.lock().list()
    }

    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        self.lock().list_part(scope)
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        self.lock().list_affinity()
    }

    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        self.lock().generation()
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        let mut kernel = self.lock();
        // Nobody asks for what was committed, and it must not grow.
        kernel.commits.clear();
        kernel.commit(delta)
    }
}

/// Compares a family's rules with kube-proxy's for ever, on a thread of its own.
pub(crate) fn compare_in_background<F: Family>(shadow: Shadow<F>) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(format!("shadow-{}", F::FAMILY.nft_name()));
    thread.spawn(move || {
        let (mut said, mut seen) = (None, None);
        loop {
            sleep(TICK);
            let now = (shadow.lock().generation, Instant::now());
            let is_due = seen.is_none_or(|(generation, at)| {
                generation != now.0 || now.1.duration_since(at) >= PERIOD
            });
            let Some(ours) = is_due.then(|| shadow.ruleset()).flatten() else {
                continue;
            };
            seen = Some(now);
            let found = compare(&shadow, &ours);
            if said.as_ref() != Some(&found) {
                say::<F>(&found);
                said = Some(found);
            }
        }
    })?;
    Ok(())
}

/// What a comparison came to.
#[derive(Debug, PartialEq)]
enum Found {
    /// There are rules of kube-proxy's, of this mode, with so many destinations.
    Differences(&'static str, usize, BTreeSet<Difference>),
    /// There is no kube-proxy in the family, or none that can be understood.
    Nobody,
    Failed(String),
}

fn compare<F: Family>(shadow: &Shadow<F>, ours: &FamilyRuleset<F>) -> Found {
    let look = |ours: &FamilyRuleset<F>| {
        anyhow::Ok(theirs::<F>()?.map(|(mode, theirs)| {
            let found: BTreeSet<_> = differences(&theirs, ours).into_iter().collect();
            (mode, theirs.destinations.len(), found)
        }))
    };
    let first = match look(ours) {
        Ok(Some(first)) => first,
        Ok(None) => return Found::Nobody,
        Err(error) => return Found::Failed(format!("{error:#}")),
    };
    if first.2.is_empty() {
        return Found::Differences(first.0, first.1, first.2);
    }
    sleep(PATIENCE);
    let again = shadow.ruleset();
    match look(again.as_ref().unwrap_or(ours)) {
        Ok(Some((mode, n, again))) => {
            Found::Differences(mode, n, again.intersection(&first.2).cloned().collect())
        }
        Ok(None) => Found::Nobody,
        Err(error) => Found::Failed(format!("{error:#}")),
    }
}

/// What is not looked at in a mode.
fn not_compared(mode: &str) -> &'static str {
    match mode {
        "nftables" => "hairpins, health-check node ports",
        _ => "masquerading, source ranges, session affinity, hairpins, health-check node ports",
    }
}

/// kube-proxy's mode, and what its rules do.
fn theirs<F: Family>() -> anyhow::Result<Option<(&'static str, Served<F>)>> {
    let mut netlink = Netlink::open()?;
    let table = Table::new(KUBE_PROXY_TABLE, 0)?;
    if let Some(served) = netlink.list_served::<F>(&table)? {
        return Ok(Some(("nftables", served)));
    }
    Ok(leftovers::served_by_iptables::<F>()?.map(|served| ("iptables", served)))
}

fn say<F: Family>(found: &Found) {
    let family = F::FAMILY;
    match found {
        Found::Differences(mode, n, differences) => {
            if differences.is_empty() {
                info!(
                    ipFamily = %family, mode, destinations = n, notCompared = not_compared(mode),
                    "dry run: a takeover from kube-proxy would change no destination and no endpoint"
                );
                return;
            }
            for difference in differences.iter().take(SHOWN) {
                info!(ipFamily = %family, "dry run: {difference}");
            }
            if differences.len() > SHOWN {
                let more = differences.len() - SHOWN;
                info!(ipFamily = %family, "dry run: and {more} more");
            }
            info!(
                ipFamily = %family, mode, destinations = n, differences = differences.len(),
                notCompared = not_compared(mode),
                "dry run: a takeover from kube-proxy would change these"
            );
        }
        Found::Nobody if leftovers::has_ipvs() => info!(
            ipFamily = %family,
            "dry run: kube-proxy runs in mode ipvs, whose virtual servers are not compared"
        ),
        Found::Nobody => info!(
            ipFamily = %family,
            "dry run: there are no rules of kube-proxy in mode nftables or iptables to compare with"
        ),
        Found::Failed(error) => {
            warn!(ipFamily = %family, error, "dry run: kube-proxy's rules cannot be read");
        }
    }
}
