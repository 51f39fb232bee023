//! Reads our table back.
//!
//! Dumping a map costs the kernel a walk from its start for each buffer that it fills, which makes
//! large ones slow: the time grows with the square of the size. But the keys of the largest, those
//! of slots, follow from the verdicts. So large ones are read key by key, if the kernel says how
//! many elements there are to know that none is left out. Entry point: [`Netlink::list_table`].

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::socket::MsgFlags;

use super::Netlink;
use super::attribute::{
    NFGENMSG_LEN, attributes, be32, begin_message, begin_nest, end_message, end_nest, find,
    messages, put, put_str,
};
use super::constants::*;
use super::decode::{Decoder, decode_element};
use super::hold::TableState;
use super::socket::DUMP_INTERRUPTED;
use crate::apply::{ApplyError, Keys, Scope};
use crate::compile::Remembered;
use crate::diff::Observed;
use crate::model::Family;
use crate::ruleset::Table;
use crate::ruleset::element::{Element, Key};
use crate::ruleset::name::{SetName, SlotMap};
use crate::ruleset::schema::schema;

/// How often a listing is tried again because the ruleset changed meanwhile.
pub(super) const LIST_ATTEMPTS: usize = 10;
/// Up to so many elements, a dump is faster than reading key by key.
const DUMP_MAX: usize = 60_000;

impl Netlink {
    /// Reads the table, but of its elements only those of a scope; `None` if there is none.
    pub(super) fn list_table<F: Family>(
        &mut self,
        scope: &Scope,
    ) -> Result<Option<Observed<F>>, ApplyError> {
        for _ in 0..LIST_ATTEMPTS {
            let before = self.ask_generation()?;
            match self.try_list(scope) {
                Err(error) if is_passing(&error) => {}
                Ok(observed) if self.ask_generation()? == before => return Ok(observed),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApplyError::Unstable)
    }

    /// Reads what `affinity` has learned.
    pub(super) fn list_learned<F: Family>(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        self.dump_affinity::<F, _>(|element| decode_element(SetName::Affinity, element))
    }

    /// Reads what `affinity` has learned, and how long each of it stays.
    pub(super) fn list_remembered<F: Family>(&mut self) -> Result<Vec<Remembered<F>>, ApplyError> {
        self.dump_affinity::<F, _>(|element| {
            let time = |attribute| {
                let bytes = find(element, attribute)?.try_into().ok()?;
                // The kernel would take nought for no limit.
                let time = Duration::from_millis(u64::from_be_bytes(bytes));
                (!time.is_zero()).then_some(time)
            };
            Some(Remembered {
                element: decode_element(SetName::Affinity, element)?,
                timeout: time(NFTA_SET_ELEM_TIMEOUT)?,
                expires: time(NFTA_SET_ELEM_EXPIRATION)?,
            })
        })
    }

    fn dump_affinity<F: Family, T>(
        &mut self,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, ApplyError> {
        for _ in 0..LIST_ATTEMPTS {
            let mut elements = Vec::new();
            let take = |element: &[u8]| elements.extend(decode(element));
            let dump = self.dump_set::<F>(SetName::Affinity.as_str(), take);
            match dump {
                Ok(()) => return Ok(elements),
                Err(ApplyError::Receive(error))
                    if error.raw_os_error() == Some(DUMP_INTERRUPTED) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApplyError::Unstable)
    }

    fn try_list<F: Family>(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        let table = self.table.clone();
        let mut state = None;
        self.dump::<F>(
            NFT_MSG_GETTABLE,
            "table",
            |_| {},
            |message| {
                state = state.or(TableState::read(&table, message));
            },
        )?;
        let Some(state) = state else { return Ok(None) };

        let mut decoder = Decoder::new(&table);
        match state.holder(self.connection.port_id()) {
            Some(holder) => decoder.held_by(holder),
            None => decoder.foreign(format!("table flags {:#x}", state.flags())),
        }
        self.dump::<F>(
            NFT_MSG_GETCHAIN,
            "chain",
            |_| {},
            |message| decoder.chain(message),
        )?;
        let of_table = |out: &mut Vec<u8>| put_str(out, NFTA_RULE_TABLE, table.name());
        self.dump::<F>(NFT_MSG_GETRULE, "rule", of_table, |message| {
            decoder.rule(message)
        })?;
        let of_table = |out: &mut Vec<u8>| put_str(out, NFTA_OBJ_TABLE, table.name());
        for (message_type, what) in [
            (NFT_MSG_GETOBJ, "object"),
            (NFT_MSG_GETFLOWTABLE, "flowtable"),
        ] {
            self.dump::<F>(message_type, what, of_table, |message| {
                decoder.object(message)
            })?;
        }
        let mut sets = Vec::new();
        let of_table = |out: &mut Vec<u8>| put_str(out, NFTA_SET_TABLE, table.name());
        self.dump::<F>(NFT_MSG_GETSET, "set", of_table, |message| {
            let count = find(message, NFTA_SET_COUNT).and_then(be32);
            sets.extend(decoder.set(message).map(|set| (set, count)));
        })?;
        // What rules have learned is no part of the ruleset; but no rule of ours writes what is for
        // everybody.
        let (learned, sets): (Vec<_>, Vec<_>) = sets
            .into_iter()
            .partition(|(set, _)| schema(*set).is_dynamic());
        for (set, _) in learned {
            if scope.has_set(set) && self.has_catch_all::<F>(set)? {
                decoder.foreign(format!("element {{ * }} of {set}"));
            }
        }
        if let Scope::Sets(scope) = scope {
            for (set, _) in sets {
                match scope.get(&set) {
                    None => {}
                    Some(Keys::All) => self.dump_elements(set, &mut decoder)?,
                    Some(Keys::Only(keys)) => self.find_elements(set, keys, &mut decoder)?,
                }
            }
            return Ok(Some(decoder.finish()));
        }
        let (slots, others): (Vec<_>, Vec<_>) = sets
            .into_iter()
            .partition(|(set, _)| SlotMap::of(*set).is_some());
        for (set, _) in others {
            self.dump_elements(set, &mut decoder)?;
        }
        let mut keys = decoder.slots();
        for (set, count) in slots {
            let keys = SlotMap::of(set).and_then(|map| keys.remove(&map));
            let complete = keys.filter(|keys| {
                keys.len() > DUMP_MAX && Some(keys.len()) == count.map(|count| count as usize)
            });
            match complete {
                Some(keys)
                    if !self.has_catch_all::<F>(set)?
                        && self.get_elements(set, &keys, &mut decoder)? => {}
                _ => self.dump_elements(set, &mut decoder)?,
            }
        }
        Ok(Some(decoder.finish()))
    }

    /// Calls `take` with each element of a set of the table, as the kernel has it.
    pub(super) fn dump_set<F: Family>(
        &mut self,
        set: &str,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        let table = self.table.clone();
        self.dump::<F>(
            NFT_MSG_GETSETELEM,
            set,
            |out| put_set(out, &table, set),
            |message| {
                let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                attributes(list).for_each(|(_, element)| take(element));
            },
        )
    }

    fn dump_elements<F: Family>(
        &mut self,
        set: SetName,
        decoder: &mut Decoder<'_, F>,
    ) -> Result<(), ApplyError> {
        let table = self.table.clone();
        self.dump::<F>(
            NFT_MSG_GETSETELEM,
            set.as_str(),
            |out| put_set(out, &table, set.as_str()),
            |message| decoder.elements(set, message),
        )
    }

    /// Reads the elements with these keys; `false` if one does not exist, in which case nothing is
    /// taken.
    fn get_elements<F: Family>(
        &mut self,
        set: SetName,
        keys: &[Key<F>],
        decoder: &mut Decoder<'_, F>,
    ) -> Result<bool, ApplyError> {
        let table = self.table.clone();
        let mut taken = Decoder::new(&table);
        for keys in keys.chunks(self.connection.answers_at_once()) {
            let write = |key: &Key<F>, out: &mut Vec<u8>| key.write(out);
            if !self.get_at_once(set, keys, write, &mut taken)? {
                return Ok(false);
            }
        }
        decoder.append(taken);
        Ok(true)
    }

    /// Reads those elements with these keys (as the kernel has them) that exist.
    fn find_elements<F: Family>(
        &mut self,
        set: SetName,
        keys: &BTreeSet<Box<[u8]>>,
        decoder: &mut Decoder<'_, F>,
    ) -> Result<(), ApplyError> {
        for key in keys {
            let write = |key: &&[u8], out: &mut Vec<u8>| out.extend_from_slice(key);
            self.get_at_once(set, &[&**key], write, decoder)?;
        }
        Ok(())
    }

    /// Whether a set has the element `*`, which stands for all keys that the set lacks. The kernel
    /// does not count it.
    fn has_catch_all<F: Family>(&mut self, set: SetName) -> Result<bool, ApplyError> {
        let catch_all = |out: &mut Vec<u8>| {
            let element = begin_nest(out, NFTA_LIST_ELEM);
            put(
                out,
                NFTA_SET_ELEM_FLAGS,
                &NFT_SET_ELEM_CATCHALL.to_be_bytes(),
            );
            end_nest(out, element);
        };
        self.request_elements::<F>(set, catch_all, |_| {})
    }

    /// Asks for elements by one request; `false` if one does not exist.
    fn get_at_once<F: Family, K>(
        &mut self,
        set: SetName,
        keys: &[K],
        write: impl Fn(&K, &mut Vec<u8>),
        decoder: &mut Decoder<'_, F>,
    ) -> Result<bool, ApplyError> {
        let mut scratch = Vec::new();
        let elements = |out: &mut Vec<u8>| {
            for key in keys {
                scratch.clear();
                write(key, &mut scratch);
                let element = begin_nest(out, NFTA_LIST_ELEM);
                let nest = begin_nest(out, NFTA_SET_ELEM_KEY);
                put(out, NFTA_DATA_VALUE, &scratch);
                end_nest(out, nest);
                end_nest(out, element);
            }
        };
        self.request_elements::<F>(set, elements, |message| decoder.elements(set, message))
    }

    /// Asks for the elements that `write` lists; `false` if one does not exist.
    fn request_elements<F: Family>(
        &mut self,
        set: SetName,
        write: impl FnOnce(&mut Vec<u8>),
        take: impl FnMut(&[u8]),
    ) -> Result<bool, ApplyError> {
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
        let table = self.table.clone();
        let request = |out: &mut Vec<u8>| {
            put_set(out, &table, set.as_str());
            let list = begin_nest(out, NFTA_SET_ELEM_LIST_ELEMENTS);
            write(out);
            end_nest(out, list);
        };
        let result = self
            .connection
            .get(F::FAMILY, message_type, set.as_str(), request, take);
        match result {
            Ok(()) => Ok(true),
            Err(ApplyError::Refused(refusal)) if refusal.is_not_found() => Ok(false),
            Err(error) => Err(self.of_table(error)),
        }
    }

    /// The ruleset's generation: it changes with each commit of anybody.
    pub(super) fn ask_generation(&mut self) -> Result<Option<u32>, ApplyError> {
        let sequence = self.connection.next_sequence();
        let mut request = Vec::new();
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN;
        let start = begin_message(&mut request, message_type, NLM_F_REQUEST, sequence, [0; 4]);
        end_message(&mut request, start);
        self.connection.send(&request)?;
        let bytes = self
            .connection
            .receive(MsgFlags::empty())?
            .unwrap_or_default();
        let answer = messages(bytes)
            .find(|message| message.sequence == sequence)
            .and_then(|message| be32(find(message.body.get(NFGENMSG_LEN..)?, NFTA_GEN_ID)?));
        Ok(answer)
    }
}

/// Names a set in a request for its elements.
fn put_set(out: &mut Vec<u8>, table: &Table, set: &str) {
    put_str(out, NFTA_SET_ELEM_LIST_TABLE, table.name());
    put_str(out, NFTA_SET_ELEM_LIST_SET, set);
}

/// Whether the ruleset changed while it was listed: a dump was interrupted, or an object went away
/// between two.
pub(super) fn is_passing(error: &ApplyError) -> bool {
    match error {
        ApplyError::Receive(error) => error.raw_os_error() == Some(DUMP_INTERRUPTED),
        ApplyError::Refused(refusal) => refusal.is_not_found(),
        _ => false,
    }
}
