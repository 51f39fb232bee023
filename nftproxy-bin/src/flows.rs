//! Deletes stale UDP flows in the background, so that no sync waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::compile::{Leftovers, StaleFlows};
use nftproxy_core::model::{Family, V4, V6};
use tracing::{debug, warn};

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a sync takes at most from the kernel's consent to its message here.
const SETTLE: Duration = Duration::from_millis(10);

/// Flows of one family that are to be forgotten.
#[derive(Debug)]
pub(crate) enum Flows {
    V4(Leftovers<V4>),
    V6(Leftovers<V6>),
}

/// A family whose flows can be told from those of the other.
pub(crate) trait FlowFamily: Family {
    fn flows(leftovers: Leftovers<Self>) -> Flows;
}

impl FlowFamily for V4 {
    fn flows(leftovers: Leftovers<V4>) -> Flows {
        Flows::V4(leftovers)
    }
}

impl FlowFamily for V6 {
    fn flows(leftovers: Leftovers<V6>) -> Flows {
        Flows::V6(leftovers)
    }
}

/// Starts a thread that deletes what it is sent, until all senders are gone.
pub(crate) fn start() -> anyhow::Result<Sender<Flows>> {
    let (sender, receiver) = channel();
    let conntrack = Conntrack::open()?;
    std::thread::Builder::new()
        .name("conntrack".into())
        .spawn(move || run(conntrack, &receiver))?;
    Ok(sender)
}

/// What is yet to be done.
#[derive(Default)]
struct Pending {
    v4: Todo<V4>,
    v6: Todo<V6>,
}

/// What is yet to be done in one family.
#[derive(Clone)]
struct Todo<F: Family> {
    /// For each destination only the latest counts, which bounds it.
    by_destination: BTreeMap<(F::Address, NonZeroU16), StaleFlows<F>>,
    new_service_cidrs: BTreeSet<(F::Address, u8)>,
}

impl<F: Family> Default for Todo<F> {
    fn default() -> Self {
        Self {
            by_destination: BTreeMap::new(),
            new_service_cidrs: BTreeSet::new(),
        }
    }
}

impl<F: Family> Todo<F> {
    fn add(&mut self, leftovers: Leftovers<F>) {
        let Leftovers {
            flows,
            new_service_cidrs,
        } = leftovers;
        let by_destination = flows
            .into_iter()
            .map(|flow| ((flow.address, flow.port), flow));
        self.by_destination.extend(by_destination);
        self.new_service_cidrs.extend(new_service_cidrs);
    }

    fn is_empty(&self) -> bool {
        self.by_destination.is_empty() && self.new_service_cidrs.is_empty()
    }
}

impl Pending {
    fn add(&mut self, flows: Flows) {
        match flows {
            Flows::V4(leftovers) => self.v4.add(leftovers),
            Flows::V6(leftovers) => self.v6.add(leftovers),
        }
    }

    /// Adds what is waiting to be received.
    fn add_waiting(&mut self, receiver: &Receiver<Flows>) {
        while let Ok(flows) = receiver.try_recv() {
            self.add(flows);
        }
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

fn run(mut conntrack: Conntrack, receiver: &Receiver<Flows>) {
    let mut pending = Pending::default();
    loop {
        let received = if pending.is_empty() {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(RETRY)
        };
        match received {
            Ok(flows) => pending.add(flows),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        pending.add_waiting(receiver);
        let v4 = work(
            &mut pending,
            |pending| &mut pending.v4,
            &mut conntrack,
            receiver,
        );
        let v6 = work(
            &mut pending,
            |pending| &mut pending.v6,
            &mut conntrack,
            receiver,
        );
        for result in [v4, v6] {
            match result {
                Ok(0) => {}
                Ok(n_deleted) => debug!(n_deleted, "deleted stale UDP flows"),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    warn!(error, "stale UDP flows could not be deleted; retrying");
                }
            }
        }
    }
}

/// Does what is to be done in one family, and returns how many flows were deleted.
fn work<F: Family>(
    pending: &mut Pending,
    of_family: fn(&mut Pending) -> &mut Todo<F>,
    conntrack: &mut Conntrack,
    receiver: &Receiver<Flows>,
) -> Result<usize, ApplyError> {
    let wanted = of_family(pending).clone();
    let mut n_deleted = 0;
    if !wanted.new_service_cidrs.is_empty() {
        let cidrs: Vec<_> = wanted.new_service_cidrs.iter().copied().collect();
        let found = conntrack.find_one_way::<F>(&cidrs)?;
        conntrack.delete(&found)?;
        n_deleted += found.len();
        of_family(pending).new_service_cidrs.clear();
    }
    let flows: Vec<_> = wanted.by_destination.values().cloned().collect();
    let mut found = conntrack.find_stale(&flows)?;
    if !found.is_empty() {
        // A sync may have led some of them there meanwhile; its message comes right after it.
        std::thread::sleep(SETTLE);
        pending.add_waiting(receiver);
        let latest = &of_family(pending).by_destination;
        found.retain(|flow| {
            latest
                .get(&flow.destination)
                .is_some_and(|flows| flow.is_stale(flows))
        });
        conntrack.delete(&found)?;
        n_deleted += found.len();
    }
    // What has changed meanwhile is still to be done.
    of_family(pending)
        .by_destination
        .retain(|destination, flows| wanted.by_destination.get(destination) != Some(flows));
    Ok(n_deleted)
}
