//! The floor: what the kernel alone needs for the same.
//!
//! [`Twin`] is a kernel in two network namespaces. The syncer under test works on the first; each
//! batch and each listing is then repeated on the second, which therefore always holds the same,
//! by the system calls alone: the finished batch is sent again, and a dump is received and thrown
//! away. So each floor is measured within moments of what it is the floor of.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use integration::netns::Namespace;
use nftproxy_core::apply::netlink::{Monitor, Netlink};
use nftproxy_core::apply::{ApplyError, Committed, Kernel, Keys, Scope};
use nftproxy_core::diff::{Counts, Delta, Observed, TableChange};
use nftproxy_core::model::{Family, Node, ServiceName, State};
use nftproxy_core::ruleset::Table;
use nftproxy_core::ruleset::element::Element;
use nftproxy_core::ruleset::name::SetName;
use nftproxy_core::ruleset::schema::schema;
use nftproxy_core::sync::{Report, Syncer, Timings};

use crate::netlink::{Socket, set_dump};

/// Two network namespaces that see the same.
#[derive(Debug)]
pub(crate) struct Bed {
    main: Namespace,
    floor: Namespace,
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            main: Namespace::new("main")?,
            floor: Namespace::new("floor")?,
        })
    }

    /// New sockets into both.
    pub(crate) fn open(&self) -> Result<Twin> {
        Ok(Twin {
            main: self.main.run(Netlink::open)?,
            floor: self.floor.run(Netlink::open)?,
            dumps: self.floor.run(Socket::open)?,
            spent: Spent::default(),
        })
    }

    /// Hears of what others do in the first.
    pub(crate) fn listen(&self, twin: &mut Twin) -> Result<Monitor> {
        let mut monitor = self.main.run(|| Monitor::open(&Table::default(), None))?;
        // Whoever listens in one namespace makes the kernel tell in all of them, so both are spared it.
        monitor.know(&mut twin.main);
        monitor.know(&mut twin.floor);
        Ok(monitor)
    }

    /// Another program does something in both.
    pub(crate) fn exec(&self, command: &[&str]) -> Result<()> {
        for namespace in [&self.main, &self.floor] {
            namespace.exec(command)?;
        }
        Ok(())
    }

    /// A raw socket that hears of the same.
    pub(crate) fn listening_socket(&self) -> Result<Socket> {
        self.main.run(Socket::listen)
    }

    /// Empties both. The kernel takes namespaces apart some time after they are gone, at the
    /// expense of whatever is measured then; this leaves little for it to do.
    pub(crate) fn clear<F: Family>(&self) -> Result<()> {
        for namespace in [&self.main, &self.floor] {
            let mut netlink = namespace.run(Netlink::open)?;
            let delta = Delta::<F> {
                table: TableChange::Recreate,
                ..Delta::default()
            };
            netlink.commit(&delta).context("emptying the table")?;
        }
        Ok(())
    }
}

/// The kernel, and beside it the floor.
#[derive(Debug)]
pub(crate) struct Twin {
    main: Netlink,
    floor: Netlink,
    dumps: Socket,
    spent: Spent,
}

#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    floor: Duration,
    list: Duration,
    kernel: Duration,
    bytes: usize,
    messages: usize,
    longest_batch: Duration,
}

impl Twin {
    fn on_floor<T, E>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let result = work(self);
        self.spent.floor += start.elapsed();
        result
    }

    fn dump<F: Family>(&mut self, sets: &[SetName]) -> Result<(), ApplyError> {
        self.on_floor(|twin| {
            sets.iter()
                .try_for_each(|set| twin.dumps.dump(&set_dump::<F>(set.as_str())).map(drop))
        })
        .map_err(|error| ApplyError::Receive(std::io::Error::other(format!("{error:#}"))))
    }
}

impl<F: Family> Kernel<F> for Twin {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        let start = Instant::now();
        let observed = self.main.list()?;
        self.spent.list += start.elapsed();
        if observed.is_some() {
            let listed = |set: &SetName| !schema(*set).is_dynamic();
            let sets: Vec<_> = SetName::ALL.into_iter().filter(listed).collect();
            self.dump::<F>(&sets)?;
        }
        Ok(observed)
    }

    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        let start = Instant::now();
        let observed = self.main.list_part(scope)?;
        self.spent.list += start.elapsed();
        if let (Some(_), Scope::Sets(sets)) = (&observed, scope) {
            let whole = sets.iter().filter(|(_, keys)| matches!(keys, Keys::All));
            let sets: Vec<_> = whole.map(|(set, _)| *set).collect();
            self.dump::<F>(&sets)?;
        }
        Ok(observed)
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        let start = Instant::now();
        let elements = self.main.list_affinity()?;
        self.spent.list += start.elapsed();
        self.dump::<F>(&[SetName::Affinity])?;
        Ok(elements)
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if delta.is_empty() {
            return Ok(Committed::default());
        }
        let start = Instant::now();
        let batch = self.main.encode(delta);
        let encode = start.elapsed();
        let is_floor_first = is_floor_first();
        if is_floor_first {
            self.on_floor(|twin| twin.floor.send_unheard(&batch, delta).map(drop))?;
        }
        let start = Instant::now();
        self.main.send_unheard(&batch, delta)?;
        let kernel = start.elapsed();
        if !is_floor_first {
            self.on_floor(|twin| twin.floor.send_unheard(&batch, delta).map(drop))?;
        }
        let committed = Committed {
            bytes: batch.bytes().len(),
            messages: batch.messages(),
            encode,
            kernel,
            is_overheard: false,
        };
        self.spent.kernel += kernel;
        self.spent.bytes += committed.bytes;
        self.spent.messages += committed.messages;
        self.spent.longest_batch = self.spent.longest_batch.max(kernel);
        Ok(committed)
    }
}

/// Who goes first takes turns, so that neither always gains from caches that the other warmed, or
/// waits for what the other left to be freed. The turns follow the Thue-Morse sequence, which keeps
/// no step with changes that come in pairs.
fn is_floor_first() -> bool {
    static BATCHES: AtomicU32 = AtomicU32::new(0);
    let number = BATCHES.fetch_add(1, Ordering::Relaxed);
    !number.count_ones().is_multiple_of(2)
}

/// What a change cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// From the event to the kernel's consent.
    pub(crate) total: Duration,
    /// What the kernel alone needs.
    pub(crate) floor: Duration,
    pub(crate) timings: Timings,
    pub(crate) counts: Counts,
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
    /// In the kernel for one batch, at most.
    pub(crate) longest_batch: Duration,
}

impl Cost {
    /// What both cost together.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let (a, b) = (self.timings, other.timings);
        Self {
            total: self.total + other.total,
            floor: self.floor + other.floor,
            timings: Timings {
                list: a.list + b.list,
                compile: a.compile + b.compile,
                diff: a.diff + b.diff,
                encode: a.encode + b.encode,
                kernel: a.kernel + b.kernel,
            },
            counts: Counts {
                chains: self.counts.chains + other.counts.chains,
                rules: self.counts.rules + other.counts.rules,
                deleted_elements: self.counts.deleted_elements + other.counts.deleted_elements,
                added_elements: self.counts.added_elements + other.counts.added_elements,
            },
            bytes: self.bytes + other.bytes,
            messages: self.messages + other.messages,
            longest_batch: self.longest_batch.max(other.longest_batch),
        }
    }
}

/// One sync, and what it cost. `before` is done first and counts as well.
pub(crate) fn sync<F: Family>(
    syncer: &mut Syncer<F, Twin>,
    state: &mut State,
    node: &Node,
    before: impl FnOnce(&mut State),
) -> Result<Cost> {
    let start = Instant::now();
    before(state);
    let dirty = state.take_dirty();
    sync_dirty(syncer, state, node, &dirty, start)
}

/// One sync of the given Services, which began at `start`.
pub(crate) fn sync_dirty<F: Family>(
    syncer: &mut Syncer<F, Twin>,
    state: &State,
    node: &Node,
    dirty: &BTreeSet<ServiceName>,
    start: Instant,
) -> Result<Cost> {
    measured(syncer, start, |syncer| syncer.sync(state, node, dirty))
}

/// One repair, which began at `start`.
pub(crate) fn repair<F: Family>(
    syncer: &mut Syncer<F, Twin>,
    scope: &Scope,
    state: &State,
    start: Instant,
) -> Result<Cost> {
    let (node, nothing) = (crate::cluster::node(), BTreeSet::new());
    measured(syncer, start, |syncer| {
        syncer.repair(scope, state, &node, &nothing)
    })
}

fn measured<F: Family>(
    syncer: &mut Syncer<F, Twin>,
    start: Instant,
    sync: impl FnOnce(&mut Syncer<F, Twin>) -> Result<Report, ApplyError>,
) -> Result<Cost> {
    syncer.kernel_mut().spent = Spent::default();
    let report = sync(syncer).context("a sync failed")?;
    let elapsed = start.elapsed();
    let spent = syncer.kernel().spent;
    Ok(Cost {
        total: elapsed.saturating_sub(spent.floor),
        floor: spent.floor,
        // Those of the report include floors.
        timings: Timings {
            list: spent.list,
            kernel: spent.kernel,
            ..report.timings
        },
        counts: report.counts,
        bytes: spent.bytes,
        messages: spent.messages,
        longest_batch: spent.longest_batch,
    })
}
