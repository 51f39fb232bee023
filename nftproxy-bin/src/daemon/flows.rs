//! Deletes stale UDP flows in the background, so that no sync waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::conntrack::{Conntrack, Flow};
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

    /// Takes back what could not be done; what came meanwhile is newer.
    fn put_back(&mut self, undone: Self) {
        for (destination, flows) in undone.by_destination {
            self.by_destination.entry(destination).or_insert(flows);
        }
        self.new_service_cidrs.extend(undone.new_service_cidrs);
    }

    fn is_empty(&self) -> bool {
        self.by_destination.is_empty() && self.new_service_cidrs.is_empty()
    }
}

/// Where the kernel keeps its flows: [`Conntrack`].
trait FlowTable {
    fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError>;
    fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError>;
    fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError>;
}

impl FlowTable for Conntrack {
    fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        Self::find_stale(self, stale)
    }

    fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        Self::find_one_way(self, ranges)
    }

    fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError> {
        Self::delete(self, flows)
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

fn run(mut table: impl FlowTable, receiver: &Receiver<Flows>) {
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
            &mut table,
            receiver,
        );
        let v6 = work(
            &mut pending,
            |pending| &mut pending.v6,
            &mut table,
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

/// Does what is to be done in one family, and returns how many flows were deleted. What comes
/// meanwhile is still to be done.
fn work<F: Family>(
    pending: &mut Pending,
    of_family: fn(&mut Pending) -> &mut Todo<F>,
    table: &mut impl FlowTable,
    receiver: &Receiver<Flows>,
) -> Result<usize, ApplyError> {
    let todo = std::mem::take(of_family(pending));
    let result = forget(&todo, pending, of_family, table, receiver);
    if result.is_err() {
        of_family(pending).put_back(todo);
    }
    result
}

fn forget<F: Family>(
    todo: &Todo<F>,
    pending: &mut Pending,
    of_family: fn(&mut Pending) -> &mut Todo<F>,
    table: &mut impl FlowTable,
    receiver: &Receiver<Flows>,
) -> Result<usize, ApplyError> {
    let mut n_deleted = 0;
    if !todo.new_service_cidrs.is_empty() {
        let cidrs: Vec<_> = todo.new_service_cidrs.iter().copied().collect();
        let found = table.find_one_way::<F>(&cidrs)?;
        table.delete(&found)?;
        n_deleted += found.len();
    }
    let flows: Vec<_> = todo.by_destination.values().cloned().collect();
    let mut found = table.find_stale(&flows)?;
    if !found.is_empty() {
        // A sync may have led some of them there meanwhile; its message comes right after it.
        std::thread::sleep(SETTLE);
        pending.add_waiting(receiver);
        let newer = &of_family(pending).by_destination;
        found.retain(|flow| {
            newer
                .get(&flow.destination)
                .is_none_or(|flows| flow.is_stale(flows))
        });
        table.delete(&found)?;
        n_deleted += found.len();
    }
    Ok(n_deleted)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nftproxy_core::compile::Keep;

    use super::*;

    /// A table that is empty and fails at first, and says what it is asked for.
    struct Failing {
        n_failures: usize,
        asked: Sender<Vec<Ipv4Addr>>,
    }

    impl FlowTable for Failing {
        fn find_stale<F: Family>(
            &mut self,
            stale: &[StaleFlows<F>],
        ) -> Result<Vec<Flow<F>>, ApplyError> {
            let addresses = stale.iter().map(|flows| flows.address.into());
            let addresses = addresses.filter_map(<V4 as Family>::address).collect();
            let _ = self.asked.send(addresses);
            if self.n_failures > 0 {
                self.n_failures -= 1;
                return Err(ApplyError::Unstable);
            }
            Ok(Vec::new())
        }

        fn find_one_way<F: Family>(
            &mut self,
            _: &[(F::Address, u8)],
        ) -> Result<Vec<Flow<F>>, ApplyError> {
            Ok(Vec::new())
        }

        fn delete<F: Family>(&mut self, _: &[Flow<F>]) -> Result<(), ApplyError> {
            Ok(())
        }
    }

    fn flows_to(address: [u8; 4]) -> Flows {
        Flows::V4(Leftovers {
            flows: vec![StaleFlows {
                address: address.into(),
                port: NonZeroU16::MIN,
                keep: Keep::default(),
            }],
            new_service_cidrs: Vec::new(),
        })
    }

    /// S-125: what fails is tried again, together with what has come since, until it works.
    #[test]
    fn s125_failures_are_retried() {
        let (asked, questions) = channel();
        let table = Failing {
            n_failures: 1,
            asked,
        };
        let (sender, receiver) = channel();
        let worker = std::thread::spawn(move || run(table, &receiver));
        let next_v4_question = || {
            let mut questions = questions.iter().filter(|addresses| !addresses.is_empty());
            questions.next().unwrap()
        };
        let (first, second) = ([10, 96, 0, 1], [10, 96, 0, 2]);
        sender.send(flows_to(first)).unwrap();
        assert_eq!(next_v4_question(), [Ipv4Addr::from(first)]);
        sender.send(flows_to(second)).unwrap();
        assert_eq!(next_v4_question(), [first, second].map(Ipv4Addr::from));
        drop(sender);
        worker.join().unwrap();
        assert!(questions.iter().all(|addresses| addresses.is_empty()));
    }
}
