//! Batches for tables of ours beside the proxy's: few messages, written by hand.

use super::attribute::{begin_message, begin_nest, end_message, end_nest, put, put_str};
use super::constants::*;
use super::socket::refused;
use super::{Netlink, nfproto};
use crate::apply::{ApplyError, Operation, Verb};
use crate::model::Family;

/// Messages of one batch.
pub(super) struct SmallBatch<F> {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message starts.
    last: usize,
    family: std::marker::PhantomData<F>,
}

impl<F: Family> SmallBatch<F> {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            sequence: 1,
            last: 0,
            family: std::marker::PhantomData,
        };
        batch.boundary(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    fn boundary(&mut self, message_type: u16) {
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        let nfgenmsg = [0, 0, high, low];
        let out = &mut self.bytes;
        let start = begin_message(out, message_type, NLM_F_REQUEST, self.sequence, nfgenmsg);
        end_message(out, start);
        self.sequence += 1;
    }

    pub(super) fn message(
        &mut self,
        message_type: u16,
        flags: u16,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | message_type;
        let nfgenmsg = [nfproto(F::FAMILY) as u8, 0, 0, 0];
        let flags = NLM_F_REQUEST | flags;
        let out = &mut self.bytes;
        let start = begin_message(out, message_type, flags, self.sequence, nfgenmsg);
        write(out);
        end_message(out, start);
        self.last = start;
        self.sequence += 1;
    }

    /// Has the last message ask for an acknowledgement, as one must.
    pub(super) fn acknowledge_last(&mut self) {
        let flags = self.last + 6;
        let bytes = &mut self.bytes[flags..flags + 2];
        let with_ack = u16::from_ne_bytes([bytes[0], bytes[1]]) | NLM_F_ACK;
        bytes.copy_from_slice(&with_ack.to_ne_bytes());
    }

    fn end(mut self) -> Vec<u8> {
        self.boundary(NFNL_MSG_BATCH_END);
        self.bytes
    }
}

impl Netlink {
    pub(super) fn delete_table<F: Family>(&mut self, table: &str) -> Result<(), ApplyError> {
        let mut batch = SmallBatch::<F>::new();
        batch.message(NFT_MSG_DELTABLE, NLM_F_ACK, |out| {
            put_str(out, NFTA_TABLE_NAME, table);
        });
        let operation = [Operation::Table(Verb::Delete)];
        self.send_small(batch, &operation)
    }

    /// Sends a batch of which the last message asks for an acknowledgement. `operations` are what its
    /// messages are about, in order.
    pub(super) fn send_small<F: Family>(
        &mut self,
        batch: SmallBatch<F>,
        operations: &[Operation],
    ) -> Result<(), ApplyError> {
        let acknowledged = batch.sequence - 1;
        self.connection.send(&batch.end())?;
        match self.answers(acknowledged)?.into_iter().next() {
            None => Ok(()),
            Some(refusal) => {
                // The first message after the beginning of the batch has number 2.
                let at = refusal.sequence.saturating_sub(2) as usize;
                let operation = operations.get(at).cloned().unwrap_or(Operation::Batch);
                Err(refused(
                    F::FAMILY,
                    operation,
                    refusal.message,
                    refusal.errno,
                ))
            }
        }
    }
}

/// Writes an expression of a rule.
pub(super) fn expression(out: &mut Vec<u8>, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
    let element = begin_nest(out, NFTA_LIST_ELEM);
    put_str(out, NFTA_EXPR_NAME, name);
    let nest = begin_nest(out, NFTA_EXPR_DATA);
    data(out);
    end_nest(out, nest);
    end_nest(out, element);
}

/// Writes a number, in network byte order.
pub(super) fn number(out: &mut Vec<u8>, attribute: u16, value: u32) {
    put(out, attribute, &value.to_be_bytes());
}

/// Writes data.
pub(super) fn value(out: &mut Vec<u8>, attribute: u16, value: &[u8]) {
    let nest = begin_nest(out, attribute);
    put(out, NFTA_DATA_VALUE, value);
    end_nest(out, nest);
}

/// Writes an expression that goes on if a register compares with these bytes so.
pub(super) fn compare(out: &mut Vec<u8>, register: u32, operation: u32, with: &[u8]) {
    expression(out, "cmp", |out| {
        number(out, 1, register);
        number(out, 2, operation);
        value(out, 3, with);
    });
}

/// Writes what loads bytes of a header into a register.
pub(super) fn load(out: &mut Vec<u8>, register: u32, base: u32, offset: u32, len: u32) {
    expression(out, "payload", |out| {
        number(out, 1, register);
        number(out, 2, base);
        number(out, 3, offset);
        number(out, 4, len);
    });
}

/// Writes expressions that go on if a register has one of these bits (4 bytes, host byte order).
pub(super) fn has_bit(out: &mut Vec<u8>, register: u32, bits: u32) {
    expression(out, "bitwise", |out| {
        number(out, 1, register);
        number(out, 2, register);
        number(out, 3, 4);
        value(out, 4, &bits.to_ne_bytes());
        value(out, 5, &[0; 4]);
    });
    compare(out, register, NFT_CMP_NEQ, &[0; 4]);
}
