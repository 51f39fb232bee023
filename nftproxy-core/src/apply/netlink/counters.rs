//! Reads what the table's counters say.

use super::Netlink;
use super::attribute::{attributes, find, put_str, string};
use super::constants::*;
use super::decode::{Decoder, decode_element, decode_rule};
use super::hold::TableState;
use super::list::{LIST_ATTEMPTS, is_passing};
use crate::apply::ApplyError;
use crate::counts::{Counts, Reason};
use crate::model::Family;
use crate::ruleset::element::Element;
use crate::ruleset::name::{ChainName, SetName, SlotMap};

/// What the kernel calls the one expression of an element that we know.
const COUNTER: &str = "counter";

impl Netlink {
    /// Reads what the table has counted; nothing if there is no table, or none that counts.
    ///
    /// The maps of endpoints are left out if they hold more than `endpoints_max` of them: the kernel
    /// takes the longer for each, the more there are. No commit waits for this, whoever makes it.
    ///
    /// # Errors
    ///
    /// As [`crate::apply::Kernel::list`].
    pub fn read_counts<F: Family>(
        &mut self,
        endpoints_max: usize,
    ) -> Result<Counts<F>, ApplyError> {
        for _ in 0..LIST_ATTEMPTS {
            match self.try_counts(endpoints_max) {
                Err(error) if is_passing(&error) => {}
                result => return result,
            }
        }
        Err(ApplyError::Unstable)
    }

    fn try_counts<F: Family>(&mut self, endpoints_max: usize) -> Result<Counts<F>, ApplyError> {
        let table = self.table.clone();
        let mut exists = false;
        self.dump::<F>(
            NFT_MSG_GETTABLE,
            "table",
            |_| {},
            |message| exists |= TableState::read(&table, message).is_some(),
        )?;
        if !exists {
            return Ok(Counts::default());
        }
        let mut decoder = Decoder::<F>::new(&table);
        let of_table = |out: &mut Vec<u8>| put_str(out, NFTA_SET_TABLE, table.name());
        self.dump::<F>(NFT_MSG_GETSET, "set", of_table, |message| {
            let _ = decoder.set(message);
        })?;
        let mut counts = Counts::default();
        if decoder.counted().is_empty() {
            return Ok(counts);
        }
        let of_table = |out: &mut Vec<u8>| put_str(out, NFTA_RULE_TABLE, table.name());
        let mut places = std::collections::BTreeMap::<ChainName, usize>::new();
        self.dump::<F>(NFT_MSG_GETRULE, "rule", of_table, |message| {
            if find(message, NFTA_RULE_TABLE).and_then(string) != Some(table.name()) {
                return;
            }
            let chain = find(message, NFTA_RULE_CHAIN)
                .and_then(string)
                .and_then(ChainName::parse);
            let Some(chain) = chain else { return };
            let place = places.entry(chain).or_default();
            let list = find(message, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
            let number = attributes(list).find_map(|(_, expression)| number(expression));
            let reason = Reason::of_rule(chain, &decode_rule::<F>(message));
            if let (Some(reason), Some(number)) = (reason, number) {
                counts.rules.push((chain, *place, reason, number));
            }
            *place += 1;
        })?;
        // What leads to endpoints says how many there are of them.
        let verdicts = [
            SetName::External,
            SetName::Local,
            SetName::ExternalNodePorts,
            SetName::LocalNodePorts,
        ];
        let counted = decoder.counted().clone();
        let (slots, others): (Vec<_>, Vec<_>) = counted
            .iter()
            .copied()
            .partition(|set| SlotMap::of(*set).is_some());
        for set in others.into_iter().chain(verdicts) {
            self.read_set(set, &mut counts, &mut decoder)?;
        }
        let n_slots: usize = decoder.slots().values().map(Vec::len).sum();
        counts.are_endpoints_left_out = n_slots > endpoints_max;
        if !counts.are_endpoints_left_out {
            for set in slots {
                self.read_set(set, &mut counts, &mut decoder)?;
            }
        }
        Ok(counts)
    }

    /// Reads the counters of a set. Elements without go to the decoder alone.
    fn read_set<F: Family>(
        &mut self,
        set: SetName,
        counts: &mut Counts<F>,
        decoder: &mut Decoder<'_, F>,
    ) -> Result<(), ApplyError> {
        self.dump_set::<F>(set.as_str(), |bytes| {
            let Some(element) = decode_element(set, bytes) else {
                return;
            };
            let number = find(bytes, NFTA_SET_ELEM_EXPR).and_then(number);
            if let Some(number) = number {
                counts.elements.push((element.clone(), number));
            }
            note_slots(decoder, element);
        })
    }
}

/// Keeps what leads to endpoints.
fn note_slots<F: Family>(decoder: &mut Decoder<'_, F>, element: Element<F>) {
    if SlotMap::of(element.set()).is_none() {
        decoder.element(element);
    }
}

/// The packets that a counter has seen; `None` if the expression is none.
fn number(expression: &[u8]) -> Option<u64> {
    let name = find(expression, NFTA_EXPR_NAME).and_then(string)?;
    let data = find(expression, NFTA_EXPR_DATA)?;
    let packets = find(data, NFTA_COUNTER_PACKETS)?.try_into().ok()?;
    (name == COUNTER).then(|| u64::from_be_bytes(packets))
}
