//! A batch, and what an error that the kernel answers it with is about.

use super::super::attribute::{HEADER_LEN, NFGENMSG_LEN, attributes};
use super::super::constants::NFTA_SET_ELEM_LIST_ELEMENTS;
use crate::apply::{Operation as Asked, Verb};
use crate::diff::Delta;
use crate::model::Family;
use crate::ruleset::name::{ChainName, SetName};

/// A delta as the kernel wants it: netlink messages, to be sent in one piece.
#[derive(Debug)]
pub struct Batch {
    pub(in crate::apply::netlink) bytes: Vec<u8>,
    /// What each message asks for; the first has sequence number [`FIRST_SEQUENCE`].
    pub(super) operations: Vec<Operation>,
    /// Sequence number of the one message that asks for an acknowledgement.
    pub(in crate::apply::netlink) acknowledged: u32,
}

pub(super) const FIRST_SEQUENCE: u32 = 1;

/// What a message asks for, as far as needed to explain an error.
#[derive(Debug)]
pub(in crate::apply::netlink) enum Operation {
    Begin,
    End,
    Table(Verb),
    OtherTable(Box<str>),
    /// So many elements of `affinity`, from another proxy's memory.
    Remembered(usize),
    Set(SetName),
    Chain(Verb, ChainName),
    Rule(ChainName, String),
    /// Elements of one set. The message starts at this byte of the batch.
    Elements {
        verb: Verb,
        set: SetName,
        start: usize,
        names: ElementRange,
    },
}

/// Which elements of the delta a message holds.
#[derive(Debug, Clone, Copy)]
pub(in crate::apply::netlink) struct ElementRange {
    pub(super) first: usize,
    pub(super) len: usize,
}

impl Batch {
    /// The messages, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many messages there are.
    pub fn messages(&self) -> usize {
        self.operations.len()
    }

    /// Explains which operation of `delta` an error with this sequence number is about. The
    /// kernel may also say at which byte of the message the culprit starts.
    pub(in crate::apply::netlink) fn explain<F: Family>(
        &self,
        delta: &Delta<F>,
        sequence: u32,
        offset: Option<usize>,
    ) -> Asked {
        let index = sequence.wrapping_sub(FIRST_SEQUENCE) as usize;
        match self.operations.get(index) {
            None | Some(Operation::Begin | Operation::End) => Asked::Batch,
            Some(Operation::Table(verb)) => Asked::Table(*verb),
            Some(Operation::OtherTable(name)) => Asked::OtherTable(name.clone()),
            Some(Operation::Remembered(count)) => Asked::Elements {
                verb: Verb::Add,
                set: SetName::Affinity,
                count: *count,
            },
            Some(Operation::Set(set)) => Asked::Set(*set),
            Some(Operation::Chain(verb, chain)) => Asked::Chain(*verb, *chain),
            Some(Operation::Rule(chain, text)) => Asked::Rule {
                chain: *chain,
                text: text.as_str().into(),
            },
            Some(Operation::Elements {
                verb,
                set,
                start,
                names,
            }) => {
                let (verb, set) = (*verb, *set);
                let all = match verb {
                    Verb::Add => &delta.add_elements,
                    Verb::Forget => &delta.forget,
                    Verb::Delete | Verb::Flush => &delta.delete_elements,
                };
                let elements = &all[names.first..names.first + names.len];
                match offset.and_then(|offset| self.element_at(*start, offset)) {
                    Some(at) if at < elements.len() => Asked::Element {
                        verb,
                        set,
                        element: elements[at].nft().into(),
                    },
                    _ => Asked::Elements {
                        verb,
                        set,
                        count: elements.len(),
                    },
                }
            }
        }
    }

    /// Which of the elements to add an error is about, if it is about one.
    pub(in crate::apply::netlink) fn culprit(
        &self,
        sequence: u32,
        offset: Option<usize>,
    ) -> Option<usize> {
        let index = sequence.wrapping_sub(FIRST_SEQUENCE) as usize;
        match self.operations.get(index)? {
            Operation::Elements {
                verb: Verb::Add,
                start,
                names,
                ..
            } => {
                let at = self.element_at(*start, offset?)?;
                (at < names.len).then_some(names.first + at)
            }
            _ => None,
        }
    }

    /// The number of the element that holds the byte at `offset` of the message at `start`.
    fn element_at(&self, start: usize, offset: usize) -> Option<usize> {
        let length =
            u32::from_ne_bytes(self.bytes.get(start..start + 4)?.try_into().ok()?) as usize;
        let message = self.bytes.get(start..start + length)?;
        let mut at = HEADER_LEN + NFGENMSG_LEN;
        let body = message.get(at..)?;
        for (attribute, payload) in attributes(body) {
            if attribute == NFTA_SET_ELEM_LIST_ELEMENTS {
                let mut element_start = at + 4;
                for (number, (_, element)) in attributes(payload).enumerate() {
                    let end = element_start + (4 + element.len()).next_multiple_of(4);
                    if (element_start..end).contains(&offset) {
                        return Some(number);
                    }
                    element_start = end;
                }
            }
            at += (4 + payload.len()).next_multiple_of(4);
        }
        None
    }
}
